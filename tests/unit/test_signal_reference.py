"""Which rows a reference changes, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from ddscale.signal.channels import standardise
from ddscale.signal.reference import rereference


def test_as_recorded_changes_nothing() -> None:
    assert rereference("as_recorded", standardise(["Fp1-F7"])) is None


def test_average_is_over_eeg_and_changes_eeg_only() -> None:
    change = rereference("average", standardise(["Fp1", "ECG", "Cz", "A1", "EOG", "Oz-Pz"]))
    assert change is not None
    assert change.rows == change.reference_rows == (0, 2)


def test_named_channels_by_either_name() -> None:
    change = rereference(["a1", "EEG A2-REF"], standardise(["C3", "C4", "A1", "EEG A2-REF", "EOG"]))
    assert change is not None
    assert change.reference_rows == (2, 3)
    signal = np.array([[10.0], [20.0], [1.0], [3.0], [7.0]])
    change.apply(signal)
    np.testing.assert_array_equal(signal[:, 0], [8.0, 18.0, -1.0, 1.0, 7.0])


def test_a_missing_reference_is_named() -> None:
    with pytest.raises(ValueError, match=r"M1, M2 is not among .*Fp1"):
        rereference(["M1", "M2"], standardise(["Fp1", "C3"]))


def test_bipolar_recordings_cannot_be_rereferenced() -> None:
    with pytest.raises(ValueError, match="as_recorded"):
        rereference("average", standardise(["Fp1-F7", "F7-T3"]))


def test_mastoids_serve_without_being_kept() -> None:
    change = rereference(["M2", "M1"], standardise(["M1", "C3", "C4", "ECG", "M2"]), picks=[1, 2])
    assert change is not None
    assert (change.rows, change.reference_rows, change.unpicked) == ((0, 1), (2, 3), (4, 0))


def test_a_channel_left_out_as_bad_is_no_reference() -> None:
    with pytest.raises(ValueError, match="Cz is not among"):
        rereference(["Cz"], standardise(["C3", "Cz", "C4"]), picks=[0, 2])
