"""Stretches that somebody marked as bad in the recording's own annotations are left out."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import edfio
import mne
import mne_bids
import numpy as np
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ingesting import NAMES, SFREQ, eeg, recipe

from ddscale.ingest import marks, run
from ddscale.signal.quality import Cell
from ddscale.sources.files import open_file
from ddscale.sources.recording import Mark
from ddscale.sources.selection import Statements
from ddscale.store import describe, open_store, verify


def write_fif(path: Path, marked: list[tuple], seconds: float = 20, skip: float = 0, date=None) -> Path:
    """marked: (onset in s of what is kept, duration, description[, channels]). skip: s cut off at the beginning."""
    info = mne.create_info(list(NAMES), SFREQ, "eeg")
    raw = mne.io.RawArray(eeg(seconds + skip, 8) * 1e-6, info, verbose="error")
    raw.set_meas_date(date)
    onset, duration, description = ([mark[i] for mark in marked] for i in range(3))
    channels = [mark[3] if len(mark) > 3 else () for mark in marked]
    raw.crop(skip)
    raw.set_annotations(mne.Annotations(onset, duration, description, ch_names=channels), verbose="error")
    path.parent.mkdir(parents=True, exist_ok=True)
    raw.save(path, verbose="error", overwrite=True)
    return path


def stored(store: Path) -> list[tuple[int, int]]:
    """Samples [start, stop) of the recording at 100 Hz that are in the store, joined."""
    joined: list[tuple[int, int]] = []
    for row in sorted(
        open_store(store).table(["start", "samples"]).to_pylist(), key=lambda row: row["start"]
    ):
        start, stop = row["start"], row["start"] + row["samples"]
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, stop))
    return joined


def rejected(store: Path) -> list[tuple[float, float, str]]:
    rows = pq.read_table(store / "rejected.parquet").to_pylist()
    return [(row["start_s"], row["stop_s"], row["reason"]) for row in rows]


def test_what_is_marked_bad_is_left_out_to_the_sample_and_listed(tmp_path):
    marked = [
        (5.0, 1.5, "BAD_blink"),
        (6.25, 0.5, "bad segment"),
        (12.0, 1.0, "Bad_muscle"),
        (15.0, 1.0, "eyes"),
    ]
    write_fif(tmp_path / "in" / "s1" / "run_raw.fif", marked)
    summary = run(recipe(tmp_path / "in", tmp_path / "store"))
    assert summary.ok
    assert rejected(tmp_path / "store") == [(5.0, 6.75, "marked_bad"), (12.0, 13.0, "marked_bad")]
    assert stored(tmp_path / "store") == [(0, 500), (675, 1200), (1300, 2000)]
    (hours,) = (row.hours_rejected for row in summary.datasets)
    assert hours == {"marked_bad": pytest.approx(2.75 / 3600, abs=1e-6)}
    assert verify(tmp_path / "store").problems == []


def test_it_can_be_kept(tmp_path):
    write_fif(tmp_path / "in" / "s1" / "run_raw.fif", [(5.0, 1.5, "BAD_blink")])
    run(recipe(tmp_path / "in", tmp_path / "store", quality={"marked_bad": False}))
    assert stored(tmp_path / "store") == [(0, 2000)]
    with pytest.raises(ValueError, match=r"quality.marked_bad was False, the recipe asks True"):
        run(recipe(tmp_path / "in", tmp_path / "store"))


@pytest.mark.parametrize("date", [None, datetime(2020, 1, 1, tzinfo=UTC)])
@pytest.mark.parametrize("skip", [0.0, 3.5])
def test_marks_lie_where_mne_has_them(tmp_path, date, skip):
    marked = [(0.0, 0.7, "BAD_a"), (5.003, 1.5, "bad b"), (19.0, 1.0, "BAD"), (8.0, 1.0, "good")]
    path = write_fif(tmp_path / "run_raw.fif", marked, skip=skip, date=date)
    raw = mne.io.read_raw_fif(path, verbose="error")
    left_out_T = np.isnan(raw.get_data(reject_by_annotation="NaN", verbose="error")).all(axis=0)
    with open_file(str(path), Statements()) as opened:
        ours_T = np.zeros(opened.n_samples, bool)
        for mark in opened.marks:
            ours_T[mark.start : mark.stop] = True
    assert 0 < ours_T.sum() < len(ours_T)
    assert np.array_equal(ours_T, left_out_T)


def test_interruptions_are_no_marks_and_marks_no_interruptions(tmp_path):
    marked = [
        (2.0, 1.0, "BAD_ACQ_SKIP"), (5.0, 0.0, "BAD boundary"), (5.0, 0.0, "EDGE boundary"), (8.0, 0.0, "edge"),
        (10.0, 1.0, "BAD_x"), (12.0, 0.0, "BAD_point"),
    ]  # fmt: skip
    path = write_fif(tmp_path / "in" / "s1" / "run_raw.fif", marked)
    with open_file(str(path), Statements()) as opened:
        assert opened.spans == [(0, 256), (384, 640), (640, 1024), (1024, 2560)]
        assert opened.marks == [Mark(1280, 1408), Mark(1536, 1536)]
    summary = run(recipe(tmp_path / "in", tmp_path / "store"))
    assert [row for row in rejected(tmp_path / "store") if row[2] == "marked_bad"] == [
        (10.0, 11.0, "marked_bad")
    ]
    assert any("1 of 2 annotations that mark bad signal have no duration" in note for note in summary.notes)


def test_marks_that_mne_exports_to_brainvision_are_marks(tmp_path):
    path = write_fif(tmp_path / "run_raw.fif", [(5.0, 1.5, "BAD_blink"), (8.0, 1.0, "eyes")])
    raw = mne.io.read_raw_fif(path, verbose="error")
    mne.export.export_raw(tmp_path / "run.vhdr", raw, verbose="error")
    with open_file(str(tmp_path / "run.vhdr"), Statements()) as opened:
        assert opened.marks == [Mark(640, 832)]


def test_marks_that_mne_exports_to_edf_are_marks(tmp_path):
    marked = [
        (5.0, 1.5, "BAD_blink"),
        (8.0, 1.0, "eyes"),
        (9.5, 1.25, "bad", ("Cz",)),
        (12.0, 0.0, "BAD boundary"),
    ]
    path = write_fif(tmp_path / "run_raw.fif", marked, date=datetime(2020, 1, 1, tzinfo=UTC))
    raw = mne.io.read_raw_fif(path, verbose="error")
    (tmp_path / "in").mkdir()
    mne.export.export_raw(tmp_path / "in" / "run.edf", raw, verbose="error")
    with open_file(str(tmp_path / "in" / "run.edf"), Statements()) as opened:
        assert opened.marks == [Mark(640, 832), Mark(1216, 1376, ("Cz",))]
    run(recipe(tmp_path / "in", tmp_path / "store"))
    assert rejected(tmp_path / "store") == [(5.0, 6.5, "marked_bad")]


def write_bids(root: Path, marked: list[tuple]) -> Path:
    """A recording whose marks are in the table of events alone, where mne-bids puts annotations; that table."""
    raw = mne.io.read_raw_fif(write_fif(root.parent / "run_raw.fif", marked), verbose="error", preload=True)
    raw.info["line_freq"] = 50
    path = mne_bids.BIDSPath(subject="01", task="rest", root=root, datatype="eeg")
    ids = {description: number for number, description in enumerate(set(raw.annotations.description), 1)}
    mne_bids.write_raw_bids(
        raw, path, event_id=ids, format="BrainVision", allow_preload=True, overwrite=True, verbose="error"
    )
    (vmrk,) = root.rglob("*.vmrk")
    kept = [line for line in vmrk.read_text().splitlines() if "Mk" not in line or "New Segment" in line]
    vmrk.write_text("\n".join(kept) + "\n")
    (table,) = root.rglob("*_events.tsv")
    return table


def test_marks_in_the_events_of_a_bids_dataset_are_marks_and_later_ones_are_told(tmp_path):
    table = write_bids(tmp_path / "bids", [(5.0, 1.5, "BAD_blink"), (8.0, 1.0, "eyes"), (11.0, 0.5, "Bad_x")])
    of_channel = "15.0\t1.0\tBAD_y\t9\t1920\tCz, O2\n"
    lines = table.read_text().splitlines()
    assert lines[0].split("\t") == ["onset", "duration", "trial_type", "value", "sample"]
    table.write_text("\n".join([lines[0] + "\tchannel", *(f"{line}\tn/a" for line in lines[1:]), of_channel]))
    source = {"kind": "bids", "dataset": "tests", "folder": str(tmp_path / "bids")}
    given = recipe(tmp_path, tmp_path / "store", sources=[source])
    assert run(given).ok
    assert rejected(tmp_path / "store") == [
        (5.0, 6.5, "marked_bad"),
        (11.0, 11.5, "marked_bad"),
        (15.0, 16.0, "marked_bad"),
    ]
    assert run(given).ok
    table.write_text(table.read_text().replace("15.0\t", "16.0\t").replace("1.5\t", "n/a\t"))
    summary = run(given)
    (problem,) = summary.problems
    assert "or other stretches marked as bad. The store keeps what it has" in problem


def test_a_mark_without_extent_in_the_events_of_a_bids_dataset_is_told(tmp_path):
    table = write_bids(tmp_path / "bids", [(5.0, 1.5, "BAD_blink")])
    table.write_text(table.read_text().replace("1.5\t", "n/a\t"))
    source = {"kind": "bids", "dataset": "tests", "folder": str(tmp_path / "bids")}
    summary = run(recipe(tmp_path, tmp_path / "store", sources=[source]))
    assert rejected(tmp_path / "store") == []
    assert any("1 of 1 annotations that mark bad signal have no duration" in note for note in summary.notes)


def test_marks_in_an_interrupted_edf_lie_where_its_records_do(tmp_path):
    signal = edfio.EdfSignal(eeg(8, 1)[0], SFREQ, label="Cz", physical_dimension="uV")
    annotations = [
        edfio.EdfAnnotation(1.5, 0.5, "BAD_a"), edfio.EdfAnnotation(103.5, 1.0, "Bad b"),
        edfio.EdfAnnotation(3.5, 100.0, "bad across"), edfio.EdfAnnotation(102.0, None, "go"),
    ]  # fmt: skip
    edfio.Edf([signal], data_record_duration=1, annotations=annotations).write(tmp_path / "run.edf")
    content = bytearray((tmp_path / "run.edf").read_bytes())
    content[192:197] = b"EDF+D"
    for record in range(4, 8):  # the second half begins 98 s later
        place = content.index(f"+{record}\x14\x14\0".encode())
        content[place : place + 7] = f"+{record + 98}\x14\x14\0".encode().ljust(7, b"\0")[:7]
    (tmp_path / "run.edf").write_bytes(content)
    with open_file(str(tmp_path / "run.edf"), Statements()) as opened:
        assert opened.spans == [(0, 512), (512, 1024)]
        assert sorted((mark.start, mark.stop) for mark in opened.marks) == [
            (192, 256),
            (448, 704),
            (704, 832),
        ]


def test_marks_of_single_channels_count_like_channels_that_fail():
    of_two = [Mark(0, 10, ("a",)), Mark(5, 20, ("b", "EOG"))]
    assert marks.stretches(of_two, {"a", "b", "c", "d"}, 0.25) == [(5, 10)]
    assert marks.stretches(of_two, {"a", "b", "c", "d"}, 0.0) == [(0, 20)]
    assert marks.stretches([*of_two, Mark(18, 30)], {"a", "b", "c", "d"}, 0.25) == [(5, 10), (18, 30)]
    assert marks.stretches([Mark(0, 10, ("a",)), Mark(0, 10, ("a",))], {"a", "b", "c", "d"}, 0.25) == []


def test_a_channel_marked_alone_costs_no_time(tmp_path):
    write_fif(tmp_path / "in" / "s1" / "run_raw.fif", [(5.0, 1.5, "BAD_pop", ("Cz",))])
    run(recipe(tmp_path / "in", tmp_path / "store"))
    assert stored(tmp_path / "store") == [(0, 2000)]


def test_cells_are_cut_where_marks_begin_and_end():
    cells = [Cell(0, 10, ()), Cell(10, 20, ("flat",)), Cell(20, 25, ())]
    found = marks.marked(cells, (100, 150), [(80, 102), (109, 131), (148, 170)], 0.5)
    bad = marks.MARKED_BAD
    assert found == [
        Cell(0, 1, (bad,)), Cell(1, 4, ()), Cell(4, 10, (bad,)), Cell(10, 16, (bad, "flat")), Cell(16, 20, ("flat",)),
        Cell(20, 24, ()), Cell(24, 25, (bad,)),
    ]  # fmt: skip
    assert marks.marked(cells, (100, 150), [(0, 100), (150, 160)], 0.5) == cells


def test_what_is_marked_bad_does_not_speak_for_a_channel(tmp_path):
    signal_CT = eeg(20, 8)
    signal_CT[2, : 12 * SFREQ] = 0.0
    raw = mne.io.RawArray(signal_CT * 1e-6, mne.create_info(list(NAMES), SFREQ, "eeg"), verbose="error")
    raw.set_annotations(mne.Annotations([0.0], [12.0], ["BAD_loose"]))
    (tmp_path / "in" / "s1").mkdir(parents=True)
    raw.save(tmp_path / "in" / "s1" / "run_raw.fif", verbose="error")
    summary = run(recipe(tmp_path / "in", tmp_path / "store"))
    assert summary.datasets[0].channels_dropped == {}
    assert stored(tmp_path / "store") == [(1200, 2000)]


def test_trials_that_overlap_what_is_marked_are_left_out_and_their_neighbours_kept(tmp_path):
    marked = [(6.5, 0.2, "BAD_x")] + [(float(onset), 0.0, "go") for onset in (2, 4, 6, 7, 10)]
    write_fif(tmp_path / "in" / "s1" / "run_raw.fif", marked)
    source = {
        "kind": "events", "dataset": "tests", "folder": str(tmp_path / "in"), "annotations": {"go": "go"},
        "duration": 1.0,
    }  # fmt: skip
    run(recipe(tmp_path, tmp_path / "store", sources=[source]))
    starts = open_store(tmp_path / "store").table(["start"])["start"].to_pylist()
    assert starts == [200, 400, 700, 1000]
    left_out = [row for row in rejected(tmp_path / "store") if row[2] != "no_trial"]
    assert left_out == [(6.0, 7.0, "marked_bad")]


def test_marks_made_after_a_recording_was_stored_are_told(tmp_path):
    path = write_fif(tmp_path / "in" / "s1" / "run_raw.fif", [(5.0, 1.0, "BAD_x")])
    given = recipe(tmp_path / "in", tmp_path / "store")
    assert run(given).ok
    write_fif(path, [(5.0, 1.0, "BAD_x")])
    assert run(given).ok
    write_fif(path, [(7.0, 1.0, "BAD_x")])
    summary = run(given)
    (problem,) = summary.problems
    assert (
        "holds another signal, other trials or other stretches marked as bad. The store keeps what it has"
        in problem
    )
    assert stored(tmp_path / "store") == [(0, 500), (600, 2000)]


def test_nothing_but_marked_signal_is_quarantined_by_that_reason(tmp_path):
    write_fif(tmp_path / "in" / "s1" / "all_raw.fif", [(0.0, 20.0, "BAD_x")])
    write_fif(tmp_path / "in" / "s1" / "run_raw.fif", [(0.0, 3.0, "BAD_x")], seconds=21)
    (left_out,) = run(recipe(tmp_path / "in", tmp_path / "store")).quarantined
    assert (left_out.recording, left_out.reason) == ("s1_all_raw", "marked_bad")


def test_a_store_that_is_older_is_continued_as_it_was_begun(tmp_path):
    write_fif(tmp_path / "in" / "s1" / "run_raw.fif", [(5.0, 1.0, "BAD_x")])
    given = recipe(tmp_path / "in", tmp_path / "store", quality={"marked_bad": False})
    run(given)
    path = tmp_path / "store" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["content"]["quality"]["marked_bad"]
    path.write_text(json.dumps(manifest))
    write_fif(tmp_path / "in" / "s2" / "run_raw.fif", [(3.0, 1.0, "BAD_x")], seconds=22)
    summary = run(recipe(tmp_path / "in", tmp_path / "store"))
    assert summary.ok
    assert any("was begun before ddscale left out what is marked as bad" in note for note in summary.notes)
    assert describe(tmp_path / "store")["datasets"]["tests"]["rejected_hours"] == {}
    assert "marked_bad" not in json.loads(path.read_text())["content"]["quality"]
    assert verify(tmp_path / "store").problems == []
