"""What a rank could not read: counted, and when it is too much."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from ddscale.stream.settings import StreamSettings

RECENT_WINDOWS = 1000
"""Windows over which `max_unreadable_fraction` is taken: a bad record of a small store is no lost disk."""


@dataclass(frozen=True)
class Fault:
    """A window that could not be read."""

    position: int
    dataset: str
    record: str
    """Key of the record."""
    cause: str


class Unreadable:
    """The faults of one rank's loader."""

    faults: list[Fault]
    """The first of each record."""
    windows: int
    """Windows replaced by zeros."""
    beyond_limit: str | None
    """Which limit of the settings was crossed, and by what, once one was."""

    def __init__(self, settings: StreamSettings, rank: int) -> None:
        self.faults = []
        self.windows = 0
        self.beyond_limit = None
        self._settings = settings
        self._rank = rank
        self._records: set[tuple[str, str]] = set()
        self._recent: deque[tuple[int, int]] = deque()
        self._seen = self._lost = 0  # in _recent

    def note(self, windows: int, faults: list[Fault]) -> None:
        """Count a micro-batch of so many windows, and those of it that could not be read."""
        self._recent.append((windows, len(faults)))
        self._seen += windows
        self._lost += len(faults)
        while self._seen - self._recent[0][0] >= RECENT_WINDOWS:
            seen, lost = self._recent.popleft()
            self._seen -= seen
            self._lost -= lost
        self.windows += len(faults)
        for fault in faults:
            if (fault.dataset, fault.record) not in self._records:
                self._records.add((fault.dataset, fault.record))
                self.faults.append(fault)
        if faults and self.beyond_limit is None:
            self.beyond_limit = self._beyond_limit()

    def _beyond_limit(self) -> str | None:
        most, share = self._settings.max_unreadable, self._settings.max_unreadable_fraction
        if len(self.faults) > most:
            what = f"{len(self.faults)} records, and data.max_unreadable is {most}"
        elif self._lost > share * max(self._seen, RECENT_WINDOWS):
            what = (
                f"{self._lost} of its last {self._seen} windows, and data.max_unreadable_fraction allows {share:g} of "
                f"{max(self._seen, RECENT_WINDOWS)}"
            )
        else:
            return None
        first = "; ".join(f"{fault.record}: {fault.cause}" for fault in self.faults[:3])
        return (
            f"Rank {self._rank} could not read {what}. The first: {first} Check the disk, and the stores with "
            "`ddscale verify`; copy or ingest again what is damaged."
        )
