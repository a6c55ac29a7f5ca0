"""Processing in pieces: equal to processing the whole, and to MNE's usual steps away from the edges."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ddscale.signal.channels import standardise
from ddscale.signal.preprocessing import NonFinite, Preprocessing, plan, process, split_at_nonfinite


def eeg(n_channels: int, n_samples: int, sfreq: float, seed: int = 0) -> np.ndarray:
    """Brown and white noise, mains hum and an electrode offset of tens of mV, µV."""
    rng = np.random.default_rng(seed)
    signal = np.cumsum(rng.standard_normal((n_channels, n_samples)), axis=1) + 5 * rng.standard_normal(
        (n_channels, n_samples)
    )
    signal += 30 * np.sin(2 * np.pi * 50 * np.arange(n_samples) / sfreq + rng.uniform(0, 6, (n_channels, 1)))
    return signal + rng.uniform(-40_000, 40_000, (n_channels, 1))


def run(signal: np.ndarray, sfreq: float, settings_: Preprocessing, **options: Any) -> np.ndarray:
    """Everything process yields, joined; its block positions are checked on the way."""
    blocks, due = [np.empty((signal.shape[0], 0), np.float32)], 0
    for start, block in process(lambda a, b: signal[:, a:b], signal.shape[1], sfreq, settings_, **options):
        assert start == due
        assert block.dtype == np.float32
        due += block.shape[1]
        blocks.append(block)
    return np.concatenate(blocks[1:] or blocks, axis=1)


@settings(max_examples=40, deadline=None)
@given(
    n_samples=st.integers(1, 6000),
    sfreq=st.sampled_from([100.0, 128.0, 200.0, 256.0, 250.0, 333.25, 512.0]),
    chunk=st.integers(1, 7000),
    seed=st.integers(0, 1000),
    l_freq=st.sampled_from([None, 1.0]),
)
def test_the_result_does_not_depend_on_the_chunk(
    n_samples: int, sfreq: float, chunk: int, seed: int, l_freq: float | None
) -> None:
    signal = eeg(2, n_samples, sfreq, seed)
    chunk = max(chunk, n_samples // 40)
    steps = Preprocessing(sfreq=128.0, l_freq=l_freq, h_freq=40.0, notch=None)
    whole = run(signal, sfreq, steps, chunk_samples=n_samples)
    pieces = run(signal, sfreq, steps, chunk_samples=chunk)
    assert whole.shape == pieces.shape == (2, plan(steps, sfreq).output_samples(n_samples))
    scale = np.abs(whole).max() if whole.size else 1.0
    np.testing.assert_allclose(pieces, whole, rtol=0, atol=1e-6 * max(scale, 1e-3))


@pytest.mark.parametrize("n_channels", [1, 5, 256])
@pytest.mark.parametrize("chunk", [500, 4096, None])
def test_channel_counts(n_channels: int, chunk: int | None) -> None:
    signal = eeg(n_channels, 6000, 250.0)
    steps = Preprocessing(notch=[50.0])
    whole = run(signal, 250.0, steps, chunk_samples=6000)
    np.testing.assert_allclose(
        run(signal, 250.0, steps, chunk_samples=chunk), whole, atol=1e-6 * np.abs(whole).max()
    )
    alone = run(signal[-1:], 250.0, steps)
    np.testing.assert_allclose(whole[-1:], alone, atol=1e-6 * np.abs(whole).max())


@pytest.mark.parametrize(
    ("sfreq", "seconds", "target", "h_freq"),
    [(256.0, 120, 200.0, 75.0), (250.0, 100, 256.0, 100.0), (2048.0, 40, 256.0, 100.0), (5000.0, 32, 256.0, 100.0),
     (128.0, 100, 256.0, 45.0), (256.0, 100, 256.0, 100.0)],
)  # fmt: skip
def test_equal_to_mnes_steps_away_from_the_edges(
    sfreq: float, seconds: int, target: float, h_freq: float
) -> None:
    import mne

    signal = eeg(3, int(sfreq * seconds), sfreq)
    raw = mne.io.RawArray(signal, mne.create_info(3, sfreq, "eeg"), copy="both", verbose="ERROR")
    raw.filter(0.5, h_freq, verbose="ERROR").notch_filter(50.0, verbose="ERROR")
    raw.resample(target, method="polyphase", verbose="ERROR")
    expected = raw.get_data()
    found = run(signal, sfreq, Preprocessing(sfreq=target, l_freq=0.5, h_freq=h_freq, notch=[50.0]))
    assert found.shape == expected.shape
    edge = int(14 * target)  # both filters together reach 6.6 s, and MNE pads in between
    difference = np.abs(found - expected)[:, edge:-edge].max()
    assert difference <= 1e-6 * np.abs(expected).max()


def test_edges_are_mnes_for_a_single_filter() -> None:
    import mne

    signal = eeg(2, 5000, 256.0)
    centred = signal - signal.mean(axis=1, keepdims=True)
    expected = mne.filter.filter_data(centred, 256.0, 0.5, 100.0, verbose="ERROR")
    found = run(signal, 256.0, Preprocessing(sfreq=256.0, notch=None))
    np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("sfreq", [100.0, 173.61, 256.0, 512.0295, 5000.0])
@pytest.mark.parametrize("seconds", [0.02, 0.3, 1.0, 3.0])
def test_recordings_shorter_than_the_filter(sfreq: float, seconds: float) -> None:
    n = max(1, round(seconds * sfreq))
    signal = 20 * np.sin(2 * np.pi * 10 * np.arange(n) / sfreq)[None] + 30_000
    steps = Preprocessing(notch=[40.0])
    found = run(signal, sfreq, steps, chunk_samples=max(1, n // 3))
    assert found.shape == (1, plan(steps, sfreq).output_samples(n))
    assert np.isfinite(found).all()
    assert np.abs(found).max() < 60  # the offset of 30 mV is gone and nothing rings


def test_one_sample_and_none() -> None:
    assert run(np.full((2, 1), 7.0), 256.0, Preprocessing(sfreq=256.0)).shape == (2, 1)
    assert run(np.empty((2, 0)), 256.0, Preprocessing()).shape == (2, 0)


def test_a_span_is_a_signal_of_its_own() -> None:
    signal = eeg(2, 9000, 250.0)
    steps = Preprocessing(notch=None)
    np.testing.assert_array_equal(
        run(signal, 250.0, steps, span=(2000, 7000)), run(signal[:, 2000:7000], 250.0, steps)
    )


def test_raw_samples_are_seen_once_in_order_and_reading_is_sequential() -> None:
    signal = eeg(3, 10_000, 250.0)
    asked: list[tuple[int, int]] = []
    seen: list[np.ndarray] = []

    def read(start: int, stop: int) -> np.ndarray:
        asked.append((start, stop))
        return signal[:, start:stop]

    def on_raw(start: int, raw: np.ndarray) -> None:
        assert start == sum(piece.shape[1] for piece in seen)
        seen.append(raw.copy())

    for _ in process(
        read,
        10_000,
        250.0,
        Preprocessing(),
        span=(1000, 9000),
        picks=[2, 0],
        on_raw=on_raw,
        chunk_samples=700,
    ):
        pass
    np.testing.assert_array_equal(np.concatenate(seen, axis=1), signal[[2, 0], 1000:9000])
    assert [start for start, _ in asked] == [1000, *(stop for _, stop in asked[:-1])]


def test_average_reference_leaves_other_kinds_alone() -> None:
    names = ["Fp1", "Fp2", "Oz", "EOG1"]
    signal = eeg(4, 3000, 256.0)
    steps = Preprocessing(sfreq=256.0, notch=None)
    plain = run(signal, 256.0, steps).astype(np.float64)
    averaged = run(
        signal, 256.0, steps.model_copy(update={"reference": "average"}), channels=standardise(names)
    )
    np.testing.assert_allclose(averaged[:3], plain[:3] - plain[:3].mean(axis=0), atol=1e-4)
    np.testing.assert_array_equal(averaged[3], plain[3].astype(np.float32))


def test_the_average_is_over_the_picked_channels() -> None:
    signal = eeg(3, 3000, 256.0)
    signal[1] *= 1000  # a bad channel
    steps = Preprocessing(sfreq=256.0, notch=None, reference="average")
    found = run(signal, 256.0, steps, channels=standardise(["Fp1", "Fp2", "Oz"]), picks=[0, 2])
    np.testing.assert_allclose(found.sum(axis=0), 0, atol=1e-4)


def test_a_reference_that_is_not_kept_is_read_for_its_purpose_only() -> None:
    signal = eeg(4, 3000, 256.0)
    steps = Preprocessing(sfreq=256.0, notch=None, reference=["A1", "A2"])
    channels = standardise(["A1", "C3", "C4", "A2"])
    raw: list[np.ndarray] = []
    blocks = process(
        lambda a, b: signal[:, a:b],
        3000,
        256.0,
        steps,
        channels=channels,
        picks=[1, 2],
        on_raw=lambda _, x: raw.append(x),
    )
    found = np.concatenate([block for _, block in blocks], axis=1)
    expected = run(
        signal[[1, 2]] - signal[[0, 3]].mean(axis=0), 256.0, Preprocessing(sfreq=256.0, notch=None)
    )
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_array_equal(np.concatenate(raw, axis=1), signal[[1, 2]])


def test_a_reference_without_channels_is_an_error() -> None:
    with pytest.raises(ValueError, match="pass `channels`"):
        process(lambda a, b: np.zeros((1, b - a)), 10, 256.0, Preprocessing(reference="average"))


def test_a_signal_read_for_the_reference_is_not_changed() -> None:
    signal = eeg(2, 2000, 256.0)
    before = signal.copy()
    run(signal, 256.0, Preprocessing(reference="average"), channels=standardise(["C3", "C4"]))
    np.testing.assert_array_equal(signal, before)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_is_never_filtered(value: float) -> None:
    signal = eeg(2, 5000, 256.0)
    signal[1, 3210] = value
    with pytest.raises(NonFinite, match="3210") as caught:
        run(signal, 256.0, Preprocessing(), chunk_samples=1000)
    assert caught.value.sample == 3210
    assert np.isfinite(run(signal, 256.0, Preprocessing(), picks=[0])).all()


@settings(max_examples=60, deadline=None)
@given(
    holes=st.lists(st.tuples(st.integers(0, 499), st.integers(1, 30)), max_size=8),
    min_samples=st.integers(1, 60),
    chunk=st.integers(1, 600),
    begin=st.integers(0, 100),
)
@example(holes=[(20, 5), (45, 5)], min_samples=20, chunk=7, begin=0)  # both just long enough
def test_splitting_at_holes(holes: list[tuple[int, int]], min_samples: int, chunk: int, begin: int) -> None:
    signal = np.zeros((2, 500))
    for start, length in holes:
        signal[start % 2, start : start + length] = np.nan
    kept, rejected = split_at_nonfinite(
        lambda a, b: signal[:, a:b], (begin, 500), min_samples, chunk_samples=chunk
    )
    borders = sorted(kept + rejected)
    assert borders[0][0] == begin
    assert borders[-1][1] == 500
    assert all(a[1] == b[0] for a, b in itertools.pairwise(borders))
    finite = np.isfinite(signal).all(axis=0)
    for start, stop in kept:
        assert stop - start >= min_samples
        assert finite[start:stop].all()
        assert start == begin or not finite[start - 1]
    for start, stop in rejected:  # nothing long enough was thrown away
        runs = "".join("f" if value else " " for value in finite[start:stop]).split()
        assert all(len(run) < min_samples for run in runs)


def test_splitting_looks_at_the_picked_channels_only() -> None:
    signal = np.zeros((2, 100))
    signal[1] = np.nan
    assert split_at_nonfinite(lambda a, b: signal[:, a:b], (0, 100), 10, picks=[0]) == ([(0, 100)], [])
    assert split_at_nonfinite(lambda a, b: signal[:, a:b], (0, 100), 10) == ([], [(0, 100)])


def test_a_reader_that_returns_too_little_is_named() -> None:
    with pytest.raises(ValueError, match="shorter than its header"):
        list(process(lambda a, b: np.zeros((2, 10)), 100, 256.0, Preprocessing(), picks=[0, 1]))


@pytest.mark.parametrize("span", [(-1, 5), (0, 101), (60, 50)])
def test_a_span_outside_of_the_recording(span: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="not inside"):
        process(lambda a, b: np.zeros((1, b - a)), 100, 256.0, Preprocessing(), span=span)


class TestPlan:
    def test_a_low_pass_above_the_recordings_end_is_skipped_and_said(self) -> None:
        planned = plan(Preprocessing(h_freq=100.0), 128.0)
        assert planned.h_freq is None
        assert "low-pass at 100 Hz: the recording ends at 64 Hz" in planned.description()["skipped"]
        assert plan(Preprocessing(h_freq=100.0), 250.0).h_freq == 100.0

    def test_a_low_pass_at_the_very_end_makes_no_endless_filter(self) -> None:
        planned = plan(Preprocessing(sfreq=256.0, h_freq=99.99), 200.0)
        assert planned.h_freq is None
        assert len(planned.kernel.taps) < 10 * 200

    @pytest.mark.parametrize(
        ("line_freq", "h_freq", "sfreq", "expected"),
        [(50.0, 100.0, 250.0, (50.0, 100.0)), (60.0, 100.0, 250.0, (60.0,)), (60.0, 45.0, 250.0, ()),
         (50.0, 40.0, 250.0, ()),
         (50.0, 45.0, 250.0, (50.0,)), (None, 100.0, 250.0, ()), (60.0, 100.0, 128.0, (60.0,)),
         (50.0, None, 512.0, (50.0, 100.0, 150.0, 200.0, 250.0)),
         (50.0, 100.0, 100.0, ())],
    )  # fmt: skip
    def test_line_and_harmonics_up_to_where_the_low_pass_takes_over(
        self, line_freq: float | None, h_freq: float | None, sfreq: float, expected: tuple[float, ...]
    ) -> None:
        assert plan(Preprocessing(h_freq=h_freq), sfreq, line_freq).notches == expected

    def test_stated_notches_are_taken_as_stated(self) -> None:
        planned = plan(Preprocessing(notch=[50.0, 16.7]), 90.0, line_freq=60.0)
        assert planned.notches == (16.7,)
        assert any("notch at 50 Hz" in reason for reason in planned.skipped)
        assert plan(Preprocessing(notch=None), 256.0, line_freq=60.0).notches == ()

    def test_description_is_json_and_states_the_rate_error(self) -> None:
        description = json.loads(json.dumps(plan(Preprocessing(), 512.0295, 50.0).description()))
        assert description["notch"] == [50.0, 100.0]
        assert 0 < abs(description["rate_error"]) <= 1e-7
        assert "8677/17355" in description["resampling"]

    def test_a_recording_below_the_high_pass_is_refused(self) -> None:
        with pytest.raises(ValueError, match="check its sampling rate"):
            plan(Preprocessing(l_freq=0.5), 1.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"h_freq": 128.0}, "must lie below half of sfreq"), ({"sfreq": 100.0}, "must lie below half of sfreq"),
        ({"l_freq": 120.0}, "must lie above l_freq"), ({"l_freq": 0.0}, "null for no high-pass"),
        ({"sfreq": 0.0}, "sampling rate"),
        ({"notch": []}, "notch needs"), ({"notch": [0.0]}, "notch needs"), ({"reference": []}, "empty list"),
        ({"notch": "50"}, "auto"), ({"sfrq": 256.0}, "sfrq"),
    ],
)  # fmt: skip
def test_settings_that_contradict_themselves(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Preprocessing(**values)


@pytest.mark.real
@pytest.mark.parametrize(
    "pattern",
    ["eeglab32-set/*.set", "biosemi72-bdf/*.bdf", "clinical25-edfplus/*.edf", "gtec8-ssvep-s08/*.fif"],
)
def test_real_recordings_in_pieces(shared: Path, pattern: str) -> None:
    import mne

    (path,) = (shared / "eeg").glob(pattern)
    raw = mne.io.read_raw(path, preload=True, verbose="ERROR").pick("eeg")
    signal = raw.get_data() * 1e6
    sfreq = float(raw.info["sfreq"])
    steps = Preprocessing(notch=[50.0])
    whole = run(signal, sfreq, steps, chunk_samples=signal.shape[1])
    pieces = run(signal, sfreq, steps, chunk_samples=signal.shape[1] // 7)
    np.testing.assert_allclose(pieces, whole, atol=1e-6 * np.abs(whole).max())


def test_memory_does_not_grow_with_the_recording() -> None:
    import tracemalloc

    minute = eeg(4, 60 * 256, 256.0)

    def peak_bytes(minutes: int) -> int:
        tracemalloc.start()
        n_samples = minutes * minute.shape[1]
        for _ in process(
            lambda a, b: np.take(minute, np.arange(a, b) % minute.shape[1], axis=1),
            n_samples,
            256.0,
            Preprocessing(sfreq=200.0, h_freq=75.0),
        ):
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak_bytes(5)  # the filters are designed once
    assert peak_bytes(40) < 1.1 * peak_bytes(8)


def test_no_channels_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match="No channels"):
        process(lambda a, b: np.zeros((2, b - a)), 100, 256.0, Preprocessing(), picks=[])
