"""Whether what a model is judged on was kept from its training: pictures, samples, and how trials were ordered."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ddscale.metrics.leakage import LeakageError, Trials, block_design_warning, find_leaks
from ddscale.store import Store

Strings = NDArray[np.str_]


def check_leaks(store: Store, split: str, trained_on: Sequence[Store]) -> list[str]:
    """Warnings on a split of `store` for a reader of the results; trained_on: the stores whose train split was used.

    Raises LeakageError when a picture, known by its bytes whatever it is called, or a sample of EEG is on both sides.
    That trials of both sides follow each other in one recording, or come from the same people, is what most sets of
    EEG with pictures are like: it is said, and judged by how the pictures were ordered.
    """
    judged = _trials(store, split)
    training = [_trials(other, "train") for other in trained_on]
    # Told by the names they have here.
    names = dict(zip(judged["stimulus"].tolist(), judged["image"].tolist(), strict=True))
    for side in (judged, *training):
        side["stimulus"] = np.array(
            [names.get(checksum, checksum) for checksum in side["stimulus"].tolist()], dtype=str
        )
    columns = zip(*[[side[name] for name in _COLUMNS] for side in training], strict=True)
    train = Trials(**dict(zip(_COLUMNS, (np.concatenate(column) for column in columns), strict=True)))
    test = Trials(**{name: judged[name] for name in _COLUMNS})
    leaks = find_leaks(train, test, held_out=("subject", "recording", "stimulus"))
    fatal = [leak for leak in leaks if leak.kind in ("stimulus", "overlap")]
    if fatal:
        raise LeakageError(fatal)
    warnings = [leak.message for leak in leaks]
    everything = _trials(store, None)
    for dataset in np.unique(everything["dataset"]):
        mine = everything["dataset"] == dataset
        label, recording, start = (everything[name][mine] for name in ("label", "recording", "start"))
        found = block_design_warning(label, recording, start, str(dataset))
        if found:
            warnings.append(f"{dataset}: {found}")
    return warnings


_COLUMNS = ("subject", "recording", "stimulus", "start", "stop")


def _trials(store: Store, split: str | None) -> dict[str, NDArray[np.generic]]:
    """Columns of the trials with pictures, of one split or of all."""
    table = store.table(["dataset", "subject", "recording", "image", "label", "start", "samples", "split"])
    rows = store.image_row_of_record
    wanted = rows >= 0
    if split is not None:
        wanted &= _text(table["split"]) == split
    table, rows = table.filter(pa.array(wanted)), rows[wanted]
    dataset = _text(table["dataset"])
    start = table["start"].to_numpy() / store.sfreq
    checksums = np.array(store.images["sha256"].to_pylist() if store.images is not None else [], dtype=str)
    return {
        "dataset": dataset,
        "subject": _joined(dataset, _text(table["subject"])),
        "recording": _joined(dataset, _text(table["recording"])),
        "image": _joined(dataset, _text(table["image"])),
        "label": _text(table["label"]),
        "stimulus": checksums[rows],
        "start": start,
        "stop": start + table["samples"].to_numpy() / store.sfreq,
    }


def _text(column: pa.ChunkedArray) -> Strings:
    return np.array([value or "" for value in column.cast(pa.string()).to_pylist()], dtype=str)


def _joined(dataset: Strings, name: Strings) -> Strings:
    return np.char.add(np.char.add(dataset, "/"), name)
