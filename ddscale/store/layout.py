"""Where things lie in a store's folder, and how a file gets there whole or not at all.

    STORE/
      manifest.json         what the store is; written last, names the tables by their SHA-256
      records.parquet       one row per record: the index
      rejected.parquet      every stretch that was left out, and why
      recordings.parquet    one row per recording: what became of it
      sources.parquet       size and time of each source file, to notice when one changes
  images.parquet        one row per picture that EEG was recorded to; only where there are any
  images/<dataset>-000000.tar  those pictures as they came, WebDataset shards, for either backend
      <dataset>-000000.tar  tar backend: WebDataset shards
      <dataset>/<group>/    zarr backend: arrays `signal`, `length`, `key`, ... and zarr.json at every level
      .staging/             work under way; gone once everything is published

This is the one module that turns a store's address into paths.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

FORMAT: Literal["ddscale-store"] = "ddscale-store"
FORMAT_VERSION = 1
PAIRED_VERSION = 2
"""Format of a store with trials or pictures: programs that know only 1 would lose them without a word."""

MANIFEST = "manifest.json"
RECORDS = "records.parquet"
REJECTED = "rejected.parquet"
RECORDINGS = "recordings.parquet"
SOURCES = "sources.parquet"
IMAGES = "images.parquet"
IMAGE_FOLDER = "images"
SUMMARY = "ingest_summary.json"
STAGING = ".staging"
TEMPORARY = ".tmp"

Backend = Literal["tar", "zarr"]


def is_url(address: str | os.PathLike[str]) -> bool:
    """Whether a store's address has a protocol, such as s3://."""
    return re.match(r"[a-z][a-z0-9+.-]+://", os.fspath(address), re.IGNORECASE) is not None


def local_folder(address: str | os.PathLike[str]) -> Path:
    """The folder a store's address means, for those who write there or look at every file.

    Raises ValueError for a URL: stores can be read and described there, not written or verified.
    """
    text = os.fspath(address)
    if is_url(text):
        raise ValueError(
            f"{text} is not a local folder: stores are written and verified locally. Copy it to or from a local disk, "
            "or mount it. Training and `ddscale inspect` read URLs, and what they fetch is checked."
        )
    return Path(text)


def record_key(dataset: str, recording: str, index: int) -> str:
    """The record's name in every backend; holds no dots, since WebDataset splits names there."""
    return f"{dataset}-{recording}-{index:06d}"


def tar_shard(dataset: str, number: int) -> str:
    """Path of a tar shard, relative to the store."""
    return f"{dataset}-{number:06d}.tar"


def image_shard(dataset: str, number: int) -> str:
    """Path of a shard of pictures, relative to the store."""
    return f"{IMAGE_FOLDER}/{tar_shard(dataset, number)}"


def zarr_shard(dataset: str, group: str, number: int) -> str:
    """Path of a shard of the `signal` array, relative to the store: Zarr's own naming of chunk (number, 0, 0)."""
    return f"{dataset}/{group}/signal/c/{number}/0/0"


def shard_number(shard: str) -> int:
    """The running number in a shard's path, for either backend."""
    return int(
        shard.rsplit("-", 1)[1].removesuffix(".tar") if shard.endswith(".tar") else shard.split("/")[-3]
    )


def sync_folder(folder: Path) -> None:
    """Make renames in this folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """Yields a temporary path beside `target`; renamed onto it when the block ends well, else removed.

    Whoever looks at `target` sees the old content or the new, never a part, even after a power cut. A target
    that holds the same content already is left untouched, time of change and all.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}{TEMPORARY}")
    try:
        yield temporary
        if target.is_file() and filecmp.cmp(temporary, target, shallow=False):
            return
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, target)
        sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporaries(store: Path) -> None:
    """Remove what `written_whole` left of files that a killed process was writing; only while nobody else writes."""
    for path in store.rglob(f".*{TEMPORARY}"):
        path.unlink(missing_ok=True)


def write_bytes(target: Path, content: bytes) -> None:
    """Write a small file whole."""
    with written_whole(target) as temporary:
        temporary.write_bytes(content)
