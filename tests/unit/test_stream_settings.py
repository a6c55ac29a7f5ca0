"""Stream settings as a recipe gives them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ddscale.recipes import RecipeError, check
from ddscale.stream.settings import Divide, StreamSettings, ZScore


def test_defaults_are_dreamdiffusions_window():
    given = check({"stores": ["s"]}, StreamSettings, "recipe")
    assert (given.window_samples, given.n_channels, given.hop_samples) == (512, 128, 512)
    assert given.normalisation == ZScore(clip=15.0)
    assert given.weights is None


def test_normalisation_is_chosen_by_kind():
    given = check(
        {"stores": ["s"], "normalisation": {"kind": "divide", "by_uv": 10}}, StreamSettings, "recipe"
    )
    assert given.normalisation == Divide(by_uv=10.0)


@pytest.mark.parametrize(("overlap", "hop"), [(0.5, 256), (0.25, 384), (0.9999, 1), (0.3, 358)])
def test_hop(overlap, hop):
    assert StreamSettings(stores=["s"], overlap=overlap).hop_samples == hop


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"stores": []}, r"stores: .*at least 1"),
        ({"stores": ["a", "a"]}, r"stores: named twice: a\. To see a dataset more often give it a weight"),
        ({"overlap": 1.0}, r"overlap: .*less than 1"),
        ({"weights": {"a": -1.0}}, r"weights: a weight is a finite number of at least 0, found a: -1.0"),
        ({"weights": {"a": float("inf")}}, r"found a: inf"),
        ({"weights": {"a": 0.0}}, r"no dataset has a weight above 0"),
        ({"blocklist": ["sub-1"]}, r"blocklist: sub-1: write `dataset/recording`"),
        ({"normalisation": {"kind": "zscore", "by_uv": 1.0}}, r"normalisation.by_uv: unknown key"),
        ({"reader_thread": 1}, r"Did you mean `reader_threads`"),
        ({"seed": -1}, r"seed: .*greater than or equal to 0"),
    ],
)
def test_mistakes_are_explained(given, said):
    with pytest.raises(RecipeError, match=said):
        check({"stores": ["s"], **given}, StreamSettings, "recipe")


def test_reading_a_recipe_loads_neither_torch_nor_grain():
    code = "import ddscale.stream.settings, sys; print([m for m in ('torch', 'grain', 'zarr') if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "[]\n"
    assert said.stderr == ""


def test_importing_the_loader_is_quiet():
    said = subprocess.run(
        [sys.executable, "-W", "default", "-c", "import ddscale.stream.order"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "jax" not in said.stderr
    assert "absl" not in said.stderr
