"""Comparing exported graphs with what PyTorch computed. A figure beyond its limit fails the export as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ddscale.deploy.manifest import ParityCheck, Precision

Arrays = dict[str, np.ndarray]

# Relative L2 to PyTorch's fp32. fp32 has a limit for each graph; quantised graphs are as good as calibration allows,
# and these limits tell a graph that is broken from one that is coarse.
LIMITS: dict[Precision, float] = {"fp16": 5e-3, "int8": 0.15, "fp8": 0.25}
# Latents drawn with guidance were up to 1.6 times as far off as single predictions of the U-Net, most with LCM (toys
# with random weights: int8 0.05 to 0.10, fp8 0.11 to 0.22). Without guidance they are off by 0.23 to 0.32, with a
# U-Net that is off by 0.15 by 0.24: int8's limit is below both, fp8 itself is hardly better.
END_TO_END_LIMITS: dict[Precision, float] = {"fp32": 1e-4, "fp16": 2e-2, "int8": 0.2, "fp8": 0.3}
# How much a golden replay on another machine may differ more than here.
_ELSEWHERE: dict[Precision, float] = {"fp32": 10.0, "fp16": 2.0, "int8": 1.5, "fp8": 1.5}
# Which of three rows each batch holds: every row is seen in two of them, beside other rows or none.
_ROWS_OF = {1: slice(0, 1), 2: slice(1, 3), 3: slice(0, 3)}


class ParityError(ValueError):
    """Graphs that do not compute what they should; nothing was published."""


@dataclass
class Checks:
    """Comparisons made so far, for the manifest."""

    done: list[ParityCheck] = field(default_factory=list)

    def hold(self, name: str, value: float, limit: float, graph: str | None = None) -> None:
        """Note one figure; NaN counts as beyond any limit."""
        self.done.append(ParityCheck(name, graph, float(value), limit))

    def finish(self, precision: Precision) -> tuple[ParityCheck, ...]:
        """All of them. Raises ParityError naming each that failed."""
        failed = [check for check in self.done if not check.value <= check.limit]
        if failed:
            lines = [
                f"  - {check.graph or 'end to end'}: {check.name} is {check.value:.3g}, the limit is {check.limit:.3g}"
                for check in failed
            ]
            raise ParityError(
                f"the {precision} export was not published, {len(failed)} of {len(self.done)} checks failed:\n"
                + "\n".join(lines)
                + _remedy(precision)
            )
        return tuple(self.done)


def _remedy(precision: Precision) -> str:
    if precision == "fp32":
        return "\nThe graphs do not compute what PyTorch does here: do not use them, and report the versions installed."
    return f"\nLeave {precision} out of the recipe's `precisions`, and run this model in a wider one."


def limit_for(precision: Precision, tolerance: float) -> float:
    """Relative L2 that a graph of this precision may differ by; tolerance: the part's own, in fp32."""
    return LIMITS.get(precision, tolerance)


def golden_limit(precision: Precision, limit: float) -> float:
    """What a replay of golden inputs on another machine is allowed."""
    return limit * _ELSEWHERE[precision]


def relative_l2(actual: np.ndarray, expected: np.ndarray) -> float:
    """Norm of the difference over that of `expected`, of the worst row; inf where only one of them is zero."""
    if actual.shape != expected.shape:
        return float("inf")
    rows = len(expected)
    wanted = expected.reshape(rows, -1).astype(np.float64)
    difference = np.linalg.norm(actual.reshape(rows, -1) - wanted, axis=1)
    size = np.linalg.norm(wanted, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(difference == 0, 0.0, difference / size)
    return float(np.max(relative))  # NaN if any is


@contextmanager
def session(path: Path) -> Iterator[Any]:
    """ONNX Runtime on the CPU, given back at the end: two U-Nets at once may be more than there is."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # The arena keeps, and rounds up, what written-out attention takes for a moment: gigabytes at full size.
    options.enable_cpu_mem_arena = False
    opened = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    try:
        yield opened
    finally:
        del opened


def run(opened: Any, inputs: Mapping[str, np.ndarray]) -> Arrays:
    """All outputs of a session by name."""
    names = [output.name for output in opened.get_outputs()]
    return dict(zip(names, opened.run(names, dict(inputs)), strict=True))


def compare_graph(
    checks: Checks, graph: str, path: Path, inputs: Arrays, expected: Arrays, limit: float
) -> None:
    """Batches of 1, 2 and 3 beside PyTorch's, and the rows of the largest beside the same rows in smaller ones.

    inputs, expected: with a batch of 3.
    """
    runs: dict[int, Arrays] = {}
    with session(path) as opened:
        for batch, rows in _ROWS_OF.items():
            runs[batch] = run(opened, {name: value[rows] for name, value in inputs.items()})
    for batch, rows in _ROWS_OF.items():
        for name, value in runs[batch].items():
            error = relative_l2(value, expected[name][rows])
            checks.hold(f"{name}, batch of {batch}, relative L2 to PyTorch", error, limit, graph)
    for name, whole in runs[3].items():
        errors = [relative_l2(whole[_ROWS_OF[batch]], runs[batch][name]) for batch in (1, 2)]
        checks.hold(
            f"{name}, rows of a batch to the same in smaller ones, relative L2", np.max(errors), limit, graph
        )


def check_pictures(checks: Checks, graph: str, images: np.ndarray, expected: np.ndarray) -> None:
    """Pictures must be finite, and have contrast where PyTorch's have: black, NaN and one-colour pictures are how
    broken exports show."""
    checks.hold("pixels that are not finite", float(np.count_nonzero(~np.isfinite(images))), 0.0, graph)
    contrast = images.reshape(len(images), -1).std(axis=1)
    wanted = expected.reshape(len(expected), -1).std(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        lost = float(
            np.max(1 - contrast / wanted)
        )  # NaN, and so a failure, where PyTorch's are plain already
    checks.hold("contrast of a picture below PyTorch's, as a share", lost, 0.5, graph)
