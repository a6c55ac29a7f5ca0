"""EEG windows as an exported model takes them, or the reason why they are not.

A network gives a picture for any numbers at all; what cannot have been EEG as it was trained on is refused here.
Shape letters: B windows, C channels, T samples.
"""

from __future__ import annotations

import numpy as np

from ddscale.deploy.manifest import Manifest
from ddscale.signal.units import PLAUSIBLE_RMS_UV, implausible_unit, microvolts_per

_SHOWN = 6
# A single channel may be quieter or louder than the median one; by how much more.
_ALONE = 10.0


class EEGError(ValueError):
    """EEG that the model must not be given; the message says why and what to do."""


def checked(eeg: object, manifest: Manifest, sfreq: float | None = None, unit: str = "uV") -> np.ndarray:
    """Windows (B, C, T) float32, contiguous.

    eeg: (B, C, T), or (C, T) for one window, any real numbers. sfreq: Hz, compared with the model's when stated.
    Raises EEGError for another shape, rate or unit, for values that are not finite, for channels without signal.
    """
    _check_rate(sfreq, manifest)
    _check_unit(unit, manifest)
    windows = _shaped(eeg, manifest)
    _check_finite(windows)
    _check_signal(windows)
    with np.errstate(over="ignore"):  # what overflows is refused below
        windows_BCT = np.ascontiguousarray(windows, dtype=np.float32)
    if not np.isfinite(windows_BCT).all():
        raise EEGError("the EEG has values beyond what float32 holds: check its scaling.")
    if manifest.normalisation is not None:
        _check_level(windows_BCT)
    return windows_BCT


def expected(manifest: Manifest) -> str:
    """What windows must be, in words."""
    rate = "" if manifest.sfreq is None else f" at {manifest.sfreq:g} Hz"
    unit = "µV" if manifest.normalisation is not None else "normalised units"
    had = ""
    if manifest.preprocessing:
        steps = ", ".join(f"{name} {value}" for name, value in manifest.preprocessing.items())
        had = f", filtered as in training ({steps})"
    return f"({manifest.channels} channels, {manifest.samples} samples){rate}, in {unit}{had}"


def _check_rate(sfreq: float | None, manifest: Manifest) -> None:
    if sfreq is None or manifest.sfreq is None:
        return
    if not abs(sfreq - manifest.sfreq) <= 1e-6 * manifest.sfreq:
        raise EEGError(
            f"the EEG is stated at {sfreq:g} Hz, the model was trained at {manifest.sfreq:g} Hz: resample it to "
            f"{manifest.sfreq:g} Hz, {manifest.samples} samples a window."
        )


def _check_unit(unit: str, manifest: Manifest) -> None:
    try:
        scale = microvolts_per(str(unit))
    except ValueError as error:
        raise EEGError(str(error)) from None
    if manifest.normalisation is not None and scale != microvolts_per(manifest.unit):
        raise EEGError(f"the EEG is stated in {unit}, the model takes µV: multiply it by {scale:g}.")


def _shaped(eeg: object, manifest: Manifest) -> np.ndarray:
    windows = np.asarray(eeg)
    if windows.dtype.kind not in "fiu":
        raise EEGError(f"the EEG is of type {windows.dtype}: give real numbers, best float32.")
    given = windows.shape
    if windows.ndim == 2:
        windows = windows[None]
    wanted = (manifest.channels, manifest.samples)
    if windows.ndim != 3 or windows.shape[1:] != wanted:
        hint = "give (windows, channels, samples) or (channels, samples)"
        if given[-2:] == wanted[::-1]:
            hint = "it has time before channels: swap its last two axes"
        elif windows.ndim == 3 and windows.shape[1] != wanted[0] and windows.shape[2] == wanted[1]:
            hint = f"give {wanted[0]} channels, those of the recordings it was trained on and in their order"
        elif windows.ndim == 3 and windows.shape[1] == wanted[0]:
            hint = f"cut it into windows of {wanted[1]} samples"
        raise EEGError(f"the EEG has shape {given}, the model takes windows of {expected(manifest)}: {hint}.")
    if not len(windows):
        raise EEGError("the EEG holds no window: give at least one.")
    return windows


def _check_finite(windows_BCT: np.ndarray) -> None:
    if windows_BCT.dtype.kind != "f":
        return
    bad_BC = ~np.isfinite(windows_BCT).all(axis=2)
    if bad_BC.any():
        raise EEGError(
            f"the EEG has NaN or infinite values in {_places(bad_BC)}: leave the window out, or repair the samples "
            "before filtering."
        )


def _check_signal(windows_BCT: np.ndarray) -> None:
    flat_BC = (windows_BCT == windows_BCT[..., :1]).all(axis=2)
    if flat_BC.any():
        raise EEGError(
            f"the EEG has no signal (one constant value) in {_places(flat_BC)}: the electrode or its cable is dead. "
            "Interpolate the channel from its neighbours, or leave the window out."
        )


def _check_level(windows_BCT: np.ndarray) -> None:
    level_BC = windows_BCT.astype(np.float64).std(axis=2)
    for window, level_C in enumerate(level_BC):
        if complaint := implausible_unit(level_C, assumed="uV"):
            cause = complaint.split("; state")[0].rstrip(".")
            raise EEGError(
                f"window {window} of the EEG is not in µV: {cause}. Convert it to µV before sending it."
            )
    # Most channels may be right while others, of another amplifier or file, are in V or nV.
    low, high = PLAUSIBLE_RMS_UV
    far_BC = (level_BC < low / _ALONE) | (level_BC > high * _ALONE)
    if far_BC.any():
        worst = level_BC[far_BC][0]
        raise EEGError(
            f"the EEG has channels that cannot be in µV beside others that are: {_places(far_BC)} (standard deviation "
            f"{worst:.1e}). Convert all channels to µV, and leave out those that are not EEG."
        )


def _places(bad_BC: np.ndarray) -> str:
    places = [
        f"window {window} channel {channel}" for window, channel in np.argwhere(bad_BC)[:_SHOWN].tolist()
    ]
    rest = int(bad_BC.sum()) - len(places)
    return ", ".join(places) + (f" and {rest} more" if rest else "")
