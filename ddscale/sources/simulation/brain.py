"""One simulated recording: cortical sources, artefacts and noise, mixed through a head to a device's channels.

Structured so that a model has something to learn: forty sources, far fewer than most devices have channels,
with 1/f spectra and rhythms that come and go, over about 1 µV of noise that nothing predicts.

Shapes: C channels, K components, T samples. Signals in µV.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import scipy.fft

from ddscale.sources.simulation.devices import Device
from ddscale.sources.simulation.head import TEN_TWENTY, electrodes, lead_field, unit_vectors

BACKGROUND = 22  # sources without a rhythm of their own

# Where rhythms arise: direction (right, front, up), which rhythm.
RHYTHMS: tuple[tuple[tuple[float, float, float], str], ...] = (
    ((-0.25, -0.9, 0.15), "alpha"),
    ((0.25, -0.9, 0.15), "alpha"),
    ((-0.45, -0.75, 0.4), "alpha"),
    ((0.45, -0.75, 0.4), "alpha"),
    ((0.0, -0.7, 0.7), "alpha"),
    ((-0.6, 0.0, 0.8), "mu"),
    ((0.6, 0.0, 0.8), "mu"),
    ((-0.5, 0.15, 0.85), "beta"),
    ((0.5, 0.15, 0.85), "beta"),
    ((0.0, 0.6, 0.8), "theta"),
    ((-0.9, -0.1, 0.2), "temporal"),
    ((0.9, -0.1, 0.2), "temporal"),
)


@dataclass(frozen=True)
class Subject:
    """What stays the same over a person's recordings: source positions and moments, spectra, rhythms."""

    positions_K3: np.ndarray
    moments_K3: np.ndarray
    exponent_K: np.ndarray
    background: float
    alpha_hz: float
    alpha: float
    blinks_per_min: float


def draw_subject(rng: np.random.Generator) -> Subject:
    """A person at random. Amplitudes are µV RMS at the best placed electrode; individual alpha 8 to 12.5 Hz."""
    background = rng.normal(loc=(0, 0, 0.6), size=(BACKGROUND, 3))
    directions = np.vstack([background, [direction for direction, _ in RHYTHMS]])
    directions += rng.normal(scale=0.12, size=directions.shape)
    directions[:, 2] = np.maximum(directions[:, 2], -0.25 * np.abs(directions).max(axis=1))
    depths_K = rng.uniform(0.55, 0.74, len(directions))
    positions_K3 = depths_K[:, None] * unit_vectors(directions)
    # Mostly radial (gyri), with a share of any direction (sulci).
    moments_K3 = positions_K3 / depths_K[:, None] + rng.normal(scale=0.45, size=positions_K3.shape)
    return Subject(
        positions_K3=positions_K3,
        moments_K3=unit_vectors(moments_K3),
        exponent_K=rng.normal(rng.uniform(1.0, 1.5), 0.12, len(directions)),
        background=float(rng.uniform(3.0, 5.0)),
        alpha_hz=float(np.clip(rng.normal(10.1, 0.9), 8.0, 12.5)),
        alpha=float(rng.uniform(5.0, 14.0)),
        blinks_per_min=float(rng.uniform(6, 20)),
    )


def record(
    subject: Subject, device: Device, seconds: int, rng: np.random.Generator, may_break: bool = True
) -> tuple[list[str], np.ndarray]:
    """One recording: channel names as the device's files spell them, and the signal (C, T) float32 in µV.

    Electrodes come first, then the device's extra channels; `Status` is a trigger channel, in bits.
    may_break: whether some channels come off or have bad contacts.
    """
    sfreq, n_samples = device.sfreq, seconds * device.sfreq
    n_electrodes = len(device.electrodes)
    at_C3 = electrodes([*device.electrodes, *device.reference])
    gaze_KT = _gaze(subject, sfreq, n_samples, rng)
    in_head_CK = np.hstack([_cortex(subject, at_C3), _eyes(at_C3), _temples(at_C3)])
    reference_K = in_head_CK[n_electrodes:].mean(axis=0) if device.reference else in_head_CK.mean(axis=0)
    mains_CK, mains_KT = _mains(device, n_samples, rng)
    drift_CK, drift_KT = _drift(device, n_samples, rng)
    mixing_CK = np.hstack([in_head_CK[:n_electrodes] - reference_K, mains_CK, drift_CK]).astype(np.float32)
    sources_KT = [_sources(subject, sfreq, n_samples, rng), gaze_KT, _muscles(sfreq, n_samples, rng)]
    signal_CT = mixing_CK @ np.vstack([*sources_KT, mains_KT, drift_KT])
    noise_CT = rng.standard_normal(signal_CT.shape, dtype=np.float32)
    noise_CT *= np.float32(device.sensor_noise) * rng.uniform(0.8, 1.4, (n_electrodes, 1)).astype(np.float32)
    signal_CT += noise_CT
    if may_break:
        _break_channels(signal_CT, rng)
    names = [device.label.format(name) for name in device.electrodes]
    for extra in device.extras:
        more_names, more_CT = _extra(extra, sfreq, gaze_KT, rng)
        names += more_names
        signal_CT = np.vstack([signal_CT, more_CT])
    return names, signal_CT


def _cortex(subject: Subject, at_C3: np.ndarray) -> np.ndarray:
    return scaled_lead_field(at_C3, subject.positions_K3, subject.moments_K3)


def scaled_lead_field(at_C3: np.ndarray, positions_K3: np.ndarray, moments_K3: np.ndarray) -> np.ndarray:
    """(C, K), 1 at the best placed electrode of the 10-20 system, whatever the device has."""
    scale_K = np.abs(lead_field(electrodes(TEN_TWENTY), positions_K3, moments_K3)).max(axis=0)
    return lead_field(at_C3, positions_K3, moments_K3) / scale_K


def _sources(subject: Subject, sfreq: float, n_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Time courses (K, T) of the cortical sources: 1/f background in all, a rhythm in bursts in some."""
    n_sources = len(subject.positions_K3)
    # Flat below 0.7 Hz: slower still is drift, and comes from elsewhere.
    sources_KT = _shaped(
        n_sources, n_samples, sfreq, rng,
        lambda f: np.maximum(f, 0.7) ** (-subject.exponent_K[:, None] / 2) * (f > 0.05),
    )  # fmt: skip
    sources_KT *= np.float32(subject.background)
    bands = {
        "alpha": (subject.alpha_hz, 0.6, subject.alpha, 0.10),
        "mu": (subject.alpha_hz + 0.4, 0.7, 0.7 * subject.alpha, 0.12),
        "beta": (2 * subject.alpha_hz - 0.5, 1.8, 3.0, 0.5),
        "theta": (6.0, 0.7, 4.0, 0.15),
        "temporal": (4.5, 1.2, 3.0, 0.2),
    }
    for k, (_, rhythm) in enumerate(RHYTHMS, start=n_sources - len(RHYTHMS)):
        centre, width, amplitude, per_second = bands[rhythm]
        wave_T = _shaped(1, n_samples, sfreq, rng, partial(_bell, centre=centre, width=width))[0]
        if rhythm == "mu":
            wave_T += 0.35 * (wave_T**2 - 1)  # arch-shaped: a harmonic in phase
        sources_KT[k] += np.float32(amplitude) * wave_T * _bursts(n_samples, sfreq, per_second, rng)
    return sources_KT


def _bell(frequencies: np.ndarray, centre: float, width: float) -> np.ndarray:
    return np.exp(-0.5 * ((frequencies - centre) / width) ** 2)


def _bursts(n_samples: int, sfreq: float, per_second: float, rng: np.random.Generator) -> np.ndarray:
    """An envelope (T,) between 0 and about 1.6 that swells a few times per 1/`per_second`, of RMS near 1."""
    slow_T = _shaped(1, n_samples, sfreq, rng, lambda f: np.exp(-0.5 * (f / per_second) ** 2) * (f > 0))[0]
    return 1.6 / (1 + np.exp(-2.5 * slow_T))


def _shaped(
    n_rows: int,
    n_samples: int,
    sfreq: float,
    rng: np.random.Generator,
    amplitude: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Gaussian noise (n_rows, T) float32 of unit RMS with a given amplitude spectrum over frequencies in Hz."""
    length = scipy.fft.next_fast_len(n_samples, real=True)
    frequencies = np.fft.rfftfreq(length, 1 / sfreq).astype(np.float32)
    shape = (n_rows, len(frequencies))
    spectrum = rng.standard_normal(shape, dtype=np.float32) + 1j * rng.standard_normal(
        shape, dtype=np.float32
    )
    spectrum *= amplitude(frequencies).astype(np.float32)
    signal = scipy.fft.irfft(spectrum, length, axis=-1, overwrite_x=True)[:, :n_samples]
    return signal / np.maximum(signal.std(axis=-1, keepdims=True), 1e-12)


def _eyes(at_C3: np.ndarray) -> np.ndarray:
    """(C, 2): what both eyes' lids and both eyes' sideways turns give."""
    eyes_K3 = 0.8 * unit_vectors(np.array([[side * 0.35, 0.92, -0.2] for side in (-1, 1)]))
    upward = np.tile([0.0, 0.7, 0.7], (2, 1))
    sideways = np.tile([1.0, 0.0, 0.0], (2, 1))
    lids_C = lead_field(at_C3, eyes_K3, upward).sum(axis=1)
    turns_C = lead_field(at_C3, eyes_K3, sideways).sum(axis=1)
    front_C3 = electrodes(TEN_TWENTY)
    lids_C /= np.abs(lead_field(front_C3, eyes_K3, upward).sum(axis=1)).max()
    turns_C /= np.abs(lead_field(front_C3, eyes_K3, sideways).sum(axis=1)).max()
    return np.column_stack([lids_C, turns_C])


def _gaze(subject: Subject, sfreq: float, n_samples: int, rng: np.random.Generator) -> np.ndarray:
    """(2, T) µV at the best electrode: blinks, and the steps of the eyes from side to side."""
    seconds = n_samples / sfreq
    time_T = np.arange(round(0.5 * sfreq)) / sfreq
    blink_T = (time_T / 0.09) ** 3 * np.exp(3 * (1 - time_T / 0.09))
    lids_T = np.zeros(n_samples, np.float32)
    for onset in _moments(subject.blinks_per_min, seconds, rng):
        start = int(onset * sfreq)
        piece = blink_T[: n_samples - start] * rng.uniform(60, 140)
        lids_T[start : start + len(piece)] += piece
    turns = np.sort(_moments(20.0, seconds, rng))
    places = rng.normal(scale=15.0, size=len(turns) + 1)
    knots = np.concatenate([[0.0], np.repeat(turns, 2) + np.tile([0.0, 0.04], len(turns)), [seconds + 1]])
    side_T = np.interp(np.arange(n_samples) / sfreq, np.maximum.accumulate(knots), np.repeat(places, 2))
    return np.stack([lids_T, side_T.astype(np.float32)])


def _moments(per_minute: float, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """Times in seconds of events that come independently at a rate."""
    return np.sort(rng.uniform(0, seconds, rng.poisson(per_minute * seconds / 60)))


def _temples(at_C3: np.ndarray) -> np.ndarray:
    """(C, 2): the left and right temporalis muscle, just under the skin."""
    places_K3 = 0.84 * unit_vectors(np.array([[side * 0.97, 0.3, -0.05] for side in (-1, 1)]))
    return scaled_lead_field(at_C3, places_K3, places_K3)


def _muscles(sfreq: float, n_samples: int, rng: np.random.Generator) -> np.ndarray:
    """(2, T) µV: bursts of half a second to three, about one a minute on each side, above 20 Hz."""
    muscle_KT = _shaped(2, n_samples, sfreq, rng, lambda f: 1 / (1 + (25 / np.maximum(f, 0.1)) ** 4))
    seconds = n_samples / sfreq
    for side in range(2):
        active_T = np.zeros(n_samples, np.float32)
        for onset in _moments(1.0, seconds, rng):
            start, length = int(onset * sfreq), int(rng.uniform(0.5, 3.0) * sfreq)
            swell_T = np.hanning(length)[: n_samples - start] * rng.uniform(10, 35)
            active_T[start : start + len(swell_T)] += swell_T
        muscle_KT[side] *= active_T
    return muscle_KT


def _mains(device: Device, n_samples: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Mixing (C, K) and time courses (K, T) of mains hum and its third harmonic: each electrode its own loop."""
    time_T = np.arange(n_samples) / device.sfreq
    n_electrodes, mixing, courses = len(device.electrodes), [], []
    for harmonic, level in ((1, 1.5), (3, 0.3)):
        if harmonic * device.mains >= 0.5 * device.sfreq:
            continue
        phase_C = rng.normal(rng.uniform(0, 2 * math.pi), 0.5, n_electrodes)
        amplitude_C = level * rng.lognormal(0, 0.6, n_electrodes)
        mixing += [amplitude_C * np.cos(phase_C), amplitude_C * np.sin(phase_C)]
        angle_T = 2 * math.pi * harmonic * device.mains * time_T
        courses += [np.cos(angle_T), np.sin(angle_T)]
    if not courses:
        return np.zeros((n_electrodes, 0)), np.zeros((0, n_samples), np.float32)
    return np.column_stack(mixing), np.array(courses, np.float32)


def _drift(device: Device, n_samples: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Mixing (C, K) and time courses (K, T) of sweat and slow electrode potentials, and each channel's DC level."""
    n_electrodes, n_slow = len(device.electrodes), 5
    slow_KT = _shaped(
        n_slow, n_samples, device.sfreq, rng, lambda f: (f > 0) / np.maximum(f, 0.002) * (f < 0.15)
    )
    mixing_CK = rng.normal(scale=8.0, size=(n_electrodes, n_slow))
    level_C = rng.normal(scale=device.offset, size=n_electrodes)
    return np.column_stack([mixing_CK, level_C]), np.vstack([slow_KT, np.ones((1, n_samples), np.float32)])


def _break_channels(signal_CT: np.ndarray, rng: np.random.Generator) -> None:
    """About one channel in eighty comes off (flat), one in fifty has a bad contact; a few channels are spared."""
    if len(signal_CT) < 8:
        return
    fate_C = rng.uniform(size=len(signal_CT))
    for channel in np.flatnonzero(fate_C < 1 / 80):
        signal_CT[channel] = signal_CT[channel].mean()
    for channel in np.flatnonzero(fate_C > 1 - 1 / 50):
        noise_T = rng.standard_normal(signal_CT.shape[1], dtype=np.float32)
        signal_CT[channel] += noise_T * np.float32(rng.uniform(80, 250))


def _extra(
    kind: str, sfreq: float, gaze_KT: np.ndarray, rng: np.random.Generator
) -> tuple[list[str], np.ndarray]:
    """Names and signals of what a device records beside the EEG."""
    n_samples = gaze_KT.shape[1]
    if kind == "EOG":
        return ["VEOG", "HEOG"], 2.5 * gaze_KT + rng.standard_normal(gaze_KT.shape, dtype=np.float32)
    if kind == "Status":
        status_T = np.zeros(n_samples, np.float32)
        for onset in _moments(10.0, n_samples / sfreq, rng):
            start = int(onset * sfreq)
            status_T[start : start + max(1, round(0.01 * sfreq))] = rng.integers(1, 9)
        return ["Status"], status_T[None]
    beats = np.cumsum(rng.normal(0.85, 0.05, int(n_samples / sfreq / 0.5) + 2))
    distance_T = np.arange(n_samples) / sfreq
    distance_T = distance_T - beats[np.searchsorted(beats, distance_T).clip(max=len(beats) - 1)]
    peak_T = 1000 * np.exp(-0.5 * (distance_T / 0.012) ** 2) + 180 * np.exp(
        -0.5 * ((distance_T + 0.55) / 0.04) ** 2
    )
    return ["ECG"], (peak_T + rng.normal(scale=5, size=n_samples)).astype(np.float32)[None]
