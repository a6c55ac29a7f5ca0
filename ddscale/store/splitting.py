"""Who and what is held out: subjects, and pictures that EEG was recorded to. R records, N pictures."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from ddscale.store import layout, tables
from ddscale.store.identity import CODES, NO_SPLIT, SPLITS, Split, image_split_of, split_of
from ddscale.store.manifest import Splitting

SPLIT_REASON = "split"
"""Reason in rejected.parquet of trials that no split may have; decided afresh with the splits."""

_NAMES = (*SPLITS, NO_SPLIT)


def image_codes(images: pa.Table, splitting: Splitting, salt: str) -> np.ndarray:
    """(N,) codes of the splits of pictures: what their publishers state, else a stable hash of their bytes.

    Publishers who hold out a test set but nothing for validation leave that to be taken from what they train on.
    """
    dataset, stated, digests = (images[name].to_pylist() for name in ("dataset", "stated", "sha256"))
    with_val = {of for of, said in zip(dataset, stated, strict=True) if said == "val"}
    chosen = np.zeros(len(images), np.uint8)
    for row, (of, said, digest) in enumerate(zip(dataset, stated, digests, strict=True)):
        split: Split
        if said is None:
            split = image_split_of(digest, salt, splitting.val_images, splitting.test_images)
        elif said == "train" and of not in with_val:
            split = image_split_of(digest, salt, splitting.val_images, 0.0)
        else:
            split = said
        chosen[row] = CODES[split]
    return chosen


def record_codes(
    records: pa.Table, images: pa.Table, image_codes_N: np.ndarray, splitting: Splitting, salt: str
) -> np.ndarray:
    """(R,) codes of the splits of records: by their subject, or where a picture was shown by that.

    Raises ValueError naming a picture that records have and `images` has not.
    """
    codes_R = _subject_codes(records, splitting, salt)
    rows_R = image_rows(records, images)
    shown_R = rows_R >= 0
    if shown_R.any():
        of_image_R = image_codes_N[rows_R[shown_R]]
        if splitting.images_by == "image_and_subject":
            of_image_R = np.where(of_image_R == codes_R[shown_R], of_image_R, CODES[NO_SPLIT])
        codes_R[shown_R] = of_image_R
    return codes_R


def image_rows(records: pa.Table, images: pa.Table) -> np.ndarray:
    """(R,) int32: row in `images` of each record's picture; -1 where there is none.

    Raises ValueError naming a picture that records have and `images` has not.
    """
    rows, missing = find_image_rows(records, images)
    if missing:
        raise ValueError(
            f"{layout.IMAGES} lacks pictures that records have: {', '.join(missing[:10])}. Ingest again into a new "
            "folder with a source that lists them."
        )
    return rows


def find_image_rows(records: pa.Table, images: pa.Table) -> tuple[np.ndarray, list[str]]:
    """`image_rows`, and instead of an error the names of pictures that are missing."""
    found = np.full(len(records), -1, np.int32)
    image_R, names = tables.coded(records["image"])
    if not names:
        return found, []
    dataset_R, datasets = tables.coded(records["dataset"])
    known = {
        pair: row
        for row, pair in enumerate(
            zip(images["dataset"].to_pylist(), images["image"].to_pylist(), strict=True)
        )
    }
    shown = image_R >= 0
    pairs, back = np.unique(np.stack([dataset_R[shown], image_R[shown]], axis=1), axis=0, return_inverse=True)
    labels = [(datasets[dataset], names[image]) for dataset, image in pairs.tolist()]
    found[shown] = np.array([known.get(pair, -1) for pair in labels], np.int32)[back.reshape(-1)]
    return found, [f"{dataset}/{image}" for dataset, image in labels if (dataset, image) not in known]


def _subject_codes(records: pa.Table, splitting: Splitting, salt: str) -> np.ndarray:
    subject, subjects = tables.coded(records["subject"])
    chosen = np.zeros(max(len(subjects), 1), np.uint8)
    for code, name in enumerate(subjects):
        if name in splitting.val_subjects:
            split: Split = "val"
        elif name in splitting.test_subjects:
            split = "test"
        else:
            split = split_of(name, salt, splitting.val_fraction, splitting.test_fraction)
        chosen[code] = CODES[split]
    return chosen[subject]


def column(codes: np.ndarray) -> pa.Array:
    """Codes as a column of names."""
    return pa.DictionaryArray.from_arrays(codes.astype(np.int32), pa.array(_NAMES, pa.string()))


def left_out(records: pa.Table, sfreq: float) -> list[dict[str, object]]:
    """Rows of rejected.parquet for the trials that belong to no split. sfreq: Hz."""
    mixed = records.filter(pa.array(_is_none(records)))
    return [
        {
            "dataset": row["dataset"],
            "recording": row["recording"],
            "start_s": row["start"] / sfreq,
            "stop_s": (row["start"] + row["samples"]) / sfreq,
            "reason": SPLIT_REASON,
            "detail": f"its picture {row['image']} and its subject are in different splits",
        }
        for row in mixed.select(["dataset", "recording", "start", "samples", "image"]).to_pylist()
    ]


def _is_none(records: pa.Table) -> np.ndarray:
    codes, names = tables.coded(records["split"])
    return codes == names.index(NO_SPLIT) if NO_SPLIT in names else np.zeros(len(records), bool)
