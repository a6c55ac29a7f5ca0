"""The loader on real stores: the same global batches however they are read."""

from __future__ import annotations

import gc
import itertools
import json
import threading
import time

import numpy as np
import pytest

from ddscale.store import ArrayRecording, open_store, write_store
from ddscale.stream.loader import Loader
from ddscale.stream.settings import StreamSettings
from ddscale.stream.windows import WindowIndex

T, G = 64, 24
SFREQ = 64.0


def recording(dataset, subject, channels, lengths, seed):
    """Records of unrelated values, so that no two windows are alike."""
    rng = np.random.default_rng([seed, channels])
    starts = np.cumsum([0, *lengths])
    blocks = [rng.integers(-30_000, 30_000, (channels, n)) * 0.1 for n in lengths]
    names = [f"C{i}" for i in range(channels)]
    return ArrayRecording(
        dataset, subject, f"{subject}-{seed}", names, list(zip(starts.tolist(), blocks, strict=False))
    )


def write(path, backend, seed=0, **given):
    recordings = [
        recording("aa", "s1", 5, [640, 640, 333], seed + 1),
        recording("aa", "s2", 5, [640], seed + 2),
        recording("bb", "s1", 20, [640, 200, 63], seed + 3),
        recording("cc", "s1", 3, [500, 640], seed + 4),
        recording("cc", "s1", 7, [640], seed + 5),
        recording("bb", "s9", 20, [640, 640, 600], seed + 6),
    ]
    write_store(
        path,
        recordings,
        sfreq=SFREQ,
        backend=backend,
        record_s=10,
        shard_mb=0.03,
        chunk_s=1.0,
        val_subjects=["bb/s9"],
        **given,
    )
    return str(path)


@pytest.fixture(scope="module", params=["tar", "zarr"])
def store(request, tmp_path_factory):
    return write(tmp_path_factory.mktemp("stream") / request.param, request.param)


def settings(*stores, **given) -> StreamSettings:
    return StreamSettings(**{"stores": list(stores), "window_samples": T, "seed": 11, **given})


def contents(batch):
    """For each position: everything about it, its window as bytes."""
    return {
        int(batch.positions[i]): (
            int(batch.mask_seeds[i]),
            int(batch.datasets[i]),
            bool(batch.valid[i]),
            int(batch.channels[i]),
            batch.window(i).numpy().tobytes(),
        )
        for i in range(len(batch))
    }


def global_batches(given, world_size, micro, steps, state=None, **loader):
    """What all ranks together get: one dict of positions per step."""
    merged = [{} for _ in range(steps)]
    states = []
    for rank in range(world_size):
        with Loader(
            given,
            global_batch_size=G,
            micro_batch_size=micro,
            rank=rank,
            world_size=world_size,
            **loader,
        ) as loaded:
            if state is not None:
                loaded.restore(state)
            for step, batches in zip(merged, loaded, strict=False):
                assert [len(batch) for batch in batches] == [micro] * (G // world_size // micro)
                for batch in batches:
                    part = contents(batch)
                    assert len(part) == micro
                    assert list(part) == sorted(part)
                    assert all(position % world_size == min(part) % world_size for position in part)
                    assert not step.keys() & part.keys()
                    step |= part
            states.append(loaded.state())
    assert all(state == states[0] for state in states)
    return merged, states[0]


@pytest.mark.parametrize("shuffle", ["global", "block"])
def test_same_global_batches_on_any_ranks_and_threads(store, shuffle):
    """Two epochs and more, then again from the middle, by 1, 2, 3, 4, 8 ranks with 0, 1, 3 reader threads."""
    plain = settings(store, reader_threads=0, shuffle=shuffle, block_shards=2)
    with Loader(plain, global_batch_size=G, micro_batch_size=G) as loader:
        epoch = loader.windows_per_epoch
    assert epoch % G, "the end of an epoch should fall inside a batch"
    steps = 2 * epoch // G + 2
    middle = steps // 2
    expected, _ = global_batches(plain, 1, G, steps)
    _, state = global_batches(plain, 1, G, middle)
    state = json.loads(json.dumps(state))

    everything = {}
    for k, step in enumerate(expected):
        assert sorted(step) == list(range(k * G, (k + 1) * G))
        everything |= step
    for first in (0, epoch):
        windows = [everything[position][-1] for position in range(first, first + epoch)]
        assert len(set(windows)) == epoch, "every window exactly once"
    assert [everything[p][-1] for p in range(epoch)] != [everything[p][-1] for p in range(epoch, 2 * epoch)]

    for world_size, threads in itertools.product((1, 2, 3, 4, 8), (0, 1, 3)):
        given = plain.model_copy(update={"reader_threads": threads, "prefetch": 2})
        micro = {1: 8, 2: 4, 3: 8, 4: 6, 8: 1}[world_size]
        whole, _ = global_batches(given, world_size, micro, steps)
        assert whole == expected, (world_size, threads)
        resumed, _ = global_batches(given, world_size, micro, steps - middle, state)
        assert resumed == expected[middle:], (world_size, threads)


def test_windows_are_what_the_store_holds(store):
    opened = open_store(store)
    given = settings(store, overlap=0.5)
    loader = Loader(given, global_batch_size=G, micro_batch_size=G)
    batches, _ = global_batches(given, 2, 4, 5)
    for position, (_, dataset, valid, channels, window) in itertools.chain(*(b.items() for b in batches)):
        at = loader.locate(np.array([position]))
        held = opened.read(int(at.row[0]), int(at.start[0]), int(at.start[0]) + T)
        assert held.tobytes() == window
        assert held.any()
        assert valid
        assert channels == opened.channels[at.row[0]]
        assert dataset == at.dataset[0]


def test_both_backends_hold_the_same_windows(tmp_path):
    epochs = []
    for backend in ("tar", "zarr"):
        given = settings(write(tmp_path / backend, backend))
        with Loader(given, global_batch_size=1, micro_batch_size=1) as loader:
            steps = itertools.islice(loader, loader.windows_per_epoch)
            epochs.append([batch.window(0).numpy().tobytes() for (batch,) in steps])
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert len(set(epochs[0])) == len(epochs[0]) > 2 * G


def test_mixture_of_two_stores(tmp_path):
    one = write(tmp_path / "one", "tar")
    two = write(tmp_path / "two", "zarr", seed=100)
    given = settings(one, two, weights={"aa": 0.5, "bb": 0.25, "cc": 0.25})
    batches, _ = global_batches(given, 2, 4, 10)
    for step in batches:
        assert np.bincount([window[1] for window in step.values()]).tolist() == [12, 6, 6]
    # Each dataset is passed through whole, over both stores.
    index = WindowIndex([open_store(one), open_store(two)], "train", given)
    drawn = [window[-1] for step in batches for window in step.values() if window[1] == 0]
    assert len(drawn) == 120 > len(index.windows_of(0)) > 60
    assert len(set(drawn[: len(index.windows_of(0))])) == len(index.windows_of(0))


def test_position_is_all_there_is_to_resume(store):
    given = settings(store)
    whole, _ = global_batches(given, 1, 8, 6)
    assert global_batches(given, 2, 4, 3, start_position=3 * G)[0] == whole[3:]
    far, state = global_batches(given, 1, 8, 1, start_position=10**9)
    assert sorted(far[0]) == list(range(10**9, 10**9 + G))
    assert state["samples_seen"] == 10**9 + G


def test_another_batch_size_goes_on_at_the_same_position(store):
    given = settings(store)
    whole, _ = global_batches(given, 1, 8, 4)
    with Loader(given, global_batch_size=10, micro_batch_size=5, start_position=G) as loader:
        batches = [contents(batch) for batch in next(loader)]
    positions = list(range(G, G + 10))
    assert list(batches[0]) + list(batches[1]) == positions
    assert [(batches[0] | batches[1])[p] for p in positions] == [whole[p // G][p] for p in positions]


def test_stopping_and_going_on_in_one_process(store):
    given = settings(store)
    whole, _ = global_batches(given, 1, 8, 4)
    loader = Loader(given, global_batch_size=G, micro_batch_size=8)
    got = [{k: v for batch in next(loader) for k, v in contents(batch).items()}]
    loader.close()
    loader.close()
    got += [
        {k: v for batch in batches for k, v in contents(batch).items()}
        for batches in itertools.islice(loader, 3)
    ]
    loader.close()
    assert got == whole


# -- restoring -------------------------------------------------------------------------------------------------


def test_changed_store_is_named(tmp_path):
    path = write(tmp_path / "s", "tar")
    with Loader(settings(path), global_batch_size=G, micro_batch_size=8) as loader:
        next(loader)
        state = loader.state()
    before = open_store(path).fingerprint
    write_store(
        path, [recording("aa", "s7", 5, [640], 50)], sfreq=SFREQ, record_s=10, shard_mb=0.03, chunk_s=1.0
    )
    after = open_store(path).fingerprint
    with (
        Loader(settings(path), global_batch_size=G, micro_batch_size=8) as loader,
        pytest.raises(ValueError, match=f"Then: .*{before[:16]}.*Now: .*{after[:16]}"),
    ):
        loader.restore(state)


def test_a_store_may_move(tmp_path):
    path = write(tmp_path / "here", "tar")
    expected, _ = global_batches(settings(path), 1, 8, 4)
    _, state = global_batches(settings(path), 1, 8, 2)
    moved = (tmp_path / "here").rename(tmp_path / "there")
    assert global_batches(settings(str(moved)), 1, 8, 2, state)[0] == expected[2:]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seed": 12}, r"data.seed was 11 and is 12"),
        ({"window_samples": 32}, r"data.window_samples was 64 and is 32"),
        ({"shuffle": "block"}, r"data.shuffle was 'global' and is 'block'"),
        ({"weights": {"aa": 1.0, "bb": 1.0, "cc": 1.0}}, r"data.weights was None"),
    ],
)
def test_changed_settings_are_named(store, changed, said):
    with Loader(settings(store), global_batch_size=G, micro_batch_size=8) as loader:
        state = loader.state()
    with (
        Loader(settings(store, **changed), global_batch_size=G, micro_batch_size=8) as loader,
        pytest.raises(ValueError, match=said),
    ):
        loader.restore(state)


def test_what_does_not_change_the_order_may_change(store):
    _, state = global_batches(settings(store), 1, 8, 1)
    changed = settings(store, reader_threads=1, prefetch=9, n_channels=7, block_shards=3, max_unreadable=0)
    with Loader(changed, global_batch_size=G, micro_batch_size=8) as loader:
        loader.restore(state)
        assert loader.samples_seen == G


def test_another_permutation_is_noticed(store):
    with (
        Loader(settings(store), global_batch_size=G, micro_batch_size=8) as loader,
        pytest.raises(ValueError, match="versions of grain"),
    ):
        loader.restore({**loader.state(), "probe": 1})


# -- fixed windows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("windows", [1, 7, 16, 10_000])
def test_fixed_windows(store, world_size, windows):
    given = settings(store, weights={"aa": 1.0, "bb": 1.0, "cc": 1.0}, shuffle="block")
    index = WindowIndex([open_store(store)], "val", given)
    expected = min(windows, len(index))
    passes = []
    for _ in range(2):
        seen, counts = {}, set()
        for rank in range(world_size):
            loader = Loader.fixed(
                given, windows=windows, micro_batch_size=4, rank=rank, world_size=world_size
            )
            for again in range(2):
                batches = [batch for (batch,) in loader]
                counts.add(len(batches))
                if again:
                    continue
            with loader:
                for (batch,) in loader:
                    filled = batch.positions < 0
                    assert (batch.valid == ~filled).all()
                    assert (batch.datasets[filled] == -1).all()
                    assert all(not batch.window(i).any() for i in filled.nonzero()[:, 0].tolist())
                    part = contents(batch)
                    part.pop(-1, None)
                    assert not seen.keys() & part.keys()
                    seen |= part
        assert sorted(seen) == list(range(expected))
        assert counts == {-(-expected // (4 * world_size))}
        assert len({window[-1] for window in seen.values()}) == expected
        passes.append(seen)
    assert passes[0] == passes[1]


def test_fixed_windows_are_the_same_on_any_world_size(store):
    seen = []
    for world_size in (1, 3):
        merged = {}
        for rank in range(world_size):
            with Loader.fixed(
                settings(store), windows=13, micro_batch_size=4, rank=rank, world_size=world_size
            ) as loader:
                for (batch,) in loader:
                    merged |= contents(batch)
        merged.pop(-1, None)
        seen.append(merged)
    assert seen[0] == seen[1]


def test_no_validation_split(tmp_path):
    path = tmp_path / "s"
    write_store(path, [recording("aa", "s1", 5, [640], 1)], sfreq=SFREQ, record_s=10)
    with pytest.raises(ValueError, match="'val'.*has no record"):
        Loader.fixed(settings(str(path)), windows=4, micro_batch_size=4)


# -- buffers, threads, time ------------------------------------------------------------------------------------


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("ddscale-reader")]


@pytest.mark.parametrize(("prefetch", "micro", "slots"), [(1, 24, 2), (4, 24, 5), (1, 2, 24), (30, 2, 42)])
def test_as_much_is_read_ahead_as_asked_and_at_least_a_step(store, prefetch, micro, slots):
    with Loader(
        settings(store, reader_threads=1, prefetch=prefetch), global_batch_size=24, micro_batch_size=micro
    ) as loader:
        next(loader)
        assert len(loader._slots) == slots


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("micro", [2, 24])
def test_a_step_stays_as_it_is_until_the_next_is_asked_for(store, threads, micro):
    with Loader(
        settings(store, reader_threads=threads, prefetch=1), global_batch_size=G, micro_batch_size=micro
    ) as loader:
        for _ in range(5):
            step = next(loader)
            before = [contents(batch) for batch in step]
            time.sleep(0.02)
            assert [contents(batch) for batch in step] == before


def test_several_reads_at_once_fill_the_same_batches(store):
    plain, parallel = settings(store, reader_threads=0), settings(store, reader_threads=2, reads_at_once=5)
    with (
        Loader(plain, global_batch_size=G, micro_batch_size=12) as one,
        Loader(parallel, global_batch_size=G, micro_batch_size=12) as other,
    ):
        for _ in range(6):
            assert [contents(batch) for batch in next(one)] == [contents(batch) for batch in next(other)]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ddscale-read")]


def test_memory_is_allocated_once(store):
    with Loader(settings(store, prefetch=3), global_batch_size=G, micro_batch_size=8) as loader:
        places = {batch.flat.data_ptr() for step in itertools.islice(loader, 20) for batch in step}
    assert len(places) == 3 + 3


def test_closing_and_dropping_end_the_threads(store):
    assert not readers()
    loader = Loader(settings(store, reader_threads=3), global_batch_size=G, micro_batch_size=8)
    assert not readers(), "nothing runs before the first step is asked for"
    next(loader)
    assert len(readers()) == 3
    loader.close()
    assert not readers()
    next(loader)
    assert len(readers()) == 3
    del loader
    gc.collect()
    assert not readers()


def test_waiting_is_measured(store):
    with Loader(settings(store), global_batch_size=G, micro_batch_size=8) as loader:
        next(loader)
        first = loader.waited_s
        assert first > 0
        next(loader)
        assert loader.waited_s > first
        assert (loader.step_uv, loader.sfreq, loader.window_s) == (0.1, SFREQ, 1.0)
        assert loader.datasets == ["aa", "bb", "cc"]


def test_float32_store(tmp_path):
    path = tmp_path / "s"
    block = np.random.default_rng(0).normal(0, 20, (5, 640)).astype(np.float32)
    names = [f"C{i}" for i in range(5)]
    write_store(
        path, [ArrayRecording("aa", "s", "r", names, [(0, block)])], sfreq=SFREQ, record_s=10, dtype="float32"
    )
    with Loader(settings(str(path)), global_batch_size=10, micro_batch_size=10) as loader:
        (batch,) = next(loader)
        assert loader.step_uv == 1.0
        windows = {batch.window(i).numpy().tobytes() for i in range(10)}
    assert windows == {np.ascontiguousarray(block[:, t : t + T].T).tobytes() for t in range(0, 640, T)}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"global_batch_size": 100, "micro_batch_size": 8, "world_size": 3}, r"100 .* 3 ranks .* 96 or 120"),
        ({"global_batch_size": 4, "micro_batch_size": 8}, r"global_batch_size to 8,"),
        ({"global_batch_size": 8, "micro_batch_size": 8, "rank": 1}, r"Rank 1 of 1"),
        ({"global_batch_size": 0, "micro_batch_size": 8}, r"at least 1"),
    ],
)
def test_batch_sizes_that_do_not_fit(store, given, said):
    with pytest.raises(ValueError, match=said):
        Loader(settings(store), **given)


def test_what_a_model_says_of_its_windows_names_filters_only_where_all_stores_had_them(tmp_path):
    paths = [write(tmp_path / name, "tar", seed) for seed, name in enumerate(("one", "two"))]
    opened = [open_store(path) for path in paths]
    loader = Loader(settings(*paths), global_batch_size=G, micro_batch_size=G, stores=opened)
    assert "preprocessing" not in loader.of_windows()  # written from arrays: nobody knows
    for second, known in ((0.5, True), (1.0, False)):
        for store, l_freq in zip(opened, (0.5, second), strict=True):
            store.content = store.content.model_copy(update={"filters": {"l_freq": l_freq}})
        said = loader.of_windows()
        assert said.get("preprocessing") == ({"l_freq": 0.5} if known else None)
        assert said["sfreq"] == SFREQ
        assert [entry["path"] for entry in said["stores"]] == paths
