"""The order of windows as a pure function: permutation, blocks, mixtures, seeking."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

from ddscale.stream.order import Order
from ddscale.stream.settings import StreamSettings


class Numbers:
    """An index of windows that lie nowhere: datasets by size, shards of equal size."""

    split = "train"

    def __init__(self, shard=10, **sizes):
        self.datasets = sorted(sizes)
        self.edges = np.cumsum([0, *(sizes[name] for name in self.datasets)])
        self.shard = shard

    def __len__(self):
        return int(self.edges[-1])

    def windows_of(self, dataset):
        return range(int(self.edges[dataset]), int(self.edges[dataset + 1]))

    def shard_edges(self):
        return np.unique(
            [
                self.edges[-1],
                *(w for d in range(len(self.datasets)) for w in self.windows_of(d)[:: self.shard]),
            ]
        )

    def locate(self, windows):
        return None


def order(index, **given) -> Order:
    return Order(index, StreamSettings(stores=["a"], **given))


@pytest.mark.parametrize(
    "sizes", [{"a": 700, "b": 301}, {"a": 17_000, "b": 301}, {"a": 2**14 - 1}, {"a": 2**14}]
)
def test_every_window_once_per_epoch_and_each_epoch_anew(sizes):
    index = Numbers(**sizes)
    total = len(index)
    drawn = order(index, seed=5).windows_at(np.arange(3 * total)).reshape(3, total)
    for epoch in drawn:
        assert sorted(epoch) == list(range(total))
    assert not (drawn[0] == drawn[1]).all()
    assert not (drawn[1] == drawn[2]).all()
    # Seeds are hashed before use: the next seed's epoch is not this seed's next epoch.
    assert not (order(index, seed=6).windows_at(np.arange(total)) == drawn[1]).all()


def test_positions_may_be_asked_in_any_order():
    shuffled = order(Numbers(a=97))
    asked = np.random.default_rng(0).integers(0, 500, 200)
    assert (shuffled.windows_at(asked) == shuffled.windows_at(np.arange(500))[asked]).all()


@pytest.mark.parametrize("count", [10_000, 20_000])
def test_the_permutation_mixes(count):
    drawn = order(Numbers(a=count)).windows_at(np.arange(count))
    assert abs(np.corrcoef(drawn, np.arange(count))[0, 1]) < 0.05
    assert (abs(np.diff(drawn)) == 1).mean() < 0.01


@pytest.mark.parametrize("shuffle", ["global", "block"])
@pytest.mark.parametrize("weights", [None, {"a": 0.7, "b": 0.3}])
def test_seeking_to_a_billion(shuffle, weights):
    """Position 10**9 of 100 M windows, from nothing: the same as when walked up to, and as another epoch's start."""
    index = Numbers(shard=100_000, a=70_000_000, b=30_000_000)
    far = np.arange(10**9 - 3, 10**9 + 3)
    windows = order(index, shuffle=shuffle, weights=weights).windows_at(far)
    again = order(index, shuffle=shuffle, weights=weights)
    assert [again.windows_at(np.array([p]))[0] for p in far.tolist()] == windows.tolist()
    assert len(set(windows.tolist())) == 6
    assert (windows < 10**8).all()


def test_golden_order():
    """Pins grain's permutation and our seeds: a change here is a change of every run's data."""
    index = Numbers(shard=1000, a=70_000, b=301)  # a is grain's to permute, b is among the few
    at = np.array([0, 1, 2, 3, 1000, 70_301, 10**9])
    assert order(index, seed=5).windows_at(at).tolist() == GOLDEN["global"]
    assert order(index, seed=5, shuffle="block").windows_at(at).tolist() == GOLDEN["block"]
    assert order(index, seed=5, weights={"a": 0.25, "b": 0.75}).windows_at(at).tolist() == GOLDEN["mixture"]


def test_the_same_in_another_process():
    code = (
        "import numpy as np, sys; sys.path.insert(0, 'tests/unit')\n"
        "from test_stream_order import Numbers, order\n"
        "print(order(Numbers(a=700, b=301), weights={'b': 1.0, 'a': 0.5}).windows_at(np.arange(50)).tolist())"
    )
    here = order(Numbers(a=700, b=301), weights={"a": 0.5, "b": 1.0}).windows_at(np.arange(50)).tolist()
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    for seed in ("1", "2"):
        said = subprocess.run(
            [sys.executable, "-c", code],
            cwd=root,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": root},
            capture_output=True,
            text=True,
            check=True,
        )
        assert said.stdout == f"{here}\n"
        assert "jax" not in said.stderr


# -- mixtures --------------------------------------------------------------------------------------------------


def drawn_datasets(index, weights, positions, **given):
    windows = order(index, weights=weights, **given).windows_at(positions)
    return np.searchsorted(index.edges, windows, side="right") - 1


@pytest.mark.parametrize(
    "weights",
    [
        {"a": 0.3, "b": 0.7},
        {"a": 1.0, "b": 1.0099},  # grain's own mix would round this to equal parts
        {"a": 0.001, "b": 0.999},
        {"a": 5.0, "b": 3.0, "c": 2.0, "d": 0.123},
        {f"{i:03d}": 1.0 + i for i in range(100)},
    ],
)
def test_mixture_proportions_are_exact(weights):
    index = Numbers(**{name: 37 + 5 * i for i, name in enumerate(weights)})
    exact = {name: Fraction(repr(weight)) for name, weight in weights.items()}
    whole = sum(exact.values())
    drawn = drawn_datasets(index, weights, np.arange(20_000))
    for start, stop in ((0, 20_000), (0, 100), (7_000, 12_345), (19_000, 20_000)):
        counts = np.bincount(drawn[start:stop], minlength=len(weights))
        expected = np.array([float(exact[name] / whole * (stop - start)) for name in index.datasets])
        # log2(100 datasets) floors on the way, at both ends
        assert abs(counts - expected).max() < 4


def test_over_a_period_proportions_are_exact_to_the_last():
    index = Numbers(a=10, b=10, c=10)
    drawn = drawn_datasets(index, {"a": 0.2, "b": 0.5, "c": 0.3}, np.arange(10**9, 10**9 + 10))
    assert np.bincount(drawn).tolist() == [2, 5, 3]


def test_in_a_mixture_each_dataset_is_still_passed_through_whole():
    index = Numbers(a=40, b=1000)
    windows = order(index, weights={"a": 0.5, "b": 0.5}).windows_at(np.arange(2000))
    small = windows[windows < 40]
    assert len(small) == 1000
    for epoch in small.reshape(25, 40):
        assert sorted(epoch) == list(range(40))
    assert sorted(windows[windows >= 40]) == list(range(40, 1040))


def test_weight_zero_leaves_a_dataset_out():
    index = Numbers(a=10, b=20, c=30)
    mixed = order(index, weights={"a": 1.0, "b": 0.0, "c": 1.0})
    assert len(mixed) == 40
    assert set(drawn_datasets(index, {"a": 1.0, "b": 0.0, "c": 1.0}, np.arange(200))) == {0, 2}


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"a": 1.0, "slep": 1.0}, r"'slep', which no store has. Did you mean 'sleep'"),
        ({"a": 1.0}, r"does not say how much of sleep"),
        ({"a": 1.0, "sleep": 1.0, "void": 1.0}, r"wants windows of void, which has none in split 'train'"),
    ],
)
def test_weights_that_do_not_fit(weights, said):
    with pytest.raises(ValueError, match=said):
        order(Numbers(a=10, sleep=10, void=0), weights=weights)


def test_an_empty_dataset_need_not_be_named():
    assert len(order(Numbers(a=10, void=0), weights={"a": 1.0})) == 10


# -- blocks ----------------------------------------------------------------------------------------------------


def test_block_shuffle_reads_a_few_shards_at_a_time():
    index = Numbers(shard=10, a=205, b=100)
    drawn = order(index, shuffle="block", block_shards=4).windows_at(np.arange(3 * 305)).reshape(3, 305)
    neighbours = []
    for epoch in drawn:
        assert sorted(epoch) == list(range(305))
        shards = np.searchsorted(index.shard_edges(), epoch, side="right") - 1
        first = {shard: int(np.argmax(shards == shard)) for shard in range(31)}
        last = {shard: 304 - int(np.argmax(shards[::-1] == shard)) for shard in range(31)}
        open_at = [sum(first[shard] <= place <= last[shard] for shard in range(31)) for place in range(305)]
        assert max(open_at) == 4
        assert len(set(shards[:35].tolist())) == 4, "windows are mixed within a block"
        assert list(shards[:35]) != sorted(shards[:35])
        neighbours.append(set(shards[:35].tolist()))
    assert neighbours[0] != neighbours[1], "other shards come together in every epoch"
    assert any(max(shards) - min(shards) > 8 for shards in neighbours), "from anywhere, not only side by side"


def test_block_shuffle_in_a_mixture_keeps_to_the_dataset():
    index = Numbers(shard=10, a=50, b=200)
    windows = order(index, shuffle="block", weights={"a": 0.5, "b": 0.5}).windows_at(np.arange(400))
    assert sorted(windows[windows >= 50]) == list(range(50, 250))


def test_more_windows_than_can_be_permuted():
    with pytest.raises(ValueError, match="at most 4,294,967,295"):
        order(Numbers(shard=2**31, a=2**32))


GOLDEN = {
    "global": [33413, 8758, 30604, 44561, 2867, 66705, 56058],
    "block": [49098, 27880, 68403, 56420, 27051, 28363, 36505],
    "mixture": [70278, 70144, 70211, 47061, 70064, 70032, 70238],
}
