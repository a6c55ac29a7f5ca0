"""Where trials lie in the processed spans of a recording, to the sample at both of their ends."""

from __future__ import annotations

import types

import numpy as np
import pytest

from ddscale.ingest.trials import INTERRUPTED, ProcessedSpan, place
from ddscale.signal.channels import standardise
from ddscale.signal.quality import Cell
from ddscale.sources.recording import OpenRecording, Trial

STORE = types.SimpleNamespace(sfreq=100.0)


def recording(*trials: tuple[int, int], samples: int = 1000, sfreq: float = 100.0) -> OpenRecording:
    return OpenRecording(
        path="run.edf",
        sfreq=sfreq,
        n_samples=samples,
        channels=standardise(["Cz"], None, None, None),
        read=lambda start, stop: np.zeros((1, stop - start)),
        unit="uV",
        unit_source="recipe",
        trials=[Trial(start, stop, label="go") for start, stop in trials],
    )


def test_a_trial_that_begins_where_the_recording_was_interrupted_belongs_to_what_follows():
    spans = [ProcessedSpan(0, 500, 500, 0, []), ProcessedSpan(500, 1000, 500, 500, [])]
    kept, rejected = place(recording((400, 500), (450, 550), (500, 600)), spans, [], STORE)
    assert [(trial.start, trial.samples, trial.scratch_start) for trial in kept] == [
        (400, 100, 400),
        (500, 100, 500),
    ]
    assert [stretch.reason for stretch in rejected if "go" in stretch.detail] == [INTERRUPTED]


def test_a_trial_that_ends_where_a_bad_cell_begins_is_kept():
    cells = [Cell(0, 200, ()), Cell(200, 400, ("flat",)), Cell(400, 1000, ())]
    spans = [ProcessedSpan(0, 1000, 1000, 0, cells)]
    kept, rejected = place(recording((100, 200), (150, 201), (399, 450), (400, 500)), spans, [], STORE)
    assert [(trial.start, trial.samples) for trial in kept] == [(100, 100), (400, 100)]
    assert [stretch.reason for stretch in rejected if "go" in stretch.detail] == ["flat", "flat"]


@pytest.mark.parametrize("start", range(12))
def test_no_trial_reaches_beyond_its_span_by_rounding(start):
    """200 samples at 128 Hz are 156 at 100 Hz; a trial's own onset and length round to up to one more."""
    spans = [ProcessedSpan(0, 200, 156, 0, [])]
    ((trial,), _) = place(recording((start, 200), samples=200, sfreq=128.0), spans, [], STORE)
    assert trial.scratch_start + trial.samples <= 156
    assert trial.samples >= 156 - start * 100 / 128 - 1
