"""A recording keeps its id when files with names of the same letters come or go."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ingesting import contents, eeg, recipe, write_edf

from ddscale.ingest import run
from ddscale.sources import folder as folder_source
from ddscale.sources.identity import recording_ids, recording_names
from ddscale.store import open_store, verify


def names_in(store: Path) -> set[str]:
    return set(open_store(store).table(["recording"])["recording"].to_pylist())


def as_before(paths):
    """Ids by the rule of older versions, which knew no alias."""
    return [(name, "") for name in recording_ids(paths)]


def test_names_that_an_id_can_spell_are_what_they_were():
    paths = ["sub1/run1.edf", "sub 1/run(2).edf", "a b/x.edf", "a_b/x.edf", f"{'long' * 30}.edf"]
    assert [name for name, _ in recording_names(paths)] == recording_ids(paths)


def test_other_names_do_not_depend_on_who_else_is_there():
    alone, both = recording_names(["Müller/rec.fif"]), recording_names(["Möller/rec.fif", "Müller/rec.fif"])
    assert alone[0] == both[1]
    assert alone[0][0].startswith("M_ller_rec-")
    assert alone[0][1] == "M_ller_rec"
    assert len({name for name, _ in both}) == 2


def test_another_umlaut_renames_nobody(tmp_path):
    write_edf(tmp_path / "in" / "Müller" / "rec.edf", eeg(20, 1))
    run(recipe(tmp_path / "in", tmp_path / "store"))
    before = names_in(tmp_path / "store")
    write_edf(tmp_path / "in" / "Möller" / "rec.edf", eeg(20, 2))
    summary = run(recipe(tmp_path / "in", tmp_path / "store"))
    assert summary.ok
    assert [row.recordings_new for row in summary.datasets] == [1]
    assert len(names_in(tmp_path / "store")) == 2
    assert before < names_in(tmp_path / "store")


@pytest.mark.parametrize(("first", "second"), [("Müller", "Möller"), ("Müller", "M_ller"), ("a b", "a_b")])
@pytest.mark.parametrize("subject", ["parent", "stem"])
@pytest.mark.parametrize("touched", [False, True])
def test_a_store_of_an_older_version_keeps_its_ids(tmp_path, monkeypatch, first, second, subject, touched):
    source = {"kind": "files", "dataset": "tests", "folder": str(tmp_path / "in"), "subject": subject}
    given = recipe(tmp_path, tmp_path / "store", sources=[source])
    path = write_edf(tmp_path / "in" / first / "rec.edf", eeg(20, 1))
    with monkeypatch.context() as patched:
        patched.setattr(folder_source, "recording_names", as_before)
        run(given)
    (old,) = names_in(tmp_path / "store")
    assert "-" not in old
    write_edf(tmp_path / "in" / second / "rec.edf", eeg(20, 2))
    if touched and subject == "parent":  # then the subject still tells whose file it is
        write_edf(path, eeg(20, 1))
    summary = run(given)
    assert summary.ok
    assert [row.recordings_new for row in summary.datasets] == [1]
    assert old in names_in(tmp_path / "store")
    assert verify(tmp_path / "store").problems == []
    kept = contents(tmp_path / "store")
    assert run(given).ok
    assert contents(tmp_path / "store") == kept
    # Without the newer file again, nobody is renamed either.
    shutil.rmtree(tmp_path / "in" / second)
    assert run(given).ok
    assert (
        contents(tmp_path / "store", ["ingest_summary.json"]).items()
        >= {name: content for name, content in kept.items() if name != "ingest_summary.json"}.items()
    )


def test_one_of_two_that_goes_leaves_the_others_id_alone(tmp_path):
    write_edf(tmp_path / "in" / "a b" / "rec.edf", eeg(20, 1))
    write_edf(tmp_path / "in" / "a_b" / "rec.edf", eeg(20, 2))
    run(recipe(tmp_path / "in", tmp_path / "store"))
    shutil.rmtree(tmp_path / "in" / "a b")
    summary = run(recipe(tmp_path / "in", tmp_path / "store"))
    assert summary.ok
    assert [row.recordings_new for row in summary.datasets] == [0]


def test_an_ingest_that_was_interrupted_knows_its_recordings_by_their_older_ids(tmp_path, monkeypatch):
    write_edf(tmp_path / "in" / "Müller" / "rec.edf", eeg(20, 1))
    write_edf(tmp_path / "in" / "Zoe" / "rec.edf", eeg(20, 2))

    def stop(done, total, name):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(folder_source, "recording_names", as_before)
        with pytest.raises(KeyboardInterrupt):
            run(recipe(tmp_path / "in", tmp_path / "store"), on_progress=stop)
    assert run(recipe(tmp_path / "in", tmp_path / "store")).ok
    assert names_in(tmp_path / "store") == {"M_ller_rec", "Zoe_rec"}


def test_a_blocklist_means_a_recording_by_its_older_id_too(tmp_path):
    write_edf(tmp_path / "in" / "Müller" / "rec.edf", eeg(20, 1))
    write_edf(tmp_path / "in" / "Zoe" / "rec.edf", eeg(20, 2))
    given = recipe(tmp_path / "in", tmp_path / "store", blocklist={"recordings": ["tests/M_ller_rec"]})
    summary = run(given)
    assert summary.notes == []
    assert names_in(tmp_path / "store") == {"Zoe_rec"}


def test_a_blocklist_means_the_recording_that_the_store_calls_so(tmp_path, monkeypatch):
    write_edf(tmp_path / "in" / "Müller" / "rec.edf", eeg(20, 1))
    with monkeypatch.context() as patched:
        patched.setattr(folder_source, "recording_names", as_before)
        run(recipe(tmp_path / "in", tmp_path / "store"))
    write_edf(tmp_path / "in" / "Möller" / "rec.edf", eeg(20, 2))
    run(recipe(tmp_path / "in", tmp_path / "store", blocklist={"recordings": ["tests/M_ller_rec"]}))
    (kept,) = names_in(tmp_path / "store")
    assert kept == recording_names(["Möller/rec.edf"])[0][0]
