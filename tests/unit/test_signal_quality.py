"""Every reason to leave something out: triggered, not triggered, and the same however the signal is cut."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddscale.signal.preprocessing import Preprocessing, process
from ddscale.signal.quality import REASONS, Cell, Meter, Quality, bad_channels, runs
from ddscale.signal.rails import RawCells
from ddscale.signal.survey import survey

SFREQ = 250.0
STEPS = Preprocessing(sfreq=256.0, notch=None)


def background(n_channels: int, n_samples: int, rms_uV: float = 20.0, seed: int = 0) -> np.ndarray:
    """Independent 1/f channels, µV."""
    rng = np.random.default_rng(seed)
    freqs = np.fft.rfftfreq(n_samples, 1 / SFREQ)
    shape = 1 / np.sqrt(np.maximum(freqs, 1.0))
    signal = np.fft.irfft(np.fft.rfft(rng.standard_normal((n_channels, n_samples))) * shape, n_samples)
    return signal / signal.std() * rms_uV


def judged(
    signal: np.ndarray, quality: Quality | None = None, chunk: int | None = None, **options: object
) -> list[Cell]:
    """The cells of a recording of one span."""
    meter = Meter(quality or Quality(), SFREQ, STEPS.sfreq, **options)  # type: ignore[arg-type]
    read = lambda a, b: signal[:, a:b]  # noqa: E731
    for start, block in process(
        read, signal.shape[1], SFREQ, STEPS, on_raw=meter.add_raw, chunk_samples=chunk
    ):
        meter.add_processed(start, block)
    meter.close_span()
    (cells,) = meter.judge()
    return cells


def rejected(cells: list[Cell], reason: str) -> list[int]:
    return [k for k, cell in enumerate(cells) if reason in cell.reasons]


SECONDS = 120
N = int(SECONDS * SFREQ)


def at(second: float) -> int:
    return int(second * SFREQ)


def test_clean_eeg_is_kept() -> None:
    cells = judged(background(8, N))
    assert len(cells) == SECONDS / 2
    assert all(cell.reasons == () for cell in cells)
    assert [cell.stop - cell.start for cell in cells] == [512] * 60


def test_flat() -> None:
    signal = background(8, N)
    signal[:4, at(40) : at(50)] *= 0.05 / 20
    cells = judged(signal)
    assert rejected(cells, "flat") == [20, 21, 22, 23, 24]


def test_one_value_for_half_a_second_is_flat_too() -> None:
    signal = background(8, N)
    signal[:, at(40.5) : at(41.2)] = signal[:, [at(40.5)]]
    signal[:, at(60.5) : at(60.8)] = signal[:, [at(60.5)]]  # 0.3 s: a hold that short stays
    assert rejected(judged(signal), "flat") == [20]


def test_flat_in_few_channels_is_kept() -> None:
    signal = background(8, N)
    signal[:2, at(40) : at(50)] = 7.0  # a quarter of the channels, and not more
    assert rejected(judged(signal), "flat") == []
    assert rejected(judged(signal, Quality(bad_channels=0.2)), "flat") == [20, 21, 22, 23, 24]
    assert rejected(judged(signal, Quality(bad_channels=0.0)), "flat") == [20, 21, 22, 23, 24]


def test_clipped() -> None:
    signal = background(8, N)
    signal[:, at(40) : at(41)] += 3000 * np.hanning(at(1))
    signal[:, at(80) : at(81)] -= 3000 * np.hanning(at(1))
    assert rejected(judged(signal), "clipped") == []
    clipped = np.clip(signal, -1000, 1000)
    assert rejected(judged(clipped), "clipped") == [20, 40]


def test_a_few_samples_on_the_rails_are_clipping_by_their_time_and_not_their_number() -> None:
    """At 2 kHz 20 samples last 10 ms, and a peak may well be that flat; 120 last 60 ms."""
    for samples, too_long in ((20, False), (120, True)):
        signal = background(8, 4000)
        signal[:, 1000 : 1000 + samples] = signal.max() + 500
        cells = RawCells(2000.0, flat_uV=1.0)
        cells.add(signal[:, None, :])
        (clipped_CK,) = cells.clipped()
        assert (clipped_CK.any(), clipped_CK.all()) == (too_long, too_long)


def test_resting_elsewhere_than_on_the_rails_is_not_clipping() -> None:
    signal = background(8, N)
    signal[:, at(30) : at(31)] = 500 + 0 * signal[:, at(30) : at(31)]
    signal[:, at(60) : at(61)] += 2000 * np.hanning(at(1))
    signal[:, at(61) : at(62)] -= 2000 * np.hanning(at(1))
    assert rejected(judged(signal), "clipped") == []


def test_coarse_quantisation_is_not_clipping() -> None:
    slow = 100 * np.sin(2 * np.pi * 1.0 * np.arange(N) / SFREQ) + background(8, N, 10.0)
    assert rejected(judged(np.round(slow)), "clipped") == []


def test_amplitude() -> None:
    signal = background(8, N, 15.0)
    signal[:3, at(20.5) : at(21.5)] += (
        900 * np.hanning(at(1)) * np.sin(2 * np.pi * 8 * np.arange(at(1)) / SFREQ)
    )
    signal[:2, at(70.5) : at(71.5)] += (
        900 * np.hanning(at(1)) * np.sin(2 * np.pi * 8 * np.arange(at(1)) / SFREQ)
    )
    cells = judged(signal, Quality(amplitude_uV=300.0))
    assert rejected(cells, "amplitude") == [10]
    assert rejected(judged(signal, Quality(amplitude_uV=1000.0)), "amplitude") == []


@pytest.mark.parametrize("sign", [1, -1])
def test_amplitude_counts_upwards_and_downwards(sign: int) -> None:
    signal = background(8, N, 15.0)
    signal[:3, at(20.9) : at(21.1)] += sign * 900 * np.hanning(at(0.2))
    assert rejected(judged(signal, Quality(amplitude_uV=300.0)), "amplitude") == [10]


def test_a_blink_in_the_frontal_channels_is_kept() -> None:
    signal = background(16, N, 10.0)
    signal[:2, at(30.5) : at(30.9)] += 250 * np.hanning(at(0.4))
    assert all(cell.reasons == () for cell in judged(signal))


def test_cbramods_rule_is_a_setting() -> None:
    signal = background(8, N, 10.0)
    signal[3, at(30.9)] += 5000
    strict = Quality(amplitude_uV=100.0, bad_channels=0.0)
    assert rejected(judged(signal, strict), "amplitude") == [15]


@pytest.mark.parametrize("known", [50.0, None])
def test_line_noise_that_no_notch_removed(known: float | None) -> None:
    signal = background(8, N, 10.0)
    signal[:, at(20) : at(30)] += 100 * np.sin(2 * np.pi * 50 * np.arange(at(10)) / SFREQ)
    cells = judged(signal, line_freq=known)
    assert set(rejected(cells, "line_noise")) >= {10, 11, 12, 13, 14}
    assert set(rejected(cells, "line_noise")) <= set(range(9, 16))


def test_what_the_notch_removed_is_no_line_noise() -> None:
    signal = background(8, N, 10.0) + 100 * np.sin(2 * np.pi * 50 * np.arange(N) / SFREQ)
    meter = Meter(Quality(), SFREQ, 256.0, 50.0)
    notched = Preprocessing(notch=[50.0])
    for start, block in process(lambda a, b: signal[:, a:b], N, SFREQ, notched, on_raw=meter.add_raw):
        meter.add_processed(start, block)
    meter.close_span()
    found = rejected(meter.judge()[0], "line_noise")
    assert set(found) <= {0, SECONDS // 2 - 1}  # at the very ends the notch has only a reflection to go by


def test_spectral_outlier() -> None:
    signal = background(8, N, 10.0)
    rng = np.random.default_rng(1)
    signal[:, at(50) : at(54)] += 25 * rng.standard_normal(
        (8, at(4))
    )  # muscle: wide-band, of modest amplitude
    cells = judged(signal)
    assert rejected(cells, "spectral_outlier") == [25, 26]
    assert rejected(cells, "amplitude") == []


def test_a_shared_state_change_is_no_outlier() -> None:
    signal = background(8, N, 10.0)
    times = np.arange(N) / SFREQ
    signal += 15 * np.sin(2 * np.pi * 10 * times) * (times % 40 < 20)  # eyes closed half of the time
    assert rejected(judged(signal), "spectral_outlier") == []


def test_too_few_cells_have_no_outliers() -> None:
    signal = background(8, at(30), 10.0)
    signal[:, at(10) : at(12)] *= 8
    assert rejected(judged(signal), "spectral_outlier") == []


def test_nan_in_one_channel_is_enough() -> None:
    meter = Meter(Quality(), SFREQ, SFREQ)
    raw = background(8, at(10))
    processed = raw.astype(np.float32)
    raw[3, at(5)] = np.nan
    raw[4, at(9)] = np.inf
    meter.add_raw(0, raw)
    meter.add_processed(0, processed)
    meter.close_span()
    assert rejected(meter.judge()[0], "nan") == [2, 4]


def test_only_eeg_channels_count() -> None:
    signal = background(8, N, 15.0)
    signal[4:] *= 100
    eeg = np.arange(8) < 4
    assert rejected(judged(signal, eeg_C=eeg), "amplitude") == []
    assert len(rejected(judged(signal), "amplitude")) > 50
    assert len(rejected(judged(signal * 100, eeg_C=np.zeros(8, bool)), "amplitude")) > 50  # no EEG: all count


@settings(max_examples=20, deadline=None)
@given(chunk=st.integers(300, 40_000), seed=st.integers(0, 100), extra=st.integers(0, 700))
def test_the_verdict_does_not_depend_on_the_chunk(chunk: int, seed: int, extra: int) -> None:
    signal = background(4, N // 2 + extra, 15.0, seed)
    signal[:, at(11) : at(13)] = 7.0
    signal[:, at(30) : at(31)] += 3000 * np.hanning(at(1))
    signal = np.clip(signal, -1000, 1000)
    signal[:, at(40) : at(42)] *= 10
    whole = judged(signal, chunk=signal.shape[1])
    assert judged(signal, chunk=chunk) == whole
    assert {reason for cell in whole for reason in cell.reasons} >= {"flat", "clipped", "amplitude"}


def test_rails_and_medians_are_the_recordings_not_the_spans() -> None:
    signal = background(4, N, 10.0)
    signal[:, at(10) : at(11)] = np.clip(signal[:, at(10) : at(11)] + 5000, None, 1000)
    signal[:, at(90) : at(91)] = 500.0  # the highest of the second span, but not of the recording
    spans = [(0, N // 2), (N // 2, N)]
    meter = Meter(Quality(), SFREQ, STEPS.sfreq)
    for span in spans:
        for start, block in process(
            lambda a, b: signal[:, a:b], N, SFREQ, STEPS, span=span, on_raw=meter.add_raw
        ):
            meter.add_processed(start, block)
        meter.close_span()
    first, second = meter.judge()
    assert rejected(first, "clipped") == [5]
    assert rejected(second, "clipped") == []
    assert rejected(second, "flat") == [15]
    assert len(first) == len(second) == 30
    assert second[0].start == 0


@pytest.mark.parametrize("sfreq", [512.0295, 173.61, 100.0])
def test_cells_of_odd_rates_cover_the_output(sfreq: float) -> None:
    signal = background(2, int(31.7 * sfreq))
    meter = Meter(Quality(), sfreq, 256.0)
    total = 0
    for start, block in process(
        lambda a, b: signal[:, a:b], signal.shape[1], sfreq, Preprocessing(), on_raw=meter.add_raw
    ):
        meter.add_processed(start, block)
        total = start + block.shape[1]
    meter.close_span()
    (cells,) = meter.judge()
    assert cells[0].start == 0
    assert cells[-1].stop == total
    assert all(a.stop == b.start for a, b in itertools.pairwise(cells))
    assert all(cell.reasons == () for cell in cells)


def test_short_recordings() -> None:
    assert judged(background(2, 75)) == [Cell(0, 77, ())]
    assert judged(background(2, 1)) == [Cell(0, 1, ())]
    meter = Meter(Quality(), SFREQ, 256.0)
    assert meter.judge() == []
    meter.close_span()
    assert meter.judge() == [[]]


def test_memory_is_small_per_cell() -> None:
    meter = Meter(Quality(), SFREQ, 256.0)
    rng = np.random.default_rng(0)
    for k in range(20):
        meter.add_raw(k * 5000, rng.standard_normal((64, 5000)) * 10)
        meter.add_processed(k * 5120, (rng.standard_normal((64, 5120)) * 10).astype(np.float32))
    import pickle

    meter.close_span()
    assert len(pickle.dumps(meter)) / (200 * 64) < 20  # bytes per cell and channel


def test_joining_cells() -> None:
    cells = [
        Cell(0, 2, ()),
        Cell(2, 4, ()),
        Cell(4, 6, ("flat",)),
        Cell(6, 8, ("flat",)),
        Cell(8, 9, ("nan", "flat")),
    ]
    assert runs(cells) == [Cell(0, 4, ()), Cell(4, 8, ("flat",)), Cell(8, 9, ("nan", "flat"))]
    assert runs([]) == []


def test_bad_channels_by_reason() -> None:
    signal = background(8, N, 30.0)
    signal[0, : int(0.7 * N)] = np.nan
    signal[1] = 4.0
    signal[2] = np.clip(signal[2] * 20, -300, 300)
    signal[3] *= 20
    signal[4] *= 20  # not EEG: large is normal there
    signal[5, : N // 4] = 0.0
    signal[6] *= 4.5  # over half of the limit
    seen = survey(lambda a, b: signal[:, a:b], N, SFREQ, eeg_C=np.arange(8) != 4)
    assert bad_channels(seen, Quality()) == {
        0: "nan",
        1: "flat",
        2: "clipped",
        3: "amplitude",
        6: "amplitude",
    }
    assert 5 in bad_channels(seen, Quality(bad_cells=0.1))
    assert set(bad_channels(seen, Quality(amplitude_uV=5000.0))) == {0, 1, 2}
    assert set(bad_channels(seen, Quality()).values()) <= set(REASONS)


@pytest.mark.real
def test_the_clinical_recording_is_flat_after_nine_seconds(shared: Path) -> None:
    import mne

    (path,) = (shared / "eeg" / "clinical25-edfplus").glob("*.edf")
    raw = mne.io.read_raw(path, preload=True, verbose="ERROR")
    signal = raw.get_data(picks=raw.ch_names[:19]) * 1e6
    meter = Meter(Quality(), 128.0, 256.0)
    for start, block in process(
        lambda a, b: signal[:, a:b], signal.shape[1], 128.0, Preprocessing(), on_raw=meter.add_raw
    ):
        meter.add_processed(start, block)
    meter.close_span()
    (cells,) = meter.judge()
    assert rejected(cells, "flat")[-1] == 4
    assert "flat" not in cells[0].reasons


@pytest.mark.real
def test_jaw_clenching_in_the_openbci_recording_is_found(shared: Path) -> None:
    """Blinks, then jaw clenching, then alpha: muscle and large blinks go, at least half stays."""
    (path,) = (shared / "eeg" / "openbci8").glob("*.txt")
    signal = np.loadtxt(path, delimiter=",", comments="%", skiprows=5, usecols=range(1, 9)).T
    meter = Meter(Quality(), SFREQ, 256.0, 60.0)
    for start, block in process(
        lambda a, b: signal[:, a:b], signal.shape[1], SFREQ, Preprocessing(), 60.0, on_raw=meter.add_raw
    ):
        meter.add_processed(start, block)
    meter.close_span()
    (cells,) = meter.judge()
    reasons = {reason for cell in cells for reason in cell.reasons}
    assert reasons <= {"amplitude", "spectral_outlier"}
    assert len(rejected(cells, "spectral_outlier")) >= 3
    assert sum(not cell.reasons for cell in cells) > len(cells) / 2


@pytest.mark.parametrize(
    "values", [{"cell_s": 0.1}, {"bad_channels": 1.0}, {"amplitude_uV": 0.0}, {"amplitude": 1.0}]
)
def test_settings_are_checked(values: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        Quality(**values)
