"""What an encoder's pretraining has seen of the people it is judged on.

Pretraining uses no labels, but an encoder that knows a person's EEG is not what a new person would get: a result on
such people says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from ddscale.models.encoder_folder import ModelDescription, describe
from ddscale.store import Store, open_store
from ddscale.store.identity import SPLITS


class Judged(Protocol):
    """Trials that an encoder is judged on."""

    @property
    def store(self) -> Store: ...

    @property
    def subjects(self) -> list[str]:
        """dataset/subject."""

    def recordings_of(self, subject: int) -> list[str]: ...


class StoredTrials:
    """Some records of a store, by key."""

    def __init__(self, store: Store, keys: set[str]) -> None:
        self.store = store
        rows = store.table(["key", "dataset", "subject", "recording"]).to_pylist()
        self._recordings: dict[str, set[str]] = {}
        for row in rows:
            if str(row["key"]) in keys:
                who = f"{row['dataset']}/{row['subject']}"
                self._recordings.setdefault(who, set()).add(row["recording"])
        self.subjects = sorted(self._recordings)

    def recordings_of(self, subject: int) -> list[str]:
        """Names of a subject's recordings, by its place in `subjects`."""
        return sorted(self._recordings[self.subjects[subject]])


@dataclass(frozen=True)
class Exposure:
    """seen: these subjects too, without labels; unseen: none of them; unknown: it could not be found out."""

    state: Literal["seen", "unseen", "unknown"]
    subjects: list[int]
    """Of the judged ones (places in Judged.subjects), those whose EEG pretraining had."""
    note: str
    """A sentence."""


def exposure(description: ModelDescription, trials: Judged) -> Exposure:
    """Which judged subjects an encoder was pretrained on, from what its folder says and the stores it names.

    People are recognised by dataset and subject, or by a recording of the same name in any dataset: a wrong alarm is
    better than none.
    """
    named = description.metadata.get("stores") or []
    if not named:
        return Exposure("unknown", [], "its folder does not say which stores it was pretrained on")
    data: dict[str, Any] = (description.metadata.get("recipe") or {}).get("data") or {}
    seen: set[int] = set()
    doubts = []
    for entry in named:
        try:
            store = open_store(entry["path"])
        except (OSError, ValueError) as error:
            doubts.append(f"pretraining store {entry['path']} cannot be opened ({error})")
            continue
        if store.fingerprint != entry["fingerprint"]:
            doubts.append(f"pretraining store {entry['path']} has been changed since")
            continue
        seen |= _recognised(store, data, trials)
        if store.content.salt_check != trials.store.content.salt_check:
            doubts.append(f"subjects of pretraining store {entry['path']} were hashed with another salt")
    count = f"{len(seen)} of the {len(trials.subjects)}"
    if seen:
        note = f"pretrained on these subjects too, without labels ({count})"
        return Exposure("seen", sorted(seen), "; ".join([note, *doubts]))
    if doubts:
        return Exposure("unknown", [], "; ".join(doubts))
    return Exposure("unseen", [], "pretrained on none of these subjects")


def exposure_of_folder(encoder: str | Path, trials: Judged) -> Exposure:
    """As `exposure`, of an encoder's folder, which may be gone since."""
    try:
        return exposure(describe(encoder), trials)
    except (OSError, ValueError) as error:
        return Exposure("unknown", [], f"its folder cannot be read ({error})")


def _recognised(store: Store, data: dict[str, Any], trials: Judged) -> set[int]:
    """Judged subjects among those whose records of `store` were trained on."""
    trained = store.split == SPLITS.index("train")
    trained &= store.samples >= int(data.get("window_samples") or 1)
    if blocklist := [
        name for name in data.get("blocklist") or [] if name.split("/")[0] in store.dataset_names
    ]:
        trained &= ~store.rows_matching(blocklist)
    weights = data.get("weights")
    if weights is not None:
        used = [number for number, name in enumerate(store.dataset_names) if weights.get(name, 0) > 0]
        trained &= np.isin(store.dataset, used)
    rows = store.table(["dataset", "subject", "recording"]).take(np.flatnonzero(trained)).to_pylist()
    people = {f"{row['dataset']}/{row['subject']}" for row in rows}
    recordings = {row["recording"] for row in rows}
    return {
        number
        for number, subject in enumerate(trials.subjects)
        if subject in people or recordings & set(trials.recordings_of(number))
    }
