"""Units of EEG: to microvolts, and a check that catches numbers read in the wrong unit."""

from __future__ import annotations

import numpy as np

_MICROVOLTS = {"V": 1e6, "mV": 1e3, "uV": 1.0, "nV": 1e-3}
_SPELLINGS = {"\u00b5V": "uV", "\u03bcV": "uV", "mv": "mV"}  # micro sign, Greek mu
_NAMES = {"v": "V", "volt": "V", "volts": "V", "microvolt": "uV", "microvolts": "uV", "uv": "uV", "nv": "nV"}
_NAMES |= {"millivolt": "mV", "millivolts": "mV", "nanovolt": "nV", "nanovolts": "nV"}

# Scalp EEG without its drift is between a few and a few tens of µV RMS. The limits leave room for quiet
# high-density caps referenced to a neighbour and for infants, seizures and mains hum, and are still less
# than the factor 1000 between two units on either side of a typical 20 µV.
PLAUSIBLE_RMS_UV = (0.5, 1500.0)
_TYPICAL_RMS_UV = 20.0
# (how much too small the numbers are, unit of the numbers, unit they were read in) as most often met in files.
_MIXUPS = ((1e6, "V", "uV"), (1e3, "mV", "uV"), (1e-3, "mV", "V"), (1e-6, "uV", "V"), (1e-9, "nV", "V"))


def microvolts_per(unit: str) -> float:
    """How many microvolts one `unit` is: V, mV, uV (µV), nV, or their English names.

    Case counts only where it must: mV and MV differ, so `MV` is refused. Raises ValueError with the known units.
    """
    name = unit.strip()
    name = _SPELLINGS.get(name, name)
    name = name if name in _MICROVOLTS else _NAMES.get(name.lower(), name)
    if name not in _MICROVOLTS:
        raise ValueError(f"Unknown unit {unit!r}: write one of {', '.join(_MICROVOLTS)} (or µV).")
    return _MICROVOLTS[name]


def implausible_unit(rms_C: np.ndarray, assumed: str | None = None) -> str | None:
    """Say whether the level of a recording can be EEG in microvolts.

    rms_C: each EEG channel's RMS in µV with DC and slow drift removed (Survey.rms_C); NaN and 0 are ignored.
    assumed: the unit the numbers were read in, when known ("V" for FIF); the sentence is then exact.
    Returns None when the median channel is plausible (or when no channel has a signal: that is flat, not a
    unit), otherwise one sentence with the likely unit.
    """
    rms_C = np.asarray(rms_C, dtype=np.float64)
    rms_C = rms_C[np.isfinite(rms_C) & (rms_C > 0)]
    if rms_C.size == 0:
        return None
    median = float(np.median(rms_C))
    low, high = PLAUSIBLE_RMS_UV
    if low <= median <= high:
        return None
    found = f"median channel RMS is {median:.1e} µV, and EEG has {low:g} to {high:g} µV"
    if assumed is None:
        candidates = list(_MIXUPS)
    else:
        scale = microvolts_per(assumed)
        read_as = "uV" if scale == 1.0 else assumed
        candidates = [(own / scale, unit, read_as) for unit, own in _MICROVOLTS.items() if own != scale]
    candidates = [mixup for mixup in candidates if low <= median * mixup[0] <= high]
    if not candidates:
        return f"{found}: no unit explains the numbers; check the file's scaling, or state `unit:` to insist."
    _, unit, read_as = min(candidates, key=lambda mixup: abs(np.log(median * mixup[0] / _TYPICAL_RMS_UV)))
    return f"{found}: the numbers look like {_shown(unit)} read as {_shown(read_as)}; state `unit: {unit}`."


def _shown(unit: str) -> str:
    return "µV" if unit == "uV" else unit
