"""From judged cells to records and to the list of what is left out. Samples at the store's rate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ddscale.signal.quality import Cell, runs
from ddscale.store.staging import RejectedStretch

TOO_SHORT = "too_short"


@dataclass(frozen=True)
class Stretch:
    """Samples start..stop of a span; reason: empty for a record."""

    start: int
    stop: int
    reasons: tuple[str, ...] = ()

    @property
    def samples(self) -> int:
        return self.stop - self.start


def cut(
    cells: Sequence[Cell], record_samples: int, min_record_samples: int
) -> tuple[list[Stretch], list[Stretch]]:
    """Cut the runs of good cells of one span into records.

    Records are `record_samples` long but for the last of a run; a good stretch shorter than `min_record_samples`
    is left out as too short. Returns (records, rejected): in order, apart, and together all cells.
    """
    records: list[Stretch] = []
    rejected: list[Stretch] = []
    for run in runs(cells):
        if run.reasons:
            rejected.append(Stretch(run.start, run.stop, run.reasons))
            continue
        for start in range(run.start, run.stop, record_samples):
            stop = min(start + record_samples, run.stop)
            if stop - start < min_record_samples:
                rejected.append(Stretch(start, stop, (TOO_SHORT,)))
            else:
                records.append(Stretch(start, stop))
    return records, rejected


def main_reason(rejected: Sequence[RejectedStretch]) -> tuple[str, str]:
    """Why a recording has no record at all: the reason behind most of its time, and a sentence with all of them."""
    seconds: Counter[str] = Counter()
    for stretch in rejected:
        seconds[stretch.reason] += (stretch.stop_s or 0.0) - (stretch.start_s or 0.0)  # type: ignore[assignment]
    parts = ", ".join(f"{reason} {length:.1f} s" for reason, length in seconds.most_common())
    main = seconds.most_common(1)[0][0] if seconds else TOO_SHORT
    return main, f"has no stretch that is fit to keep: {parts or 'it has no samples'}."
