"""Windows that begin with an onset, and the pictures that go with them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from paired import picture

from ddscale.store import ArrayRecording, ImageFile, StagedTrial, open_store, write_store
from ddscale.stream.device import materialise, stretch
from ddscale.stream.loader import Loader
from ddscale.stream.pictures import StorePictures
from ddscale.stream.settings import Divide, StreamSettings

T, SFREQ = 64, 64.0


def write(path, dataset, backend="tar", lengths=(64, 64, 64), seed=0, pictures=6):
    """Three subjects with 12 trials each; picture i is `pi`, of split test for 0, val for 1, else train."""
    rng = np.random.default_rng(seed)
    recordings = []
    for subject, length in enumerate(lengths):
        shown = rng.permutation(np.repeat(np.arange(pictures), 2)).tolist()
        blocks = [
            (i * 100, rng.integers(-3000, 3000, (3 + subject, length)) * 0.1) for i, _ in enumerate(shown)
        ]
        trials = [
            StagedTrial(
                image=f"p{i}", label=f"c{i % 2}", caption=f"number {i}", repetition=shown[:place].count(i)
            )
            for place, i in enumerate(shown)
        ]
        names = [f"C{i}" for i in range(3 + subject)]
        recordings.append(ArrayRecording(dataset, f"s{subject}", f"r{subject}", names, blocks, trials=trials))
    splits = {0: "test", 1: "val"}
    images = [
        ImageFile(dataset, f"p{i}", "png", "memory", lambda i=i: picture(100 * seed + i), f"c{i % 2}", f"number {i}",
                  splits.get(i, "train"))
        for i in range(pictures)
    ]  # fmt: skip
    write_store(
        path, recordings, sfreq=SFREQ, backend=backend, record_s=2, shard_mb=0.02, chunk_s=0.5, images=images
    )
    return str(path)


@pytest.fixture(scope="module", params=["tar", "zarr"])
def stores(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trials")
    return [
        write(folder / "one", "one", request.param),
        write(folder / "two", "two", request.param, seed=1, pictures=4),
    ]


def settings(stores, **given) -> StreamSettings:
    return StreamSettings(**{"stores": stores, "window_samples": T, "cut": "trials", "seed": 3, **given})


def everything(loader, steps=None):
    """position -> (picture, label of the record read, window)."""
    found = {}
    for step, batches in enumerate(loader):
        if step == steps:
            break
        for batch in batches:
            for i in range(len(batch)):
                if batch.positions[i] >= 0:
                    found[int(batch.positions[i])] = (int(batch.images[i]), batch.window(i).clone())
                else:
                    assert batch.images[i] == -1
    return found


def test_each_trial_comes_once_an_epoch_with_its_own_picture(stores):
    opened = [open_store(path) for path in stores]
    with Loader(settings(stores), global_batch_size=4, micro_batch_size=2) as loader:
        # Of six pictures four are trained on, of four two; each twice to three persons.
        assert loader.windows_per_epoch == 3 * 2 * (4 + 2)
        found = everything(loader, loader.windows_per_epoch // 4)
        where = loader.locate(np.array(sorted(found)))
        names = loader.pictures.names
    assert len(names) == 10
    assert (
        len({(s, r) for s, r in zip(where.store.tolist(), where.row.tolist(), strict=True)})
        == len(found)
        == 36
    )
    assert (where.start == 0).all()
    for position, store, row in zip(sorted(found), where.store.tolist(), where.row.tolist(), strict=True):
        image, window_TC = found[position]
        said = opened[store].table(["dataset", "image"]).slice(row, 1).to_pylist()[0]
        assert names[image] == f"{said['dataset']}/{said['image']}"
        assert (window_TC.numpy() == opened[store].read(row, 0, T)).all()


def test_the_order_depends_on_neither_ranks_nor_threads_and_resumes(stores):
    def of(world_size, threads, state=None, steps=6):
        merged = {}
        for rank in range(world_size):
            given = settings(stores, reader_threads=threads)
            with Loader(
                given,
                global_batch_size=12,
                micro_batch_size=12 // world_size,
                rank=rank,
                world_size=world_size,
            ) as loader:
                if state:
                    loader.restore(state)
                merged |= {p: (i, w.numpy().tobytes()) for p, (i, w) in everything(loader, steps).items()}
                last = loader.state()
        return merged, last

    whole, _ = of(1, 0)
    _, state = of(1, 0, steps=2)
    state = json.loads(json.dumps(state)) | {"samples_seen": 24}
    for world_size, threads in ((1, 2), (2, 0), (3, 1)):
        assert of(world_size, threads)[0] == whole
        assert of(world_size, threads, state, 4)[0] == {p: v for p, v in whole.items() if p >= 24}
    with pytest.raises(ValueError, match=r"data.cut was 'trials' and is 'sliding'"):
        Loader(settings(stores, cut="sliding"), global_batch_size=12, micro_batch_size=12).restore(state)


@pytest.mark.parametrize("split", ["val", "test"])
def test_held_out_pictures_are_all_that_a_fixed_loader_gives(stores, split):
    seen = []
    for rank in range(2):
        with Loader.fixed(
            settings(stores), split, windows=100, micro_batch_size=5, rank=rank, world_size=2
        ) as loader:
            assert loader.windows_per_epoch == 3 * 2 * 2
            first = everything(loader)
            assert {loader.pictures.splits[image] for image, _ in first.values()} == {split}
            again = everything(loader)
            assert {p: i for p, (i, _) in again.items()} == {p: i for p, (i, _) in first.items()}
            seen += list(first)
    assert sorted(seen) == list(range(12))


def test_pictures_of_all_stores_are_one_list(stores):
    pictures = StorePictures([open_store(path) for path in stores])
    assert pictures.names == [*(f"one/p{i}" for i in range(6)), *(f"two/p{i}" for i in range(4))]
    assert pictures.captions[7] == "number 1"
    assert pictures.labels[7] == "c1"
    assert pictures.splits == ["test", "val", *4 * ["train"], "test", "val", "train", "train"]
    assert [pictures.read(row) for row in (0, 5, 6, 9)] == [picture(i) for i in (0, 5, 100, 103)]
    assert len(pictures) == 10
    with pytest.raises(IndexError, match="There are 10 pictures, asked for number 10"):
        pictures.read(10)
    other = StorePictures([open_store(path) for path in reversed(stores)])
    assert len(pictures.fingerprint) == 64
    assert pictures.fingerprint != other.fingerprint
    assert pictures.fingerprint == StorePictures([open_store(path) for path in stores]).fingerprint


def test_short_trials_are_padded_or_stretched_and_normalised_by_what_was_recorded(tmp_path):
    path = write(tmp_path / "short", "short", lengths=(64, 40, 63))
    store = open_store(path)
    padded, stretched, rows = {}, {}, {}
    for how, found in (("pad", padded), ("stretch", stretched)):
        for norm in (StreamSettings(stores=["x"]).normalisation, Divide(by_uv=10.0)):
            given = settings([path], short_trials=how, normalisation=norm)
            with Loader.fixed(given, "train", windows=100, micro_batch_size=7) as loader:
                for (batch,) in loader:
                    x_BTC = materialise(batch, "cpu", loader.step_uv, 8, norm)
                    for i in (batch.positions >= 0).nonzero()[:, 0].tolist():
                        position = int(batch.positions[i])
                        found[norm.kind, position] = x_BTC[i]
                        rows[position] = int(loader.locate(np.array([position])).row[0])
    assert len(rows) == 24
    for position, row in rows.items():
        length = int(store.samples[row])
        stored_LC = store.read(row, 0, length).astype(np.float64) * store.step
        channels = stored_LC.shape[1]
        expected = {
            "zscore": (stored_LC - stored_LC.mean(axis=0)) / stored_LC.std(axis=0),
            "divide": stored_LC / 10,
        }
        for kind, values_LC in expected.items():
            pad_TC = padded[kind, position].numpy()
            assert np.abs(pad_TC[:length, :channels] - values_LC).max() < 1e-4
            assert (pad_TC[length:] == 0).all()
            grid = np.linspace(0, length - 1, T)
            drawn_TC = np.stack(
                [np.interp(grid, np.arange(length), column) for column in values_LC.T], axis=1
            )
            assert np.abs(stretched[kind, position].numpy()[:, :channels] - drawn_TC).max() < 1e-4


def test_stretching_is_dreamdiffusions():
    from scipy.interpolate import interp1d

    x = np.random.default_rng(0).normal(size=(2, 440, 3)).astype(np.float32)
    theirs = interp1d(np.linspace(0, 1, 440), x, axis=1)(np.linspace(0, 1, 512))
    ours = stretch(torch.from_numpy(x), 512).numpy()
    assert np.abs(ours - theirs).max() < 1e-5
    assert (ours[:, [0, -1]] == x[:, [0, -1]]).all()


def test_sliding_windows_of_a_store_with_trials_know_their_pictures_too(stores):
    with Loader(
        settings(stores, cut="sliding", window_samples=32), global_batch_size=6, micro_batch_size=6
    ) as loader:
        assert loader.windows_per_epoch == 2 * 36
        assert all(image >= 0 for image, _ in everything(loader, 4).values())


def test_of_a_trial_longer_than_a_window_the_beginning_is_taken(stores):
    opened = [open_store(path) for path in stores]
    with Loader(settings(stores, window_samples=32), global_batch_size=6, micro_batch_size=6) as loader:
        assert loader.windows_per_epoch == 36
        found = everything(loader, 6)
        where = loader.locate(np.array(sorted(found)))
    assert len({(s, r) for s, r in zip(where.store.tolist(), where.row.tolist(), strict=True)}) == 36
    for position, store, row in zip(sorted(found), where.store.tolist(), where.row.tolist(), strict=True):
        assert (found[position][1].numpy() == opened[store].read(row, 0, 32)).all()


def test_a_store_without_trials_says_what_to_do(tmp_path):
    signal_CT = np.random.default_rng(0).normal(size=(3, 200)) * 10
    write_store(
        tmp_path / "plain", [ArrayRecording("d", "s", "r", ["a", "b", "c"], [(0, signal_CT)])], sfreq=SFREQ
    )
    with pytest.raises(
        ValueError, match=r"plain holds no trials, only continuous recordings: set data.cut: sliding"
    ):
        Loader(settings([str(tmp_path / "plain")]), global_batch_size=2, micro_batch_size=2)
    with pytest.raises(ValueError, match=r"plain holds no pictures"):
        StorePictures([open_store(tmp_path / "plain")])
    with Loader(
        settings([str(tmp_path / "plain")], cut="sliding"), global_batch_size=2, micro_batch_size=2
    ) as loader:
        assert loader.pictures is None
        (batch,) = next(loader)
        assert batch.images.tolist() == [-1, -1]


def test_continuous_recordings_beside_trials_give_no_windows_then(stores, tmp_path):
    signal_CT = np.random.default_rng(0).normal(size=(3, 200)) * 10
    write_store(
        tmp_path / "plain",
        [ArrayRecording("aa", "s", "r", ["a", "b", "c"], [(0, signal_CT)])],
        sfreq=SFREQ,
        record_s=4,
    )
    mixed = [str(tmp_path / "plain"), *stores]
    with Loader(settings(mixed), global_batch_size=6, micro_batch_size=6) as loader:
        assert loader.windows_per_epoch == 36
        assert all(image >= 0 for image, _ in everything(loader, 6).values())
    with Loader(settings(mixed, cut="sliding"), global_batch_size=39, micro_batch_size=39) as loader:
        assert loader.windows_per_epoch == 36 + 3
        found = everything(loader, 1)
        assert sum(image == -1 for image, _ in found.values()) == 3


def test_a_split_without_trials_says_what_to_do(tmp_path):
    path = write(tmp_path / "two", "two", pictures=1)
    with pytest.raises(ValueError, match=r"Split 'val' of .* has no trial.*splits.val_images"):
        Loader.fixed(settings([path]), "val", windows=4, micro_batch_size=2)


def test_an_unreadable_trial_is_invalid_and_named(tmp_path):
    path = write(tmp_path / "one", "one")
    for shard in Path(path).glob("*.tar"):
        content = shard.read_bytes()
        shard.write_bytes(content[: len(content) // 2])
    with Loader.fixed(settings([path]), "train", windows=100, micro_batch_size=8) as loader:
        valid = torch.cat([batch.valid[batch.positions >= 0] for (batch,) in loader])
        assert 0 < int(valid.sum()) < len(valid) == 24
        assert all(fault.record.startswith("one-r") for fault in loader.faults)
