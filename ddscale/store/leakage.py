"""Can held-out data have been seen in training? Questions to the index alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ddscale.store import layout, splitting, tables
from ddscale.store.identity import NO_SPLIT
from ddscale.store.manifest import Blocklist, Manifest


def problems(
    manifest: Manifest, records: pa.Table, recordings: pa.Table, same_values: Callable[[int, int], bool]
) -> Iterator[str]:
    """A subject in two splits, the same signal twice, what is blocked and still there: one sentence each.

    same_values: whether two rows of `records` hold the same values, asked where their checksums are equal.
    """
    yield from _subjects_in_two_splits(_divided_by_subject(manifest, records))
    yield from _same_recording_twice(recordings)
    yield from _same_record_twice(records, same_values)
    blocked = blocked_rows(records, manifest.blocklist)
    if blocked.any():
        names = sorted(set(records.filter(pa.array(blocked))["recording"].to_pylist()))
        yield f"{layout.RECORDS}: recordings on the blocklist are still there: {', '.join(names[:10])}."


def image_problems(manifest: Manifest, records: pa.Table, images: pa.Table) -> Iterator[str]:
    """A picture in two splits, under whatever name; a trial in another split than its picture, or without it."""
    splits: dict[str, dict[str, str]] = {}
    for row in images.select(["dataset", "image", "split", "sha256"]).to_pylist():
        splits.setdefault(row["sha256"], {}).setdefault(row["split"], f"{row['dataset']}/{row['image']}")
    for found in splits.values():
        if len(found) > 1:
            where = " and ".join(f"in {split} as {name}" for split, name in sorted(found.items()))
            yield f"the same picture is {where}: what is generated from held-out EEG has been learnt from."
    rows_R, missing = splitting.find_image_rows(records, images)
    for name in missing:
        yield f"{layout.IMAGES}: picture {name} is missing, and records have it."
    shown = records.filter(pa.array(rows_R >= 0))
    of_image = images["split"].take(pa.array(rows_R[rows_R >= 0])).to_pylist()
    for row, split in zip(shown.select(["key", "image", "split"]).to_pylist(), of_image, strict=True):
        if row["split"] not in (split, NO_SPLIT):
            yield f"record {row['key']} is in {row['split']}, and its picture {row['image']} in {split}."


def _divided_by_subject(manifest: Manifest, records: pa.Table) -> pa.Table:
    """Records whose subject decides their split, or helps to."""
    if manifest.splitting.images_by == "image_and_subject":
        return records.filter(pc.not_equal(records["split"].cast(pa.string()), NO_SPLIT))
    return records.filter(pc.is_null(records["image"]))


def blocked_rows(records: pa.Table, blocklist: Blocklist) -> np.ndarray:
    """(R,) bool: records of subjects or recordings on the blocklist."""
    subject, subjects = tables.coded(records["subject"])
    recording, recordings = tables.coded(records["recording"])
    dataset, datasets = tables.coded(records["dataset"])
    blocked = np.isin(
        subject, [code for code, name in enumerate(subjects) if name in set(blocklist.subjects)]
    )
    for name in blocklist.recordings:
        in_dataset, _, in_recording = name.partition("/")
        if in_dataset in datasets and in_recording in recordings:
            blocked |= (dataset == datasets.index(in_dataset)) & (recording == recordings.index(in_recording))
    return blocked


def _subjects_in_two_splits(records: pa.Table) -> Iterator[str]:
    subject, subjects = tables.coded(records["subject"])
    split, splits = tables.coded(records["split"])
    pairs = np.unique(np.stack([subject, split], axis=1), axis=0) if len(records) else np.empty((0, 2), int)
    for code in np.flatnonzero(np.bincount(pairs[:, 0]) > 1) if len(pairs) else []:
        where = sorted(splits[place] for place in pairs[pairs[:, 0] == code, 1])
        yield f"subject {subjects[code]} is in {' and '.join(where)}: whoever is learnt from is tested on."


def _same_recording_twice(recordings: pa.Table) -> Iterator[str]:
    first: dict[str, str] = {}
    for row in recordings.select(["dataset", "recording", "status", "content"]).to_pylist():
        name = f"{row['dataset']}/{row['recording']}"
        if row["status"] != "kept" or row["content"] is None:
            continue
        if row["content"] in first:
            yield f"{name} is a duplicate of {first[row['content']]}: put one of them on the blocklist."
        first.setdefault(row["content"], name)


def _same_record_twice(records: pa.Table, same_values: Callable[[int, int], bool]) -> Iterator[str]:
    """Records with the same values, such as one night stored in two recordings that overlap.

    Equal checksums alone say little: of four million records, some two thousand pairs share theirs by chance.
    """
    columns = [records[name].to_numpy().astype(np.int64) for name in ("crc32c", "samples", "channels")]
    if not len(records):
        return
    order = np.lexsort(columns)
    ordered = np.stack(columns, axis=1)[order]
    same = np.flatnonzero((ordered[1:] == ordered[:-1]).all(axis=1))
    for row, other in zip(order[same].tolist(), order[same + 1].tolist(), strict=True):
        if not same_values(row, other):
            continue
        keys = [records["key"][place].as_py() for place in (row, other)]
        yield f"records {keys[0]} and {keys[1]} hold the same values: one recording may lie in the store twice."
