"""Timing of several ways to do one thing, so that whatever else the machine does hits all of them alike."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Timed:
    """How long one way took."""

    median_ms: float
    quartiles_ms: tuple[float, float]
    rounds: int


def interleaved(
    ways: Mapping[str, Callable[[], object]],
    rounds: int,
    budget_s: float = float("inf"),
    at_least: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timed]:
    """Call each way once in each round, in a new order each time. Whoever calls has warmed them up.

    budget_s: no round begins after that, but for the first `at_least`.
    """
    order = list(ways)
    shuffled = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in order}
    began = clock()
    for done in range(rounds):
        if done >= at_least and clock() - began > budget_s:
            break
        shuffled.shuffle(order)
        for name in order:
            start = clock()
            ways[name]()
            times[name].append(1000 * (clock() - start))
    return {name: _summary(own) for name, own in times.items()}


def _summary(times_ms: list[float]) -> Timed:
    median = statistics.median(times_ms)
    if len(times_ms) < 2:
        return Timed(median, (median, median), len(times_ms))
    low, _, high = statistics.quantiles(times_ms, n=4, method="inclusive")
    return Timed(median, (low, high), len(times_ms))
