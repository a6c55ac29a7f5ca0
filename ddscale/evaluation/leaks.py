"""Whether what a model is judged on was kept from its training: pictures, samples, and how trials were ordered."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ddscale.metrics.leakage import Leak, LeakageError, Trials, block_design_warning, find_leaks
from ddscale.store import Store, layout, open_store, tables
from ddscale.store.identity import SPLITS


def check_leaks(store: Store, split: str, trained_on: Sequence[Store]) -> list[str]:
    """Warnings on a split of `store` for a reader of the results; trained_on: the stores whose train split was used.

    Raises LeakageError when a picture, known by its bytes whatever it is called, or a sample of EEG is on both sides.
    That trials of both sides follow each other in one recording, or come from the same people, is what most sets of
    EEG with pictures are like: it is said, and judged by how the pictures were ordered.
    """
    judged = _trials(store, split)
    training = [_trials(other, "train") for other in trained_on]
    told = _names_of_pictures(judged)
    train = Trials(
        **{name: _stacked([side.table[name] for side in training]) for name in _NAMES},
        stimulus=_stacked([side.pictures(told) for side in training]),
        start=np.concatenate([side.start for side in training]),
        stop=np.concatenate([side.stop for side in training]),
    )
    test = Trials(
        **{name: judged.table[name] for name in _NAMES},
        stimulus=judged.pictures(told),
        start=judged.start,
        stop=judged.stop,
    )
    # Positions in a file that is not in order of time tell which samples are the same, not which are near.
    near = _neighbours(train, np.concatenate([side.in_time for side in training]), test, judged.in_time)
    leaks = [*near, *find_leaks(train, test, held_out=("subject", "recording", "stimulus"), gap=0)]
    fatal = [leak for leak in leaks if leak.kind in ("stimulus", "overlap")]
    if fatal:
        raise LeakageError(fatal)
    warnings = [leak.message for leak in leaks]
    everything = _trials(store, None)
    dataset_N, datasets = tables.coded(everything.table["dataset"])
    for code, dataset in enumerate(datasets):
        mine_N = dataset_N == code
        unordered = int((mine_N & ~everything.in_time).sum())
        if unordered:
            warnings.append(
                f"{dataset}: when {unordered} of its {int(mine_N.sum())} trials were recorded is not in its files, so "
                "whether classes were shown in blocks, and whether trials lie next to training trials in time, is not "
                "checked for them; read how it was recorded."
            )
        mine_N &= everything.in_time
        label, recording = (
            everything.table[name].filter(pa.array(mine_N)) for name in ("label", "recording")
        )
        found = block_design_warning(label, recording, everything.start[mine_N], dataset)
        if found:
            warnings.append(f"{dataset}: {found}")
    return warnings


def _neighbours(
    train: Trials, train_in_time: NDArray[np.bool_], test: Trials, test_in_time: NDArray[np.bool_]
) -> list[Leak]:
    """Trials next to training trials in time, where time is known."""
    sides = []
    for side, known_N in ((train, train_in_time), (test, test_in_time)):
        assert isinstance(side.recording, pa.Array | pa.ChunkedArray)
        assert side.start is not None
        assert side.stop is not None
        sides.append(
            Trials(
                recording=_stacked([side.recording]).filter(pa.array(known_N)),
                start=np.asarray(side.start)[known_N],
                stop=np.asarray(side.stop)[known_N],
            )
        )
    return [leak for leak in find_leaks(sides[0], sides[1], held_out=()) if leak.kind == "neighbour"]


_NAMES = ("subject", "recording")
# In a recording's meta, as `ddscale.sources.epochs` writes it; and formats that stores from before it have.
_IN_TIME = "in_time"
_UNORDERED = ("THINGS-EEG2", "ImageNet-EEG")


@dataclass(frozen=True)
class _Shown:
    """The trials with pictures of a store: N rows, names with the dataset before them.

    start, stop: seconds, where in_time; elsewhere positions in the file at that rate. picture: of each trial the row
    in `checksums` and `images`.
    """

    table: pa.Table
    start: NDArray[np.float64]
    stop: NDArray[np.float64]
    in_time: NDArray[np.bool_]
    picture: NDArray[np.int32]
    checksums: list[str]
    images: list[str]

    def pictures(self, told: dict[str, str]) -> pa.DictionaryArray:
        """(N,) names of the pictures shown, as `told` by their bytes, else by checksum."""
        names = pa.array([told.get(checksum, checksum) for checksum in self.checksums], pa.string())
        return pa.DictionaryArray.from_arrays(pa.array(self.picture), names)


def _names_of_pictures(trials: _Shown) -> dict[str, str]:
    """Checksum -> the name that a picture has in these trials; the last, where it has several."""
    last = np.full(len(trials.images), -1)
    last[trials.picture] = np.arange(len(trials.picture))
    shown = sorted(np.flatnonzero(last >= 0).tolist(), key=last.__getitem__)
    return {trials.checksums[row]: trials.images[row] for row in shown}


def _trials(store: Store, split: str | None) -> _Shown:
    """The trials with pictures, of one split or of all."""
    rows = store.image_row_of_record
    wanted = rows >= 0
    if split is not None:
        codes, names = tables.coded(store.table(["split"])["split"])
        wanted &= codes == (names.index(split) if split in names else -2)
    table = store.table(["dataset", "subject", "recording", "label", "start", "samples"])
    table = table.filter(pa.array(wanted))
    for name in _NAMES:
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, _qualified(table["dataset"], table[name]))
    images = (
        store.images.select(["sha256", "dataset", "image"]).to_pylist() if store.images is not None else []
    )
    start = table["start"].to_numpy() / store.sfreq
    return _Shown(
        table=table,
        start=start,
        stop=start + table["samples"].to_numpy() / store.sfreq,
        in_time=_in_time(store, table["recording"]),
        picture=rows[wanted],
        checksums=[row["sha256"] for row in images],
        images=[f"{row['dataset']}/{row['image']}" for row in images],
    )


def _in_time(store: Store, recording: pa.ChunkedArray) -> NDArray[np.bool_]:
    """(N,) whether the trials of `dataset/recording` lie in the order they were recorded in."""
    unordered = set()
    for row in _recordings(store, ["dataset", "recording", "meta"]).to_pylist():
        meta = json.loads(row["meta"] or "{}")
        # Stores that were made before there was this note.
        if not meta.get(_IN_TIME, meta.get("format") not in _UNORDERED):
            unordered.add(f"{row['dataset']}/{row['recording']}")
    codes_N, names = tables.coded(recording)
    known = np.array([name not in unordered for name in names], bool)
    return known[codes_N] if len(names) else np.zeros(0, bool)


def _recordings(store: Store, columns: list[str]) -> pa.Table:
    """Columns of a store's recordings.parquet."""
    # Of a remote store only what training needs is there from the beginning.
    path = store.path / layout.RECORDINGS if store.origin is None else store.origin.hold(layout.RECORDINGS)
    return tables.read(path, tables.RECORDINGS, columns)


_TOLD_BY = ["dataset", "recording", "status", "content", "seconds_found", "largest_quantisation_error_uV"]


def trained_on(file: Path, given: Store, stores: Sequence[str]) -> list[str]:
    """Sentences about recordings of `stores` that were trained on and are the one in `file`.

    given: the store that was made of it. Only indexes are read, and stores that are not at hand are passed over.
    """
    mine = [row for row in _recordings(given, _TOLD_BY).to_pylist() if row["status"] == "kept"]
    told = []
    for address in stores:
        try:
            store = None if layout.is_url(address) else open_store(address)
        except (OSError, ValueError):
            store = None
        if store is None:
            continue
        for row in _recordings(store, _TOLD_BY).to_pylist():
            if not any(_same_signal(own, row) for own in mine):
                continue
            if _has_training_records(store, row["dataset"], row["recording"]):
                told.append(
                    f"{file} holds {row['dataset']}/{row['recording']} of {address}, which was trained on: what comes "
                    "of it says nothing about new EEG."
                )
    return told


def _same_signal(own: dict[str, Any], row: dict[str, Any]) -> bool:
    """Whether two recordings, by what recordings.parquet says of them, are one."""
    if row["status"] != "kept":
        return False
    # The hash takes in where trials begin. The largest rounding error does not, and no other signal has it to the
    # last digit; float32 stores have none.
    error = "largest_quantisation_error_uV"
    of_trials = own["seconds_found"] == row["seconds_found"] and own[error] == row[error] and own[error] > 0
    return own["content"] == row["content"] or of_trials


def _has_training_records(store: Store, dataset: str, recording: str) -> bool:
    rows = store.rows_matching([f"{dataset}/{recording}"])
    return bool((store.split[rows] == SPLITS.index("train")).any())


def _qualified(dataset: pa.ChunkedArray, name: pa.ChunkedArray) -> pa.DictionaryArray:
    """`dataset/name`, put together once for each pair there is."""
    dataset_N, datasets = tables.coded(dataset)
    name_N, names = tables.coded(name)
    pairs, codes = np.unique(dataset_N.astype(np.int64) * len(names) + name_N, return_inverse=True)
    found = [f"{datasets[pair // len(names)]}/{names[pair % len(names)]}" for pair in pairs.tolist()]
    return pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(found, pa.string()))


def _stacked(columns: Sequence[pa.Array | pa.ChunkedArray]) -> pa.ChunkedArray:
    chunks = [chunk for column in columns for chunk in getattr(column, "chunks", [column])]
    return pa.chunked_array([chunk.cast(_NAME) for chunk in chunks], _NAME)


_NAME = pa.dictionary(pa.int64(), pa.string())
