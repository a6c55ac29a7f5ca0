"""What a picture evokes in a simulated brain, added to its ongoing EEG.

A picture is a point in a space of components: half of it says which class it belongs to, the rest what it looks like
within its class. Each component is a patch of visual cortex with a time course of its own. The code is the same for
all persons; where exactly their patches lie, how fast and how strongly they answer, is each person's own.

Shapes: C channels, K components, L samples of a response, N pictures, T samples of a recording. Signals in µV.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.fft

from ddscale.sources.simulation import brain
from ddscale.sources.simulation.devices import Device
from ddscale.sources.simulation.digits import Digits
from ddscale.sources.simulation.head import electrodes, unit_vectors

COMPONENTS = 24
RESPONSE_S = 1.6
_CLASS_SHARE = 0.6  # of a component's variance over pictures
_CODE_SEED = 20261122
_BAND_HZ = (0.5, 30.0)

_CAP = "Fp1 Fp2 F3 Fz F4 T7 C3 Cz C4 T8 CPz P7 P3 Pz P4 P8 PO7 PO3 POz PO4 PO8 O1 Oz O2"
_ELECTRODES = tuple(_CAP.split())
# One cap in the hands of three makers: the pattern over the head is comparable, the files are not.
DEVICES = {
    "cap24-edf": Device(_ELECTRODES, 128, "EDF", 50, unit="mV", reference=("TP9", "TP10")),
    "cap24-brainvision": Device(_ELECTRODES, 128, "BrainVision", 50, reference=("TP9", "TP10")),
    "cap24-fif": Device(_ELECTRODES, 128, "FIF", 60, unit="V", reference=("TP9", "TP10"), sensor_noise=1.2),
}


@dataclass(frozen=True)
class Viewer:
    """How one person's visual cortex answers. speed: factor on all latencies."""

    positions_K3: np.ndarray
    moments_K3: np.ndarray
    gain_K: np.ndarray
    speed: float
    delay_s: float


def code(digits: Digits) -> np.ndarray:
    """(N, K) how strongly each picture drives each component: zero mean and unit variance over all digits."""
    rng = np.random.default_rng(_CODE_SEED)
    classes, _ = np.linalg.qr(rng.standard_normal((COMPONENTS, 10)))
    of_class_NK = classes.T[digits.labels]
    flat = digits.scans.reshape(len(digits.scans), -1)
    means = np.stack([flat[digits.labels == label].mean(axis=0) for label in range(10)])
    _, _, directions = np.linalg.svd(flat - means[digits.labels], full_matrices=False)
    of_picture_NK = (flat - means[digits.labels]) @ directions[:COMPONENTS].T
    share = _CLASS_SHARE
    return np.sqrt(share) * _standard(of_class_NK) + np.sqrt(1 - share) * _standard(of_picture_NK)


def _standard(values_NK: np.ndarray) -> np.ndarray:
    return (values_NK - values_NK.mean(axis=0)) / values_NK.std(axis=0)


def draw_viewer(rng: np.random.Generator) -> Viewer:
    """A person at random, around what all have in common."""
    common = np.random.default_rng(_CODE_SEED + 1)
    # Occipital and lower temporal cortex, both sides.
    low, high = (-0.8, -1.0, 0.0), (0.8, -0.5, 0.7)
    directions = common.uniform(low, high, (COMPONENTS, 3))
    moments = unit_vectors(directions) + common.normal(scale=0.6, size=directions.shape)
    directions = directions + rng.normal(scale=0.06, size=directions.shape)
    return Viewer(
        positions_K3=rng.uniform(0.66, 0.74) * unit_vectors(directions),
        moments_K3=unit_vectors(moments + rng.normal(scale=0.1, size=moments.shape)),
        gain_K=rng.lognormal(0, 0.15, COMPONENTS),
        speed=float(rng.normal(1.0, 0.03)),
        delay_s=float(rng.normal(0, 0.006)),
    )


def responses(viewer: Viewer, sfreq: float) -> np.ndarray:
    """(K, L) time courses from the onset of a picture on, of unit amplitude: waves of 2 to 8 Hz that come and go."""
    common = np.random.default_rng(_CODE_SEED + 2)
    time_L = np.arange(round(RESPONSE_S * sfreq)) / sfreq * viewer.speed - viewer.delay_s
    centre_K1 = np.linspace(0.12, 1.1, COMPONENTS)[:, None]
    width_K1 = common.uniform(0.06, 0.2, (COMPONENTS, 1))
    frequency_K1 = common.uniform(2.0, 8.0, (COMPONENTS, 1))
    phase_K1 = common.uniform(0, 2 * np.pi, (COMPONENTS, 1))
    from_centre_KL = time_L - centre_K1
    wave_KL = np.cos(2 * np.pi * frequency_K1 * from_centre_KL + phase_K1)
    return wave_KL * np.exp(-0.5 * (from_centre_KL / width_K1) ** 2) * (time_L > 0.04)


def record(
    person: np.random.Generator,
    run: np.random.Generator,
    device: Device,
    seconds: int,
    onsets: Sequence[float],
    weights_nK: np.ndarray,
    trial_s: float,
    snr_db: float,
) -> tuple[list[str], np.ndarray]:
    """One recording during which pictures are shown: channel names, and the signal (C, T) float32 in µV.

    person: draws what is the person's own, run: what is this recording's. onsets: s. weights_nK: `code` of the picture
    at each onset. snr_db: 10 log10 of the power of what pictures evoke, over their trials and all channels, against
    that of the ongoing EEG at the median channel, both from 0.5 to 30 Hz.
    """
    subject, viewer = brain.draw_subject(person), draw_viewer(person)
    names, signal_CT = brain.record(subject, device, seconds, run, may_break=False)
    evoked_CT = _evoked(viewer, device, signal_CT.shape[1], onsets, weights_nK, run)
    ongoing = np.median(_band(signal_CT, device.sfreq).var(axis=1))
    in_trials = min(1.0, len(onsets) * trial_s / seconds)
    evoked = _band(evoked_CT, device.sfreq).var(axis=1).mean() / in_trials
    signal_CT += evoked_CT * np.float32(np.sqrt(ongoing / evoked * 10 ** (snr_db / 10)))
    return names, signal_CT


def _evoked(
    viewer: Viewer,
    device: Device,
    n_samples: int,
    onsets: Sequence[float],
    weights_nK: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """(C, T) float32 in free units; single responses differ a little in strength and timing."""
    shape_KL = (responses(viewer, device.sfreq) * viewer.gain_K[:, None]).astype(np.float32)
    sources_KT = np.zeros((COMPONENTS, n_samples), np.float32)
    for onset, weights_K in zip(onsets, weights_nK, strict=True):
        start = round((onset + rng.normal(0, 0.004)) * device.sfreq)
        strength_K = (weights_K * rng.lognormal(0, 0.15)).astype(np.float32)
        length = min(shape_KL.shape[1], n_samples - start)
        sources_KT[:, start : start + length] += strength_K[:, None] * shape_KL[:, :length]
    at_C3 = electrodes([*device.electrodes, *device.reference])
    in_head_CK = brain.scaled_lead_field(at_C3, viewer.positions_K3, viewer.moments_K3)
    n_electrodes = len(device.electrodes)
    mixing_CK = in_head_CK[:n_electrodes] - in_head_CK[n_electrodes:].mean(axis=0)
    return mixing_CK.astype(np.float32) @ sources_KT


def _band(signal_CT: np.ndarray, sfreq: float) -> np.ndarray:
    length = scipy.fft.next_fast_len(signal_CT.shape[1], real=True)
    spectrum = scipy.fft.rfft(signal_CT, length, axis=1)
    frequencies = np.fft.rfftfreq(length, 1 / sfreq)
    spectrum[:, (frequencies < _BAND_HZ[0]) | (frequencies > _BAND_HZ[1])] = 0
    return scipy.fft.irfft(spectrum, length, axis=1)[:, : signal_CT.shape[1]]
