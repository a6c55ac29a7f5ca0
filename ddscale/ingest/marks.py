"""Stretches that somebody marked as bad: which of them leave something out, and what of a recording they cover."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence

from ddscale.signal.quality import Cell
from ddscale.sources.recording import Mark, OpenRecording

MARKED_BAD = "marked_bad"
"""Reason in rejected.parquet, and key in a recording's meta: tells whether what is marked has changed."""

Stretches = list[tuple[int, int]]
"""Sorted and apart, [start, stop) in samples of the recording."""

_SHORTEST_S = 2.0


def stretches(marks: Sequence[Mark], eeg: Collection[str], share: float) -> Stretches:
    """What is marked in all channels, or in more than `share` of those named `eeg`."""
    changes: dict[int, list[tuple[int, Mark]]] = defaultdict(list)
    for mark in marks:
        if mark.stop > mark.start:
            changes[mark.start].append((1, mark))
            changes[mark.stop].append((-1, mark))
    found: Stretches = []
    everywhere = 0
    of_channel: Counter[str] = Counter()
    for start, stop in itertools.pairwise(sorted(changes)):
        for step, mark in changes[start]:
            everywhere += step * (not mark.channels)
            of_channel.update({name: step for name in mark.channels if name in eeg})
        if everywhere or sum(count > 0 for count in of_channel.values()) > share * len(eeg):
            begin = found.pop()[0] if found and found[-1][1] == start else start
            found.append((begin, stop))
    return found


def outside(spans: Sequence[tuple[int, int]], bad: Stretches, sfreq: float) -> list[tuple[int, int]]:
    """The spans without what is bad, to judge the recording by; the spans as they are where no 2 s would be left."""
    left = []
    for start, stop in spans if bad else ():
        for bad_start, bad_stop in bad:
            if bad_start < stop and bad_stop > start:
                left.append((start, bad_start))
                start = max(start, bad_stop)
        left.append((start, stop))
    left = [(start, stop) for start, stop in left if stop - start >= _SHORTEST_S * sfreq]
    return left or list(spans)


def marked(cells: Sequence[Cell], span: tuple[int, int], bad: Stretches, ratio: float) -> list[Cell]:
    """The cells of a span, cut where bad stretches begin and end.

    ratio: the store's rate over the recording's. A sample that a bad stretch touches is bad.
    """
    if not cells:
        return []
    start, stop = span
    last = cells[-1].stop
    inside = [
        (math.floor((max(begin, start) - start) * ratio), min(math.ceil((end - start) * ratio), last))
        for begin, end in bad
        if begin < stop and end > start
    ]
    return list(_cut(cells, inside))


def _cut(cells: Sequence[Cell], bad: Stretches) -> Iterator[Cell]:
    first = 0
    for cell in cells:
        position = cell.start
        while first < len(bad) and bad[first][1] <= position:
            first += 1
        for begin, end in itertools.islice(bad, first, None):
            begin, end = max(begin, position), min(end, cell.stop)
            if begin >= cell.stop:
                break
            if begin > position:
                yield Cell(position, begin, cell.reasons)
            if end > begin:
                yield Cell(begin, end, (MARKED_BAD, *cell.reasons))
                position = end
        if position < cell.stop:
            yield Cell(position, cell.stop, cell.reasons)


def digest(bad: Stretches) -> str:
    """The same for the same stretches."""
    return hashlib.blake2b(repr(bad).encode(), digest_size=8).hexdigest()


def notes(opened: OpenRecording) -> list[str]:
    """What a person should know of marks that cover nothing."""
    points = sum(mark.stop <= mark.start for mark in opened.marks)
    if not points:
        return []
    return [
        f"{opened.path}: {points} of {len(opened.marks)} annotations that mark bad signal have no duration, and leave "
        "nothing out: say how long the signal is bad."
    ]
