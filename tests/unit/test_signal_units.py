"""Units to microvolts, and numbers read in the wrong one: both ways, on tables and on real recordings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ddscale.signal.survey import survey
from ddscale.signal.units import implausible_unit, microvolts_per


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("V", 1e6), ("mV", 1e3), ("uV", 1.0), ("nV", 1e-3), ("µV", 1.0), ("μV", 1.0), (" uV ", 1.0),
        ("volts", 1e6), ("microvolts", 1.0), ("mv", 1e3), ("UV", 1.0), ("v", 1e6),
    ],
)  # fmt: skip
def test_known_units(unit: str, expected: float) -> None:
    assert microvolts_per(unit) == expected


@pytest.mark.parametrize("unit", ["MV", "", "T", "fT/cm", "percent"])
def test_an_unknown_unit_is_refused_with_the_known_ones(unit: str) -> None:
    with pytest.raises(ValueError, match="V, mV, uV, nV"):
        microvolts_per(unit)


@pytest.mark.parametrize("true_rms_uV", [2.0, 6.0, 20.0, 80.0])
@pytest.mark.parametrize(
    ("own", "read_as"),
    [("V", "uV"), ("mV", "uV"), ("nV", "uV"), ("uV", "V"), ("mV", "V"), ("uV", "mV"), ("V", "mV")],
)
def test_numbers_read_in_another_unit_are_caught_both_ways(
    own: str, read_as: str, true_rms_uV: float
) -> None:
    misread_rms_uV = true_rms_uV / microvolts_per(own) * microvolts_per(read_as)
    found = implausible_unit(np.full(8, misread_rms_uV), assumed=read_as)
    assert found is not None
    assert f"`unit: {own}`" in found


@pytest.mark.parametrize("rms_uV", [0.95, 6.0, 20.0, 150.0, 600.0])
def test_eeg_levels_are_plausible(rms_uV: float) -> None:
    assert implausible_unit(np.full(4, rms_uV)) is None


def test_the_usual_mixups_are_named_without_knowing_the_reader() -> None:
    assert "mV read as µV; state `unit: mV`" in str(implausible_unit(np.array([5.2e-3])))
    assert "V read as µV; state `unit: V`" in str(implausible_unit(np.array([2e-5])))
    assert "mV read as V; state `unit: mV`" in str(implausible_unit(np.array([8e3])))
    assert "µV read as V; state `unit: uV`" in str(implausible_unit(np.array([2e7])))
    assert "no unit explains" in str(implausible_unit(np.array([1e-15])))


def test_flat_unknown_and_single_odd_channels_do_not_accuse_the_unit() -> None:
    assert implausible_unit(np.zeros(4)) is None
    assert implausible_unit(np.full(4, np.nan)) is None
    assert implausible_unit(np.array([12.0, 9.0, 1e-4, np.nan, 0.0, 1e5, 11.0])) is None


@pytest.mark.real
@pytest.mark.parametrize(
    ("pattern", "assumed"),
    [("gtec8-ssvep-s01/*.gdf", "uV"), ("gtec8-ssvep-s05/*.gdf", "uV"), ("gtec8-ssvep-s08/*.fif", "V")],
)
def test_real_recordings_whose_numbers_are_millivolts(shared: Path, pattern: str, assumed: str) -> None:
    """MNE takes a silent GDF header for µV and every FIF for V; the amplifier's software wrote mV."""
    import mne

    (path,) = (shared / "eeg").glob(pattern)
    raw = mne.io.read_raw(path, preload=True, verbose="ERROR")
    read_uV = raw.get_data() * 1e6
    seen = survey(lambda a, b: read_uV[:, a:b], raw.n_times, raw.info["sfreq"])
    assert "`unit: mV`" in str(implausible_unit(seen.rms_C, assumed))
    assert "`unit: mV`" in str(implausible_unit(seen.rms_C))
    corrected = read_uV / microvolts_per(assumed) * microvolts_per("mV")
    seen = survey(lambda a, b: corrected[:, a:b], raw.n_times, raw.info["sfreq"])
    assert implausible_unit(seen.rms_C) is None
    assert 3 < np.median(seen.rms_C) < 15


@pytest.mark.real
@pytest.mark.parametrize(
    "pattern",
    ["eeglab32-set/*.set", "biosemi72-bdf/*.bdf", "clinical25-edfplus/*.edf", "brainvision29/*.vhdr"],
)
def test_real_recordings_with_a_stated_unit_pass(shared: Path, pattern: str) -> None:
    import mne

    (path,) = (shared / "eeg").glob(pattern)
    raw = mne.io.read_raw(path, preload=True, verbose="ERROR").pick("eeg")
    signal = raw.get_data() * 1e6
    assert implausible_unit(survey(lambda a, b: signal[:, a:b], raw.n_times, raw.info["sfreq"]).rms_C) is None
