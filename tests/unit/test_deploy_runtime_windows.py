"""EEG that the runtime must not draw: of another shape, rate, unit or level, or without signal."""

from __future__ import annotations

import numpy as np
import pytest
from deployed import CHANNELS, SAMPLES, eeg, tiny_folder

from ddscale.deploy.runtime import EEGError, EEGToImage


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return EEGToImage.load(tiny_folder(tmp_path_factory.mktemp("tiny") / "fp32"))


def refused(model, windows, match, **stated):
    with pytest.raises(EEGError, match=match):
        model.generate(windows, **stated)


@pytest.mark.parametrize(
    ("windows", "match"),
    [
        (eeg(2).transpose(0, 2, 1), r"shape \(2, 32, 4\).*swap its last two axes"),
        (eeg(2)[:, :3], r"4 channels.*give 4 channels"),
        (np.concatenate([eeg(1), eeg(1)], axis=2), r"cut it into windows of 32 samples"),
        (eeg(1)[0, 0], r"shape \(32,\)"),
        (eeg(1)[None], r"shape \(1, 1, 4, 32\)"),
        (eeg(1)[:0], "no window"),
        (eeg(1).astype(complex), "complex64|complex128"),
        (np.full((1, CHANNELS, SAMPLES), None), "object"),
        (eeg(1) > 0, "bool"),
    ],
)
def test_wrong_shape_or_type(model, windows, match):
    refused(model, windows, match)


def test_wrong_rate(model):
    refused(model, eeg(1), r"250 Hz.*256 Hz.*resample", sfreq=250)
    refused(model, eeg(1), "nan", sfreq=float("nan"))
    assert model.generate(eeg(1), sfreq=256).shape == (1, 8, 8, 3)


def test_wrong_unit(model):
    refused(model, eeg(1), r"stated in V.*multiply it by 1e\+06", unit="V")
    refused(model, eeg(1), "Unknown unit 'parsec'", unit="parsec")
    refused(model, eeg(2) * np.float32(1e-6), r"window 0 of the EEG is not in µV.*look like V")
    refused(model, eeg(2) * np.float32(1e-3), "look like mV")
    windows = eeg(3)
    windows[2] *= 1e6
    refused(model, windows, "window 2 of the EEG is not in µV")
    assert model.generate(eeg(1), unit="µV").shape == (1, 8, 8, 3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(model, value):
    windows = eeg(3)
    windows[1, 2, 7] = value
    refused(model, windows, r"NaN or infinite values in window 1 channel 2:.*leave the window out")


def test_values_beyond_float32(model):
    windows = eeg(1).astype(np.float64)
    windows[0, 0, 0] = 1e300
    refused(model, windows, "float32")


def test_channels_without_signal(model):
    windows = eeg(2)
    windows[1, 0] = 3.5
    windows[1, 3] = 0
    refused(model, windows, r"no signal .* in window 1 channel 0, window 1 channel 3:.*Interpolate")
    windows[:] = 0
    refused(model, windows, "and 2 more")


def test_some_channels_in_another_unit(model):
    windows = eeg(1)
    windows[0, 1] *= 1e-6
    refused(
        model, windows, r"cannot be in µV beside others that are: window 0 channel 1 .*Convert all channels"
    )


def test_nanovolts_are_called_so(model):
    refused(model, eeg(1) * np.float32(1e3), "look like nV read as µV")
