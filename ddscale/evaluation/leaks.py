"""Whether what a model is judged on was kept from its training: pictures, samples, and how trials were ordered."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from ddscale.metrics.leakage import LeakageError, Trials, block_design_warning, find_leaks
from ddscale.store import Store


def check_leaks(store: Store, split: str) -> list[str]:
    """Warnings on the split of a store's trials with pictures, for a reader of the results.

    Raises LeakageError when a picture or a sample of EEG is on both sides. That trials of both sides follow each
    other in one recording, or come from the same people, is what most sets of EEG with pictures are like: it is
    said, and judged by how the pictures were ordered.
    """
    columns = ["dataset", "subject", "recording", "image", "label", "start", "samples", "split"]
    table = store.table(columns)
    table = table.filter(pa.compute.is_valid(table["image"]))
    text = {name: np.array(table[name].cast(pa.string()).to_pylist(), dtype=str) for name in columns[:5]}
    splits = np.array(table["split"].cast(pa.string()).to_pylist(), dtype=str)
    start = table["start"].to_numpy() / store.sfreq
    stop = start + table["samples"].to_numpy() / store.sfreq
    recording = np.char.add(np.char.add(text["dataset"], "/"), text["recording"])
    stimulus = np.char.add(np.char.add(text["dataset"], "/"), text["image"])
    people = np.char.add(np.char.add(text["dataset"], "/"), text["subject"])

    def side(mask: np.ndarray) -> Trials:
        return Trials(
            subject=people[mask],
            recording=recording[mask],
            stimulus=stimulus[mask],
            start=start[mask],
            stop=stop[mask],
        )

    leaks = find_leaks(
        side(splits == "train"), side(splits == split), held_out=("subject", "recording", "stimulus")
    )
    fatal = [leak for leak in leaks if leak.kind in ("stimulus", "overlap")]
    if fatal:
        raise LeakageError(fatal)
    warnings = [leak.message for leak in leaks]
    for dataset in np.unique(text["dataset"]):
        mine = text["dataset"] == dataset
        found = block_design_warning(text["label"][mine], recording[mine], start[mine], str(dataset))
        if found:
            warnings.append(f"{dataset}: {found}")
    return warnings
