"""Simulated persons who look at digits: real files, the toy's split, an order without blocks, a level that is kept."""

from __future__ import annotations

import csv
import io
import itertools
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ingesting import contents, times

pytest.importorskip("sklearn")
from ddscale.diffusion import toy_digits
from ddscale.recipes import check
from ddscale.sources import SimulatedEvokedSource, list_recordings
from ddscale.sources.simulation import digits, evoked


def source(folder, **given) -> SimulatedEvokedSource:
    given = {"subjects": 3, "pictures": 30, "pictures_per_recording": 20, "trial_s": 2.0, **given}
    return check(
        {"kind": "simulated-evoked", "dataset": "sim", "folder": str(folder), **given},
        SimulatedEvokedSource,
        "t",
    )


@pytest.fixture(scope="module")
def listing(tmp_path_factory):
    return list_recordings(source(tmp_path_factory.mktemp("evoked")))


def test_the_digits_are_the_toys_with_its_split_and_words():
    mine, toys = digits.load(), toy_digits.load_digits(digits.SIZE)
    assert (mine.labels == toys.labels).all()
    assert (mine.held_out == toys.held_out).all()
    assert digits.NAMES == toy_digits.NAMES
    for number in range(0, len(mine.labels), 97):
        drawn_HW3 = np.asarray(Image.open(io.BytesIO(digits.png(mine.scans[number]))))
        assert (drawn_HW3.transpose(2, 0, 1) == toys.images[number]).all()
        label = int(mine.labels[number])
        assert digits.caption_of(label) == toy_digits.caption_of(label)


def test_pictures_are_digits_and_the_toys_test_set_is_the_test_set(listing):
    known = digits.load()
    assert len(listing.pictures) == 30
    for picture in listing.pictures:
        number = int(picture.image.rpartition("-")[2])
        assert picture.split == ("test" if known.held_out[number] else "train")
        assert picture.label == str(known.labels[number])
        assert picture.caption == digits.caption_of(int(known.labels[number]))
        assert picture.read() == digits.png(known.scans[number])


def test_recordings_are_files_of_three_formats_with_every_picture_once_a_person(listing):
    assert [recording.id for recording in listing.recordings] == [
        f"simulated{person:02d}_run{run:02d}" for person in (1, 2, 3) for run in (1, 2)
    ]
    kinds, orders = Counter(), {}
    for recording in listing.recordings:
        with recording.open() as opened:
            kinds[Path(recording.path).suffix] += 1
            orders.setdefault(recording.subject, []).extend(trial.image for trial in opened.trials)
            assert opened.meta["simulated"] is True
            assert len(opened.channels) == 24
            spans = [(trial.start, trial.stop) for trial in opened.trials]
            assert all(stop <= start for (_, stop), (start, _) in itertools.pairwise(spans))
            assert spans[-1][1] <= opened.n_samples
            rms_C = opened.read(0, opened.n_samples).std(axis=1)
            assert 3 < np.median(rms_C) < 100  # µV, whatever the file is in
    assert kinds == {".edf": 2, ".vhdr": 2, ".fif": 2}
    assert all(sorted(order) == sorted(set(order)) and len(order) == 30 for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 3


def test_the_order_has_no_blocks(tmp_path):
    """Neighbours are of one class as often as chance has it."""
    given = source(tmp_path, subjects=1, pictures=1000, pictures_per_recording=1000)
    known = digits.load()
    list_recordings(given)
    (table,) = tmp_path.rglob("events.csv")
    with table.open() as file:
        labels = np.array([int(row["label"]) for row in csv.DictReader(file)])
    assert len(labels) == 1000
    share = Counter(known.labels[:1000].tolist())
    chance = sum((count / 1000) ** 2 for count in share.values())
    same = (labels[1:] == labels[:-1]).mean()
    assert abs(same - chance) < 4 * np.sqrt(chance * (1 - chance) / 999)


def test_written_once_and_the_same_anywhere(tmp_path):
    for place in ("a", "b"):
        for recording in list_recordings(source(tmp_path / place, subjects=3, pictures=10)).recordings:
            recording.open().close()
    without = [
        path.name for path in (tmp_path / "a").rglob("*.edf")
    ]  # EDF headers state when they were written
    without += [path.name for path in (tmp_path / "a").rglob("*.fif")] + [
        path.name for path in (tmp_path / "a").rglob("*.vmrk")
    ]
    assert contents(tmp_path / "a", without) == contents(tmp_path / "b", without)
    one, other = (list_recordings(source(tmp_path / place, subjects=3, pictures=10)) for place in ("a", "b"))
    for mine, theirs in zip(one.recordings, other.recordings, strict=True):
        with mine.open() as opened, theirs.open() as again:
            assert (opened.read(0, 500) == again.read(0, 500)).all()
    before = times(tmp_path / "a")
    for recording in list_recordings(source(tmp_path / "a", subjects=3, pictures=10)).recordings:
        recording.open().close()
    assert times(tmp_path / "a") == before


@pytest.mark.parametrize("snr_db", [-12.0, 6.0])
def test_what_is_evoked_has_the_stated_level(snr_db):
    """With and without the response, otherwise drawn alike: the difference is what pictures evoke."""
    device, onsets = evoked.DEVICES["cap24-edf"], [2.0 + 4.2 * i for i in range(40)]
    weights_nK = evoked.code(digits.load())[:40]

    def signal(level):
        return evoked.record(
            np.random.default_rng(1), np.random.default_rng(2), device, 175, onsets, weights_nK, 4.0, level
        )[1]

    ongoing_CT = signal(-300.0)
    evoked_CT = signal(snr_db) - ongoing_CT
    band = evoked._band
    ongoing = np.median(band(ongoing_CT, 128).var(axis=1))
    response = band(evoked_CT, 128).var(axis=1).mean() / (40 * 4.0 / 175)
    assert 10 * np.log10(response / ongoing) == pytest.approx(snr_db, abs=0.2)
    quiet = np.ones(evoked_CT.shape[1], bool)
    for onset in onsets:
        quiet[int((onset - 0.1) * 128) : int((onset + evoked.RESPONSE_S + 0.1) * 128)] = False
    assert np.abs(evoked_CT[:, quiet]).max() < 1e-3


def test_responses_tell_classes_and_pictures_apart():
    """What is evoked depends on the class and on the picture within it, in every person in a way of their own."""
    known = digits.load()
    code_NK = evoked.code(known)
    assert np.abs(code_NK.mean(axis=0)).max() < 1e-9
    means = np.stack([code_NK[known.labels == label].mean(axis=0) for label in range(10)])
    between = means[known.labels].var(axis=0).mean()
    assert 0.4 < between < 0.8  # of a variance of 1; the rest is within classes
    one, other = (evoked.draw_viewer(np.random.default_rng(seed)) for seed in (1, 2))
    assert not np.allclose(one.positions_K3, other.positions_K3)
    first, second = evoked.responses(one, 128.0), evoked.responses(other, 128.0)
    assert first.shape == second.shape == (evoked.COMPONENTS, round(evoked.RESPONSE_S * 128))
    alike = [np.corrcoef(a, b)[0, 1] for a, b in zip(first, second, strict=True)]
    assert 0.5 < np.median(alike) < 0.9999


def test_a_linear_decoder_tells_the_class_of_pictures_never_seen_and_nothing_from_shuffled_ones():
    """One person, 0 dB, 600 pictures to learn from and 200 others: averages over 0.1 s, a linear discriminant."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    known, device = digits.load(), evoked.DEVICES["cap24-edf"]
    shown = np.random.default_rng(5).permutation(800)
    onsets = [2.0 + 2.25 * i for i in range(800)]
    _, signal_CT = evoked.record(
        np.random.default_rng(1),
        np.random.default_rng(2),
        device,
        1810,
        onsets,
        evoked.code(known)[shown],
        2.0,
        0.0,
    )
    quick_CT = evoked._band(signal_CT, 128)
    starts = [round(onset * 128) for onset in onsets]
    features = np.stack([quick_CT[:, s : s + 192].reshape(24, 16, 12).mean(axis=2).ravel() for s in starts])
    labels = known.labels[shown]
    decoder = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(features[:600], labels[:600])
    predicted = decoder.predict(features[600:])
    assert (predicted == labels[600:]).mean() > 0.6
    shuffled = np.random.default_rng(6).permutation(labels[600:])
    # Four standard errors around a tenth.
    assert abs((predicted == shuffled).mean() - 0.1) < 4 * np.sqrt(0.09 / 200)
