"""What an encoder's pretraining has seen of the people it is probed on.

Pretraining uses no labels, but an encoder that knows a person's EEG is not what a new person would get: a result on
such people says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ddscale.evaluation.labelled import LabelledTrials
from ddscale.models.encoder_folder import ModelDescription
from ddscale.store import Store, open_store
from ddscale.store.identity import SPLITS


@dataclass(frozen=True)
class Exposure:
    """seen: these subjects too, without labels; unseen: none of them; unknown: it could not be found out."""

    state: Literal["seen", "unseen", "unknown"]
    subjects: list[int]
    """Of the probed ones (places in LabelledTrials.subjects), those whose EEG pretraining had."""
    note: str
    """A sentence."""


def exposure(description: ModelDescription, trials: LabelledTrials) -> Exposure:
    """Which probed subjects an encoder was pretrained on, from what its folder says and the stores it names.

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


def _recognised(store: Store, data: dict[str, Any], trials: LabelledTrials) -> set[int]:
    """Probed subjects among those whose records of `store` were trained on."""
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
