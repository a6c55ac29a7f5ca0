"""Checkpoints: whole or not there, verified before use, damaged ones passed over by name."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

from ddscale.training import checkpoints as checkpoints_module
from ddscale.training.checkpoints import SEAL, Checkpoints, SaveError
from ddscale.training.convert import convert
from ddscale.training.ownership import only_run_in
from ddscale.training.ranks import AgreedError, Ranks

ALONE = Ranks(0, 1, 0, 1, torch.device("cpu"))


class FakeEngine:
    """Writes two files per rank where DeepSpeed would."""

    def __init__(self, content: bytes = b"weights") -> None:
        self.content = content
        self.checkpoint_engine = TorchCheckpointEngine()

    def _copy_recovery_script(self, path):
        pass

    def save_checkpoint(self, folder, tag, client_state, save_latest):
        assert save_latest is False
        assert client_state
        path = os.path.join(folder, tag)
        os.makedirs(path)
        for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"):
            with open(os.path.join(path, name), "wb") as file:
                file.write(name.encode() + self.content * 1000)


def state(step: int, **changes):
    return {"step": step, "world_size": 1, "zero_stage": 2, "universal": False, **changes}


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", keep=3, ranks=ALONE)


def save(checkpoints, *steps):
    for step in steps:
        checkpoints.save(FakeEngine(b"%d" % step), step, state(step))


def names(checkpoints):
    return sorted(path.name for path in checkpoints.folder.iterdir() if path.is_dir())


def test_what_was_saved_is_found_again_with_its_state(checkpoints):
    assert checkpoints.newest_intact() == (None, [])
    save(checkpoints, 5, 10)
    found, complaints = checkpoints.newest_intact()
    assert complaints == []
    assert found.step == 10
    assert found.state == state(10)
    assert (checkpoints.folder / "latest").read_text() == "step-00000010"


def test_only_the_newest_are_kept(checkpoints):
    save(checkpoints, 1, 2, 3, 4, 5)
    assert names(checkpoints) == ["step-00000003", "step-00000004", "step-00000005"]


def test_a_conversion_that_ended_between_its_renames_costs_no_checkpoint(checkpoints):
    save(checkpoints, 5, 10)
    newest = checkpoints.folder / "step-00000010"
    shutil.copytree(newest, checkpoints.folder / ".unpublished-step-00000010")
    newest.rename(f"{newest}.native")
    found, complaints = checkpoints.newest_intact()
    assert (found.step, complaints) == (10, [])
    assert names(checkpoints) == ["step-00000005", "step-00000010"]


def test_a_converted_checkpoint_keeps_its_original_until_both_go(checkpoints):
    save(checkpoints, 5)
    shutil.copytree(checkpoints.folder / "step-00000005", checkpoints.folder / "step-00000005.native")
    save(checkpoints, 6, 7)
    assert names(checkpoints)[:2] == ["step-00000005", "step-00000005.native"]
    save(checkpoints, 8)
    assert names(checkpoints) == ["step-00000006", "step-00000007", "step-00000008"]


def test_what_a_run_is_training_into_is_not_converted(tmp_path):
    (tmp_path / "checkpoints" / "step-00000005").mkdir(parents=True)
    with only_run_in(tmp_path), pytest.raises(ValueError, match="another run is training into"):
        convert(tmp_path / "checkpoints" / "step-00000005")
    with pytest.raises(FileNotFoundError, match="there is no checkpoint at"):
        convert(tmp_path / "elsewhere" / "checkpoints" / "step-00000005")
    assert not (tmp_path / "elsewhere").exists()


def test_every_file_is_on_the_disk_before_the_checkpoint_has_its_name(checkpoints, monkeypatch):
    flushed, fsync = [], os.fsync

    def flush(descriptor):
        flushed.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", flush)
    save(checkpoints, 5)
    written = {path.name for path in (checkpoints.folder / "step-00000005").iterdir()} - {SEAL}
    before = {path.name for path in flushed if path.parent.name == ".unpublished-step-00000005"}
    assert written < before
    assert len(written) == 2
    assert checkpoints.folder in flushed


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "flipped bit": (lambda p: flip_a_byte(p / "mp_rank_00_model_states.pt"), "model_states.pt has changed bytes"),
    "missing file": (lambda p: (p / "mp_rank_00_model_states.pt").unlink(), "mp_rank_00_model_states.pt is missing"),
    "truncated": (lambda p: os.truncate(p / "mp_rank_00_model_states.pt", 9), "has 9 bytes instead of"),
    "no seal": (lambda p: (p / SEAL).unlink(), "seal.json cannot be read"),
    "half a seal": (lambda p: os.truncate(p / SEAL, 40), "seal.json cannot be read"),
    "changed state": (
        lambda p: (p / SEAL).write_text((p / SEAL).read_text().replace('"step": 3', '"step": 4')),
        "seal.json was changed after it was written",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_by_name_for_the_one_before(checkpoints, kind):
    save(checkpoints, 1, 2, 3)
    damage, said = DAMAGE[kind]
    damage(checkpoints.folder / "step-00000003")
    found, complaints = checkpoints.newest_intact()
    assert found.step == 2
    (complaint,) = complaints
    assert "step-00000003" in complaint
    assert said in complaint


@pytest.mark.parametrize("what", ["a file", "the seal"])
def test_a_read_that_fails_for_a_while_is_no_damage(checkpoints, monkeypatch, what):
    save(checkpoints, 1, 2)
    failures = fail_reads(monkeypatch, what, times=2)
    found, complaints = checkpoints.newest_intact()
    assert found.step == 2
    assert complaints == []
    assert not failures


def test_a_read_that_goes_on_failing_ends_the_start_and_gives_up_no_checkpoint(checkpoints, monkeypatch):
    save(checkpoints, 1, 2)
    fail_reads(monkeypatch, "a file", times=99)
    with pytest.raises(
        AgreedError, match=r"could not be read for 0 s \(Input/output error\).*move .*step-00000002 away"
    ):
        checkpoints.newest_intact()
    assert names(checkpoints) == ["step-00000001", "step-00000002"]


def fail_reads(monkeypatch, what, times) -> list[OSError]:
    """The next reads fail; what is left to fail."""
    monkeypatch.setattr(checkpoints_module, "READ_AGAIN_AFTER_S", (0, 0, 0))
    failures = [OSError(errno.EIO, os.strerror(errno.EIO)) for _ in range(times)]
    owner, name = (checkpoints_module, "_hash_file") if what == "a file" else (Path, "read_bytes")
    real = getattr(owner, name)

    def read(*given):
        if failures:
            raise failures.pop()
        return real(*given)

    monkeypatch.setattr(owner, name, read)
    return failures


def test_when_nothing_is_intact_every_one_is_named(checkpoints):
    save(checkpoints, 1, 2)
    for name in names(checkpoints):
        flip_a_byte(checkpoints.folder / name / "mp_rank_00_model_states.pt")
    found, complaints = checkpoints.newest_intact()
    assert found is None
    assert ["step-00000002" in complaints[0], "step-00000001" in complaints[1]] == [True, True]


def test_latest_set_back_by_hand_is_honoured_and_a_new_save_ends_the_old_future(checkpoints):
    save(checkpoints, 2, 4, 6)
    (checkpoints.folder / "latest").write_text("step-00000004")
    found, _ = checkpoints.newest_intact()
    assert found.step == 4
    save(checkpoints, 5)
    assert names(checkpoints) == ["step-00000002", "step-00000004", "step-00000005"]


def test_a_latest_that_names_nothing_is_no_obstacle(checkpoints):
    save(checkpoints, 2)
    (checkpoints.folder / "latest").write_text("step-00000777")
    assert checkpoints.newest_intact()[0].step == 2


def test_the_same_step_again_replaces_what_was_there(checkpoints):
    save(checkpoints, 3)
    checkpoints.save(FakeEngine(b"other"), 3, state(3))
    found, complaints = checkpoints.newest_intact()
    assert complaints == []
    assert b"other" in (found.path / "mp_rank_00_model_states.pt").read_bytes()


def test_what_a_crash_left_unpublished_is_never_found_and_goes_away(checkpoints):
    save(checkpoints, 1)

    def crash():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(FakeEngine(), 2, state(2), crash)
    assert len(names(checkpoints)) == 2
    assert checkpoints.newest_intact()[0].step == 1
    assert names(checkpoints) == ["step-00000001"]


def test_a_missing_ranks_file_stops_the_publication(checkpoints):
    save(checkpoints, 1)
    with pytest.raises(
        AgreedError, match="1 of 2 ranks' optimiser files arrived.*file system that all of them share"
    ):
        checkpoints.save(FakeEngine(), 2, state(2, world_size=2))
    assert checkpoints.newest_intact()[0].step == 1


def test_the_seal_lists_every_file(checkpoints):
    save(checkpoints, 1)
    folder = checkpoints.folder / "step-00000001"
    listed = json.loads((folder / SEAL).read_text())["files"]
    assert set(listed) | {SEAL} == {path.name for path in folder.iterdir()}


def test_what_a_checkpoint_was_before_its_conversion_goes_with_it(checkpoints):
    save(checkpoints, 1)
    (checkpoints.folder / "step-00000001.native").mkdir()
    save(checkpoints, 2, 3)
    assert "step-00000001.native" in names(checkpoints)
    save(checkpoints, 4)
    assert names(checkpoints) == ["step-00000002", "step-00000003", "step-00000004"]


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_a_full_disk_is_named_and_costs_no_earlier_checkpoint(checkpoints, size):
    save(checkpoints, 1)

    class FullDisk(FakeEngine):
        reached_the_end = False

        def save_checkpoint(self, folder, tag, client_state, save_latest):
            super().save_checkpoint(folder, tag, client_state, save_latest)
            # A disk that is really full: torch's writer reports it in its own way.
            self.checkpoint_engine.save({"weights": torch.zeros(size)}, "/dev/full")
            self.reached_the_end = True

    engine = FullDisk()
    with pytest.raises(SaveError, match=r"step-00000002 could not be written \(.*\); .* GB are free there"):
        checkpoints.save(engine, 2, state(2))
    assert engine.reached_the_end  # a rank that does not get there is waited for by all others
    assert names(checkpoints) == ["step-00000001"]
    assert checkpoints.newest_intact()[0].step == 1
    save(checkpoints, 3)
    assert checkpoints.newest_intact()[0].step == 3


def test_other_failures_of_the_writer_are_defects_and_stay_as_they_are(checkpoints):
    class Broken(FakeEngine):
        def save_checkpoint(self, folder, tag, client_state, save_latest):
            super().save_checkpoint(folder, tag, client_state, save_latest)
            self.checkpoint_engine.save({"not to be pickled": lambda: None}, f"{folder}/{tag}/x.pt")

    engine = Broken()
    with pytest.raises((AttributeError, pickle.PicklingError)):
        checkpoints.save(engine, 2, state(2))
    assert isinstance(engine.checkpoint_engine, TorchCheckpointEngine)


def test_a_pointer_that_cannot_be_written_takes_its_checkpoint_along(checkpoints, monkeypatch):
    save(checkpoints, 1)
    real = os.fsync

    def fsync(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".latest.tmp"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(SaveError, match="Input/output error"):
        checkpoints.save(FakeEngine(), 2, state(2))
    assert names(checkpoints) == ["step-00000001"]
    assert (checkpoints.folder / "latest").read_text() == "step-00000001"
