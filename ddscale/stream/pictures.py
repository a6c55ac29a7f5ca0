"""The pictures of several stores as one list. R records of a store, N pictures of all."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ddscale.store import Store


def has_pictures(stores: Sequence[Store]) -> bool:
    """Whether any of the stores holds a picture."""
    return any(store.images is not None for store in stores)


class StorePictures:
    """All pictures of some stores, those of the first store first; `HostBatch.images` counts them.

    Threads may share it. Raises ValueError when no store has any.
    """

    def __init__(self, stores: Sequence[Store]) -> None:
        if not has_pictures(stores):
            names = ", ".join(store.address for store in stores)
            raise ValueError(
                f"{names} holds no pictures: ingest a source that has them, such as recipes/ingest/demo-paired.yaml."
            )
        self._stores = tuple(stores)
        counts = [0 if store.images is None else len(store.images) for store in stores]
        self._first = np.concatenate([[0], np.cumsum(counts)])

    def __len__(self) -> int:
        return int(self._first[-1])

    @functools.cached_property
    def names(self) -> list[str]:
        """`dataset/image` of each picture."""
        pairs = zip(self._column("dataset"), self._column("image"), strict=True)
        return [f"{dataset}/{image}" for dataset, image in pairs]

    @functools.cached_property
    def captions(self) -> list[str]:
        """What each picture shows, in words; "" where nothing is said."""
        return self._column("caption")

    @functools.cached_property
    def labels(self) -> list[str]:
        """Class of each picture; "" where nothing is said."""
        return self._column("label")

    @functools.cached_property
    def splits(self) -> list[str]:
        """train, val or test."""
        return self._column("split")

    @functools.cached_property
    def sha256(self) -> list[str]:
        """Checksum of each picture's file, hex."""
        return self._column("sha256")

    @functools.cached_property
    def fingerprint(self) -> str:
        """64 hex digits: changes with any picture's name or bytes, or with their order."""
        digest = hashlib.sha256()
        for name, sha256 in zip(self.names, self.sha256, strict=True):
            digest.update(f"{name}\0{sha256}\n".encode())
        return digest.hexdigest()

    @functools.cached_property
    def rows_of_records(self) -> list[NDArray[np.int64]]:
        """For each store (R,) int64: row of each record's picture in this list; -1 where none was shown."""
        return [
            np.where(store.image_row_of_record < 0, -1, store.image_row_of_record.astype(np.int64) + first)
            for store, first in zip(self._stores, self._first[:-1].tolist(), strict=True)
        ]

    def read(self, row: int) -> bytes:
        """The file of a picture, PNG or JPEG, as it came.

        Raises IndexError when there is no such row, OSError naming picture and shard when it cannot be read.
        """
        if not 0 <= row < len(self):
            raise IndexError(f"There are {len(self)} pictures, asked for number {row}.")
        store = int(np.searchsorted(self._first, row, side="right")) - 1
        return self._stores[store].read_image(row - int(self._first[store]))

    def _column(self, name: str) -> list[str]:
        return [
            text or ""
            for store in self._stores
            if store.images is not None
            for text in store.images[name].cast(pa.string()).to_pylist()
        ]
