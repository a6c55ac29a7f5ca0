"""The simulated source: repeatable, whole files of every device, and EEG-like in the ways a model can learn from."""

from __future__ import annotations

import mne
import numpy as np
import pytest
import scipy.signal

from ddscale import recipes
from ddscale.signal.channels import standardise
from ddscale.sources import SimulatedSource, list_recordings
from ddscale.sources.simulation import brain
from ddscale.sources.simulation.devices import DEVICES
from ddscale.sources.simulation.head import TEN_TWENTY, electrodes, lead_field, unit_vectors


def source(folder, **more) -> SimulatedSource:
    return SimulatedSource.model_validate(
        {"kind": "simulated", "dataset": "simulated", "folder": str(folder), "minutes": 0.2} | more
    )


def read(recording) -> np.ndarray:
    with recording.open() as opened:
        return opened.read(0, opened.n_samples)


@pytest.mark.parametrize("name", sorted(DEVICES))
def test_each_device_comes_back_from_its_file_as_it_was_made(tmp_path, name):
    (recording,) = list_recordings(source(tmp_path, subjects=1, devices=[name])).recordings
    assert not list(tmp_path.iterdir()), "nothing is written before it is opened"
    device = DEVICES[name]
    with recording.open() as opened:
        assert opened.meta["format"] == device.format
        assert opened.meta["simulated"] is True
        assert opened.sfreq == device.sfreq
        assert opened.n_samples == 12 * device.sfreq
        assert opened.unit == device.unit
        kinds = [channel.kind for channel in opened.channels]
        assert sum(kind in ("eeg", "ref") for kind in kinds) == len(device.electrodes)
        assert kinds.count("eog") == 2 * device.extras.count("EOG")
        assert kinds.count("ecg") == device.extras.count("ECG")
        assert all(channel.position for channel in opened.channels[: len(device.electrodes)])
        found_CT = opened.read(0, opened.n_samples)
    assert recording.size_bytes == pytest.approx(
        sum(p.stat().st_size for p in tmp_path.rglob("*.*")), rel=0.4
    )
    subject = brain.draw_subject(_random(source(tmp_path), 1))
    _, made_CT = brain.record(subject, device, 12, _random(source(tmp_path), 1, 1))
    np.testing.assert_allclose(found_CT, made_CT[: len(found_CT)], atol=0.11)


def _random(settings, *numbers):
    from ddscale.sources import simulated

    return simulated._random(settings, *numbers)


def test_channel_counts_rates_formats_and_units_of_the_shipped_devices():
    counts = [len(device.electrodes) for device in DEVICES.values()]
    assert (min(counts), max(counts)) == (4, 256)
    assert {device.format for device in DEVICES.values()} == {"EDF", "BDF", "BrainVision", "FIF"}
    assert len({device.sfreq for device in DEVICES.values()}) >= 5
    assert {device.unit for device in DEVICES.values()} == {"uV", "mV", "V"}
    assert {device.mains for device in DEVICES.values()} == {50, 60}
    for name, device in DEVICES.items():
        assert str(len(device.electrodes)) in name
        channels = standardise([device.label.format(electrode) for electrode in device.electrodes])
        assert all(channel.standard for channel in channels), name


def test_same_settings_same_signals_wherever_they_are_written(tmp_path):
    first = list_recordings(source(tmp_path / "a", subjects=3, devices=["headset14", "cap32"])).recordings
    again = list_recordings(source(tmp_path / "b", subjects=3, devices=["headset14", "cap32"])).recordings
    assert [r.id for r in first] == [
        "simulated01_run1_headset14",
        "simulated02_run1_cap32",
        "simulated03_run1_headset14",
    ]
    written_last_first = {recording.id: read(recording) for recording in reversed(again)}
    for recording in first:
        np.testing.assert_array_equal(read(recording), written_last_first[recording.id])
    assert not np.array_equal(read(first[0]), read(first[2])), "two persons differ"


@pytest.mark.parametrize("change", [{"seed": 1}, {"dataset": "other"}, {"minutes": 0.25}])
def test_other_settings_never_find_old_files(tmp_path, change):
    (one,) = list_recordings(source(tmp_path, subjects=1, devices=["headband4"])).recordings
    (other,) = list_recordings(source(tmp_path, subjects=1, devices=["headband4"], **change)).recordings
    a_CT, b_CT = read(one), read(other)
    assert one.path != other.path
    n = min(a_CT.shape[1], b_CT.shape[1])
    assert not np.allclose(a_CT[:, :n], b_CT[:, :n])


def test_more_subjects_or_repetitions_leave_the_others_as_they_are(tmp_path):
    few = list_recordings(source(tmp_path, subjects=2, devices=["headband4"])).recordings
    read(few[1])
    before = sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*.edf"))
    more = source(tmp_path, subjects=5, recordings_per_subject=2, devices=["headband4"])
    many = {recording.id: recording for recording in list_recordings(more).recordings}
    assert len(many) == 10
    np.testing.assert_array_equal(read(many[few[1].id]), read(few[1]))
    assert sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*.edf")) == before, "not written again"
    assert many["simulated02_run2_headband4"].subject == many["simulated02_run1_headband4"].subject


@pytest.mark.parametrize("name", ["headband4", "cap32", "net128", "board8"])
def test_interrupted_writing_leaves_nothing_behind(tmp_path, monkeypatch, name):
    (recording,) = list_recordings(source(tmp_path, subjects=1, devices=[name])).recordings

    def out_of_space(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", out_of_space)
    with pytest.raises(OSError, match="No space left"):
        recording.open()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    monkeypatch.undo()
    assert read(recording).shape[0] >= 4


def test_unknown_device_names_the_known_ones():
    with pytest.raises(recipes.RecipeError, match=r"no device called cap33; there are headband4, .*net256"):
        recipes.check(
            {"kind": "simulated", "dataset": "d", "folder": "x", "devices": ["cap32", "cap33"]},
            SimulatedSource,
            "r",
        )


# ---- the head -------------------------------------------------------------------------------------------------


def test_potentials_agree_with_mne_in_a_homogeneous_sphere():
    """An independent forward solution: MNE's sphere model with one conductivity, average reference."""
    rng = np.random.default_rng(0)
    positions_K3 = unit_vectors(rng.normal(size=(6, 3))) * rng.uniform(0.3, 0.7, (6, 1))
    moments_K3 = unit_vectors(rng.normal(size=(6, 3)))
    at_C3 = unit_vectors(rng.normal(size=(40, 3)))
    ours_CK = lead_field(at_C3, positions_K3, moments_K3)
    radius = 0.09
    info = mne.create_info([f"E{i}" for i in range(40)], 100, "eeg")
    places = {f"E{i}": radius * at_C3[i] for i in range(40)}
    info.set_montage(mne.channels.make_dig_montage(places, coord_frame="head"))
    sphere = mne.make_sphere_model(
        r0=(0, 0, 0),
        head_radius=radius,
        relative_radii=(0.99, 0.995, 0.999, 1.0),
        sigmas=(1, 1, 1, 1),
        verbose="error",
    )
    dipoles = mne.Dipole(np.arange(6) / 10, radius * positions_K3, np.ones(6), moments_K3, np.ones(6))
    forward, _ = mne.make_forward_dipole(dipoles, sphere, info, verbose="error")
    theirs_CK = np.column_stack(
        [forward["sol"]["data"][:, 3 * k : 3 * k + 3] @ moments_K3[k] for k in range(6)]
        if forward["sol"]["data"].shape[1] == 18
        else list(forward["sol"]["data"].T)
    )
    ours_CK -= ours_CK.mean(axis=0)
    theirs_CK -= theirs_CK.mean(axis=0)
    for k in range(6):
        assert np.corrcoef(ours_CK[:, k], theirs_CK[:, k])[0, 1] > 0.999


def test_electrodes_are_on_the_sphere_and_where_their_names_say():
    at = dict(zip(TEN_TWENTY, electrodes(TEN_TWENTY), strict=True))
    np.testing.assert_allclose(np.linalg.norm(list(at.values()), axis=1), 1)
    assert at["Cz"][2] > 0.95
    assert at["Fp1"][1] > 0.8 > 0 > at["O1"][1]
    assert at["T7"][0] < -0.9 < 0.9 < at["T8"][0]
    with pytest.raises(ValueError, match="No template position for Q7"):
        electrodes(["Cz", "Q7"])


# ---- the signal -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cap() -> tuple[list[str], np.ndarray, float]:
    """Two minutes of one person with much alpha, 64 channels at 512 Hz; bad channels taken out."""
    device = DEVICES["cap64"]
    rng = np.random.default_rng(5)
    subject = brain.draw_subject(rng)
    names, signal_CT = brain.record(subject, device, 120, rng)
    signal_CT = scipy.signal.sosfiltfilt(
        scipy.signal.butter(2, [0.5, 120], "band", fs=512, output="sos"), signal_CT[:64].astype(float)
    )
    rms_C = signal_CT.std(axis=1)
    good = np.flatnonzero((rms_C > 1) & (rms_C < 40))
    return [names[i] for i in good], signal_CT[good], subject.alpha_hz


def test_level_of_eeg(cap):
    names, signal_CT, _ = cap
    assert len(names) >= 56
    assert 4 < np.median(signal_CT.std(axis=1)) < 25


def test_spectrum_falls_like_one_over_f_with_an_alpha_peak_at_the_back(cap):
    names, signal_CT, alpha_hz = cap
    frequency, power_CF = scipy.signal.welch(signal_CT, 512, nperseg=2048)
    falling = (frequency > 15) & (frequency < 40)
    slopes_C = [
        np.polyfit(np.log(frequency[falling]), np.log(power_F[falling]), 1)[0] for power_F in power_CF
    ]
    assert -3.0 < np.median(slopes_C) < -0.5
    around = (frequency > 7) & (frequency < 14)
    occipital = [i for i, name in enumerate(names) if name in ("O1", "Oz", "O2", "PO3", "PO4", "POz")]
    peak = frequency[around][power_CF[occipital].mean(axis=0)[around].argmax()]
    assert abs(peak - alpha_hz) < 1.0
    frontal = [i for i, name in enumerate(names) if name in ("F3", "F4", "Fz")]
    at_peak = frequency.searchsorted(peak)
    assert power_CF[occipital, at_peak].mean() > 2 * power_CF[frontal, at_peak].mean()


def test_mains_line_stands_out(cap):
    _, signal_CT, _ = cap
    frequency, power_CF = scipy.signal.welch(signal_CT, 512, nperseg=1024)
    level_F = np.median(power_CF, axis=0)
    assert level_F[frequency.searchsorted(50)] > 5 * level_F[frequency.searchsorted(45)]


def test_blinks_are_large_and_frontal(cap):
    names, signal_CT, _ = cap
    peaks_C = np.abs(signal_CT).max(axis=1)
    front = np.mean([peaks_C[i] for i, name in enumerate(names) if name in ("Fp1", "Fpz", "Fp2")])
    back = np.mean([peaks_C[i] for i, name in enumerate(names) if name in ("P3", "Pz", "P4", "POz")])
    assert front > max(60, 1.5 * back)


def test_few_sources_explain_many_channels(cap):
    """What makes it learnable: 64 channels have far fewer degrees of freedom, above about 1 µV of noise."""
    _, signal_CT, _ = cap
    variance_K = np.linalg.svd(signal_CT, compute_uv=False) ** 2
    assert variance_K[:20].sum() / variance_K.sum() > 0.9
    assert 0.3 < np.sqrt(variance_K[45:].mean() / signal_CT.shape[1]) < 2.0


def test_past_and_future_tell_more_than_a_straight_line(cap):
    """Across a gap of 60 ms, a linear prediction from both sides beats interpolation between its ends."""
    _, signal_CT, _ = cap
    series_CT = scipy.signal.resample_poly(signal_CT, 1, 4, axis=1)  # 128 Hz
    gap, around = 8, 40
    starts = np.arange(around, series_CT.shape[1] - around - gap, 5)
    window = np.arange(-around, gap + around)
    cut_NT = np.concatenate([row[starts[:, None] + window] for row in series_CT[::8]])
    known = np.r_[0:around, around + gap : 2 * around + gap]
    x_N, target_N = cut_NT[:, known], cut_NT[:, around + gap // 2]
    line_N = 0.5 * (cut_NT[:, around - 1] + cut_NT[:, around + gap])
    half = len(x_N) // 2
    weights = np.linalg.lstsq(x_N[:half], target_N[:half], rcond=None)[0]
    predicted = np.mean((x_N[half:] @ weights - target_N[half:]) ** 2)
    straight = np.mean((line_N[half:] - target_N[half:]) ** 2)
    assert predicted < 0.7 * straight


def test_bad_channels_are_flat_or_loud_and_few():
    flat = loud = total = 0
    for seed in range(12):
        signal_CT = np.random.default_rng(seed).normal(scale=10, size=(64, 500)).astype(np.float32)
        brain._break_channels(signal_CT, np.random.default_rng(seed))
        rms_C = signal_CT.std(axis=1)
        flat, loud, total = flat + (rms_C < 1e-3).sum(), loud + (rms_C > 60).sum(), total + 64
    assert 2 <= flat <= total / 30
    assert 4 <= loud <= total / 20
