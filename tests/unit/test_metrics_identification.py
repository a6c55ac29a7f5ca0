"""Two-way identification, n-way top-k accuracy and retrieval, against closed forms and independent code."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import top_k_accuracy_score

from ddscale.metrics.identification import Gallery, expected_n_way_top_k, n_way_top_k
from ddscale.metrics.retrieval import retrieve


def usual_two_way(generated, shown):
    """As the field computes it: the correlation matrix, each column against its diagonal."""
    n = len(shown)
    r = np.corrcoef(shown, generated)[:n, n:]
    return (r < np.diag(r)).sum(axis=0) / (n - 1)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_two_way_against_the_usual_computation(kind):
    rng = np.random.default_rng(0)
    shown = rng.normal(size=(40, 300)) + 5
    generated = 0.1 * shown + rng.normal(size=shown.shape)
    wins = Gallery(shown.astype(kind)).two_way(generated.astype(kind), np.arange(40))
    np.testing.assert_allclose(wins, usual_two_way(generated, shown), atol=1e-12)
    assert 0.6 < wins.mean() < 1.0


def test_two_way_of_a_perfect_and_of_a_blind_generator():
    rng = np.random.default_rng(1)
    shown = rng.normal(size=(30, 64)).astype(np.float32)
    gallery = Gallery(shown)
    np.testing.assert_array_equal(gallery.two_way(shown, np.arange(30)), 1.0)
    same = np.repeat(rng.normal(size=(1, 64)), 30, axis=0).astype(np.float32)
    assert gallery.two_way(same, np.arange(30)).mean() == pytest.approx(0.5)
    grey = np.full((30, 64), 0.3, np.float32)
    np.testing.assert_array_equal(gallery.two_way(grey, np.arange(30)), 0.5)
    # Five samples for one picture, in any order.
    np.testing.assert_array_equal(gallery.two_way(shown[[7, 7, 3]], np.array([7, 7, 3])), 1.0)
    with pytest.raises(ValueError, match="two or more"):
        Gallery(shown[:1])


def binomial_form(higher, classes, n, k):
    """Probability that fewer than k of n − 1 drawn classes are among the `higher`, by counting subsets."""
    others = classes - 1
    ways = sum(math.comb(higher, j) * math.comb(others - higher, n - 1 - j) for j in range(k))
    return ways / math.comb(others, n - 1)


@pytest.mark.parametrize(("n", "k"), [(50, 1), (50, 5), (2, 1), (200, 1), (10, 10)])
def test_n_way_top_k_closed_form(n, k):
    classes = 200
    ranks = np.array([0, 1, 3, 10, 60, 199])
    scores = np.linspace(1, 0, classes)[None].repeat(len(ranks), axis=0)
    expected = [binomial_form(int(rank), classes, n, k) for rank in ranks]
    np.testing.assert_allclose(expected_n_way_top_k(scores, ranks, n, k), expected, atol=1e-9)
    trials = 4000
    sampled = n_way_top_k(scores, ranks, np.arange(len(ranks)), n, k, trials=trials)
    tolerance = 4.5 * np.sqrt(np.multiply(expected, 1 - np.array(expected)) / trials) + 1e-12
    assert (np.abs(sampled - expected) <= tolerance).all()


def test_scores_that_know_nothing_give_chance():
    rng = np.random.default_rng(2)
    scores, classes = rng.random((400, 1000)), rng.integers(0, 1000, 400)
    assert expected_n_way_top_k(scores, classes).mean() == pytest.approx(1 / 50, abs=0.006)
    assert n_way_top_k(scores, classes, np.arange(400)).mean() == pytest.approx(1 / 50, abs=0.008)
    equal = np.ones((400, 1000))
    np.testing.assert_allclose(expected_n_way_top_k(equal, classes), 1 / 50)
    assert n_way_top_k(equal, classes, np.arange(400)).mean() == pytest.approx(1 / 50, abs=0.005)
    assert expected_n_way_top_k(equal, classes, 50, 5)[0] == pytest.approx(0.1)


def test_drawn_classes_depend_on_seed_and_position_alone():
    rng = np.random.default_rng(3)
    scores, classes = rng.random((20, 100)), rng.integers(0, 100, 20)
    whole = n_way_top_k(scores, classes, np.arange(20), 10, 1, 20, seed=5)
    parts = [
        n_way_top_k(scores[i::3], classes[i::3], np.arange(20)[i::3], 10, 1, 20, seed=5) for i in range(3)
    ]
    for i, part in enumerate(parts):
        np.testing.assert_array_equal(part, whole[i::3])
    assert (n_way_top_k(scores, classes, np.arange(20), 10, 1, 20, seed=6) != whole).any()
    assert (n_way_top_k(scores, classes, np.arange(20) + 20, 10, 1, 20, seed=5) != whole).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": np.full((2, 10), np.nan)}, "not finite"),
        ({"n_way": 11}, "between 2"),
        ({"n_way": 1}, "between 2"),
        ({"top_k": 0}, "choose k"),
        ({"classes": np.array([1])}, "1 classes"),
    ],
)
def test_settings_that_make_no_sense(change, message):
    arguments = {"scores": np.ones((2, 10)), "classes": np.array([0, 1]), "n_way": 5, "top_k": 1} | change
    with pytest.raises(ValueError, match=message):
        expected_n_way_top_k(**arguments)
    with pytest.raises(ValueError, match=message):
        n_way_top_k(**arguments, positions=np.arange(2))


@pytest.mark.real
def test_retrieval_on_the_clip_features_of_things_eeg2(shared):
    """Each of the 200 test pictures finds its concept's centre among 200: 98 % top-1 (centre → picture: 92.5 %)."""
    pictures = np.load(shared / "models" / "things_test_clip_features.npy", allow_pickle=False)[:, 0]
    centres = np.load(shared / "models" / "things_test_clip_centers.npy", allow_pickle=False)
    found = retrieve(pictures, centres, np.arange(200))
    assert (found.gallery, found.chance(1), found.median_rank) == (200, 0.005, 1.0)
    top1 = found.accuracy(1)
    assert top1.value == pytest.approx(0.98)
    assert 0.95 < top1.low < 0.98 < top1.high < 1.0
    assert found.accuracy(5).value == 1.0
    assert retrieve(centres, pictures, np.arange(200)).hits(1).mean() == pytest.approx(0.925)


def test_retrieval_against_scikit_learn():
    rng = np.random.default_rng(4)
    gallery = rng.normal(size=(50, 16))
    right = rng.integers(0, 50, 3000)
    queries = gallery[right] * rng.uniform(0.1, 9, (3000, 1)) + rng.normal(size=(3000, 16)) * 3
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, gallery)]
    found = retrieve(queries, gallery, right)
    for k in (1, 5):
        expected = top_k_accuracy_score(right, unit[0] @ unit[1].T, k=k, labels=np.arange(50))
        assert found.hits(k).mean() == pytest.approx(expected)
    assert 0.1 < found.hits(1).mean() < 0.9


def test_embeddings_that_are_all_alike_retrieve_at_chance():
    rng = np.random.default_rng(5)
    gallery = rng.normal(size=(40, 8))
    blind = retrieve(np.zeros((40, 8)), gallery, np.arange(40))
    assert blind.hits(5).mean() == pytest.approx(5 / 40)
    collapsed = retrieve(rng.normal(size=(40, 8)), np.ones((40, 8)), np.arange(40))
    assert collapsed.hits(1).mean() == pytest.approx(1 / 40)
    assert collapsed.median_rank == pytest.approx(20.5)


@pytest.mark.parametrize(
    ("queries", "gallery", "right", "message"),
    [
        (np.ones((2, 3)), np.ones((4, 5)), [0, 1], r"\(Q, D\)"),
        (np.ones((2, 3)), np.ones((4, 3)), [0, 4], "0..3"),
        (np.ones((2, 3)), np.ones((4, 3)), [0], "each query"),
        (np.full((2, 3), np.nan), np.ones((4, 3)), [0, 1], "queries hold NaN"),
    ],
)
def test_retrieval_of_what_does_not_fit(queries, gallery, right, message):
    with pytest.raises(ValueError, match=message):
        retrieve(queries, gallery, np.array(right))
