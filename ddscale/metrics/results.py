"""What judging a set of generated pictures gives: metrics, each with its controls beside it, and what was skipped.

Legend: N reference pictures (those that were shown), G generated ones.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ddscale.metrics.controls import Estimate

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Measure:
    """A metric that has a value for each generated picture.

    chance: what guessing scores, where that is known. gallery_only: it is taken only for pictures of the gallery.
    proportion: the part of something that is right, from 0 to 1.
    """

    name: str
    better: Better
    chance: float | None = None
    gallery_only: bool = False
    note: str = ""
    proportion: bool = False


@dataclass(frozen=True)
class Result:
    """One metric of the whole set.

    estimate: with interval over the pictures shown; None for metrics that exist only for the whole set.
    chance: what guessing scores, where that is known. shuffled: the metric with every generated picture held
    against a picture that was not shown. note: what must be known to read it.
    """

    name: str
    value: float
    better: Better
    estimate: Estimate | None = None
    chance: float | None = None
    shuffled: Estimate | None = None
    note: str = ""


@dataclass(frozen=True)
class Skipped:
    """A metric that did not run, and why: which file it needs and where that was looked for, or small pictures."""

    name: str
    reason: str


@dataclass
class Evaluation:
    """Numbers of pictures, results, what was skipped.

    per_picture: for metrics of single pictures the G values, by which pictures can be ranked (best, median,
    worst); NaN where a metric was taken for fewer pictures.
    """

    reference: int
    generated: int
    results: list[Result] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    per_picture: dict[str, NDArray[np.float64]] = field(default_factory=dict, repr=False)
    proportions: set[str] = field(default_factory=set, repr=False)
    """Metrics whose values are parts of what is right, from 0 to 1."""

    @property
    def samples_per_picture(self) -> float:
        return self.generated / self.reference

    def __getitem__(self, name: str) -> Result:
        """The result of that name; raises KeyError saying why when it was skipped."""
        for result in self.results:
            if result.name == name:
                return result
        reasons = {skipped.name: skipped.reason for skipped in self.skipped}
        raise KeyError(f"{name}: {reasons.get(name, 'no such metric')}")

    def to_json(self) -> dict[str, Any]:
        """Everything but the values of single pictures; an interval that does not exist is None."""
        return {
            "reference_pictures": self.reference,
            "generated_pictures": self.generated,
            "samples_per_picture": self.samples_per_picture,
            "metrics": {result.name: _without_nan(asdict(result)) for result in self.results},
            "skipped": {skipped.name: skipped.reason for skipped in self.skipped},
        }


def _without_nan(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _without_nan(value) for key, value in tree.items()}
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
