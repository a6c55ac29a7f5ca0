"""A grid: one base recipe, the ways in which it is varied, and what is compared afterwards."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from ddscale.recipes import Settings

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=,+-]*")
_RESERVED = {"comparison"}


@dataclass(frozen=True)
class Variant:
    """One run of a grid. seed: None when the grid names no seeds. overrides: `key.path=value`, in order."""

    name: str
    seed: int | None
    overrides: tuple[str, ...]

    @property
    def run_name(self) -> str:
        """Of its folder within the grid's."""
        return self.name if self.seed is None else f"{self.name}-seed{self.seed}"


class GridRecipe(Settings):
    """Runs of one recipe that differ in stated ways, in one folder, compared in one table."""

    stage: Literal["grid"]
    """This recipe's stage."""

    out: str
    """Folder of the grid: a run folder for each variant and seed, and comparison.json and .csv."""

    base: str
    """Recipe that all runs start from, such as recipes/pretrain/demo.yaml; its stage picks launchers/<stage>.py."""

    world_size: int = Field(default=2, ge=1)
    """Ranks of each run, one after another: accelerators of this machine, or of each one in a hostfile."""

    launcher_arguments: list[str] = []
    """More for the deepspeed launcher, such as ["--hostfile", "hosts"]."""

    overrides: list[str] = []
    """KEY.PATH=VALUE for every run, such as steps=1000."""

    variants: dict[str, list[str]] = {}
    """Name -> KEY.PATH=VALUE overrides that make the variant; an empty list is the base as it is."""

    axes: dict[str, list[Any]] = {}
    """KEY.PATH -> values: every combination is a variant (of each of `variants`, when both are given)."""

    seeds: list[int] = []
    """Each variant is run with each of them, and the spread over them is shown: differences within it are noise."""

    seed_keys: list[str] = Field(default=["seed"], min_length=1)
    """Keys that a seed is written to; add data.seed to vary the order of the data too."""

    then: list[list[str]] = []
    """ddscale commands after each run, `{run}` standing for its folder, such as [[reconstruct, "{run}"]]."""

    metrics: dict[str, str] = Field(min_length=1)
    """Column -> where its number is: a key of the last row of metrics.jsonl that has it, or FILE#/KEY/KEY below the
    run's folder, such as evaluation/reconstruction.json#/overall/bands/all/model/mse/value."""

    @model_validator(mode="after")
    def _variants_can_be_told_apart(self) -> GridRecipe:
        problems = [
            f"variants.{name}: a variant's name becomes a folder: use letters, digits and . _ = , + -"
            for name in self.variants
            if not _NAME.fullmatch(name)
        ]
        problems += [f"axes.{key}: no values." for key, values in self.axes.items() if not values]
        given = [*self.overrides, *itertools.chain.from_iterable(self.variants.values())]
        problems += [
            f"{text!r}: write an override as key.path=value." for text in given if "=" not in text[1:]
        ]
        theirs = {text.partition("=")[0].strip() for text in given} | self.axes.keys()
        problems += [f"{key}: the grid itself gives every run its folder." for key in theirs & {"run"}]
        if self.seeds:
            clash = sorted(theirs & set(self.seed_keys))
            problems += [f"{key}: varied by `seeds` already." for key in clash]
        if not self.variants and not self.axes and not self.seeds:
            problems.append("nothing varies: give `variants`, `axes` or `seeds`.")
        names = [variant.run_name for variant in self.runs()]
        twice = sorted({name for name in names if names.count(name) > 1})
        problems += [
            f"two runs would be called {name!r}: give them different names or values." for name in twice
        ]
        problems += [f"a variant may not be called {name!r}." for name in _RESERVED & set(names)]
        if problems:
            raise ValueError("\n    ".join(problems))
        return self

    def runs(self) -> list[Variant]:
        """Every run, variants in the order of the recipe, a variant's seeds together."""
        points: list[tuple[str, list[str]]] = list(self.variants.items()) or [("", [])]
        seeds: list[int | None] = [*self.seeds] or [None]
        found = []
        for name, overrides in points:
            for values in itertools.product(*self.axes.values()):
                place = dict(zip(self.axes, values, strict=True))
                parts = [name] if name else []
                parts += [f"{key.rpartition('.')[2]}={_shown(value)}" for key, value in place.items()]
                texts = [*overrides, *(f"{key}={json.dumps(value)}" for key, value in place.items())]
                for seed in seeds:
                    seeded = [] if seed is None else [f"{key}={seed}" for key in self.seed_keys]
                    found.append(Variant(",".join(parts) or "base", seed, (*self.overrides, *texts, *seeded)))
        return found


def _shown(value: Any) -> str:
    """A value as part of a folder's name."""
    text = value if isinstance(value, str) else json.dumps(value)
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-") or "none"
