"""What a recipe says of its recordings, against what it said when they were stored.

A stored recording never changes: where a source's `sfreq:`, `unit:` or the like is corrected later, those that are in
the store keep what was said then, and a person has to hear of it.
"""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from ddscale.sources.recording import Recording

NAMED = 3
_LONGEST = 60


def differences(
    statement: Mapping[str, Any] | None, subject: str, recording: Recording, now_subject: str
) -> tuple[str, ...]:
    """What is said of a recording now and was not when it was read, one text each.

    statement: what was said then; None: read before that was kept. subject, now_subject: hashes.
    """
    found = [] if subject == now_subject else ["their subject (now another)"]
    if statement is not None and recording.statement:
        found += _differences("", statement, _parsed(recording.statement))
    return tuple(found)


@functools.cache
def _parsed(statement: str) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(statement)
    return parsed


def _differences(prefix: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted({*then, *now}):
        old, new = then.get(key), now.get(key)
        if isinstance(old, dict | None) and isinstance(new, dict | None):
            yield from _differences(f"{prefix}{key}.", old or {}, new or {})
        elif old != new:
            yield f"{prefix}{key} {_shown(old)} (now {_shown(new)})"


def _shown(value: Any) -> str:
    if value is None:
        return "left out"
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


class Restated:
    """Recordings that stay as an earlier recipe stated them."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)

    def add(self, recording: Recording, changes: tuple[str, ...]) -> None:
        """changes: as `differences` gives them; nothing happens without any."""
        if changes:
            self._names[recording.dataset, changes].append(recording.id)

    def sentences(self) -> list[str]:
        """One for all recordings of a dataset with the same differences."""
        found = []
        for (dataset, changes), names in sorted(self._names.items()):
            named = ", ".join(sorted(names)[:NAMED])
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            found.append(
                f"dataset {dataset}: the recipe says something else now of {len(names)} stored recordings ({named}"
                f"{more}). They keep {', '.join(changes)}, since a sealed shard never changes: ingest into a new "
                "folder (`out:`) to read them as stated now, or take back the change."
            )
        return found
