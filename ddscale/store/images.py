"""The pictures that EEG was recorded to: as files into shards of their own, untouched, and read back.

    images/<dataset>-000000.tar   WebDataset: `<image>.png|jpg|jpeg` as it came, and `<image>.json`
    images.parquet                one row per picture: where it lies, its SHA-256, split, label and caption

A shard is published whole, then its rows under .staging; an interrupted ingest goes on with the next picture.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ddscale.store import layout, sealing, tables, tar_shards
from ddscale.store.identity import Split
from ddscale.store.shard_files import read_bytes
from ddscale.store.staging import write_error

OnProgress = Callable[[int, int, str], None]

SUFFIXES = ("png", "jpg", "jpeg")
_SEALED = "sealed-images"


@dataclass(frozen=True)
class ImageFile:
    """A picture to be stored.

    image: unique within the dataset; letters, digits, `_` and `-`. suffix: png, jpg or jpeg. path: for messages.
    stated: the split its publishers put it into, or None. read: its bytes.
    """

    dataset: str
    image: str
    suffix: str
    path: str
    read: Callable[[], bytes]
    label: str | None = None
    caption: str | None = None
    stated: Split | None = None


def add(
    store: Path, shard_bytes: float, files: Sequence[ImageFile], on_progress: OnProgress | None = None
) -> int:
    """Seal the pictures that the store does not have yet into new shards; returns how many there were.

    Pictures of a dataset go in the order of their names. on_progress(done, total, name): after each.
    Raises ValueError naming a picture that is damaged or of a kind not stored, FileNotFoundError naming one that is
    gone, StoreWriteError when the store cannot be written.
    """
    new = missing(store, files)
    numbers = sealing.next_numbers(tables.coded(present(store)["shard"])[1])
    batch: list[tuple[bytes, dict[str, Any]]] = []
    size = 0
    for done, file in enumerate(new, start=1):
        pieces, row = _packed(file)
        full = size + len(pieces) + len(tar_shards.END_OF_ARCHIVE) > shard_bytes
        if batch and (full or batch[0][1]["dataset"] != file.dataset):
            _seal(store, numbers, batch)
            batch, size = [], 0
        row["offset"] += size
        batch.append((pieces, row))
        size += len(pieces)
        if on_progress:
            on_progress(done, len(new), f"picture {file.dataset}/{file.image}")
    if batch:
        _seal(store, numbers, batch)
    return len(new)


def missing(store: Path, files: Sequence[ImageFile]) -> list[ImageFile]:
    """Those of the files that the store does not have yet, neither published nor sealed; by dataset and name."""
    known = present(store)
    there = set(zip(known["dataset"].to_pylist(), known["image"].to_pylist(), strict=True))
    new = [file for file in files if (file.dataset, file.image) not in there]
    return sorted(new, key=lambda file: (file.dataset, file.image))


def pending(store: Path) -> bool:
    """Whether pictures are sealed that may not be published yet."""
    return any((store / layout.STAGING / _SEALED).glob("*.arrow"))


def present(store: Path) -> pa.Table:
    """Rows of all pictures in the store, published or only sealed; sorted by dataset, shard and place."""
    parts = [tables.read(store / layout.IMAGES, tables.IMAGES)] if (store / layout.IMAGES).is_file() else []
    known = set(tables.coded(parts[0]["shard"])[1]) if parts else set()
    for path in sorted((store / layout.STAGING / _SEALED).glob("*.arrow")):
        rows = pa.ipc.open_file(pa.py_buffer(path.read_bytes())).read_all()
        shard = rows["shard"][0].as_py()
        if shard not in known and (store / shard).is_file():
            parts.append(rows.cast(tables.IMAGES))
    if not parts:
        return tables.table(tables.IMAGES, [])
    merged = pa.concat_tables(parts).unify_dictionaries()
    plain = pa.table(
        {name: merged[name].cast(pa.string()) if name != "offset" else merged[name] for name in _ORDER}
    )
    return merged.take(pc.sort_indices(plain, sort_keys=[(name, "ascending") for name in _ORDER]))


_ORDER = ("dataset", "shard", "offset")


def _packed(file: ImageFile) -> tuple[bytes, dict[str, Any]]:
    """Both members of a picture, and its row with the place of its bytes counted from there."""
    where = f"picture {file.dataset}/{file.image} ({file.path})"
    if not re.fullmatch(r"[A-Za-z0-9_-]+", file.image):
        raise ValueError(f"{where}: its name may have letters, digits, `_` and `-` only: rename it.")
    if file.suffix not in SUFFIXES:
        raise ValueError(f"{where} is a .{file.suffix}; stored are {', '.join(SUFFIXES)}: convert it.")
    try:
        content = file.read()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{where} is not there: put it back, or exclude its trials.") from error
    width, height = _size(content, where)
    row = {
        "image": file.image,
        "dataset": file.dataset,
        "split": "",  # decided when the table is published
        "stated": file.stated,
        "label": file.label,
        "caption": file.caption,
        "length": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "width": width,
        "height": height,
    }
    said = ("dataset", "image", "label", "caption", "sha256", "width", "height")
    note = {"key": file.image} | {name: row[name] for name in said}
    whole, row["offset"] = tar_shards.file_bytes(file.image, file.suffix, content, note)
    return whole, row


def _size(content: bytes, where: str) -> tuple[int, int]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()  # a file that is cut off is noticed only here
            if picture.format not in ("PNG", "JPEG"):
                raise ValueError(f"{where} is {picture.format} inside: convert it to PNG or JPEG.")
            return picture.size
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{where} is damaged: {error}. Copy it again from its origin.") from error


def _seal(store: Path, numbers: dict[str, int], batch: list[tuple[bytes, dict[str, Any]]]) -> None:
    dataset = batch[0][1]["dataset"]
    family = sealing.family_of(layout.image_shard(dataset, 0))
    number = numbers.get(family, 0)
    numbers[family] = number + 1
    shard = layout.image_shard(dataset, number)
    try:
        with layout.written_whole(store / shard) as temporary, temporary.open("wb") as file:
            file.writelines(pieces for pieces, _ in batch)
            file.write(tar_shards.END_OF_ARCHIVE)
        rows = tables.table(tables.IMAGES, [row | {"shard": shard} for _, row in batch])
        sealed = store / layout.STAGING / _SEALED / f"{dataset}-{number:06d}.arrow"
        layout.write_bytes(sealed, sealing.ipc_bytes(rows))
    except OSError as error:
        raise write_error(store, error) from error


def remove_unpublished(store: Path) -> None:
    """Take away what an ingest that came to nothing has put into a folder that is no store."""
    for shard in (store / layout.IMAGE_FOLDER).glob("*.tar"):
        shard.unlink()
    if (store / layout.IMAGE_FOLDER).is_dir():
        (store / layout.IMAGE_FOLDER).rmdir()


def read(store: Path, row: dict[str, Any]) -> bytes:
    """The bytes of a picture by its row of images.parquet, checked.

    Raises OSError naming picture and shard when they are not there or not those that were stored.
    """
    shard = store / row["shard"]
    cause = ""
    try:
        descriptor = os.open(shard, os.O_RDONLY | os.O_CLOEXEC)
        try:
            content = read_bytes(descriptor, row["length"], row["offset"])
        finally:
            os.close(descriptor)
        if hashlib.sha256(content).hexdigest() != row["sha256"]:
            cause = "the picture's SHA-256 is another"
    except (OSError, ValueError) as error:
        cause = "it is not there" if isinstance(error, FileNotFoundError) else str(error)
    if cause:
        raise OSError(
            f"Cannot read picture {row['dataset']}/{row['image']} from {shard}: {cause}. `ddscale verify {store}` "
            "lists all that is damaged; copy those shards again, or ingest into a new folder."
        )
    return content


def problems(store: Path, images: pa.Table) -> Iterator[str]:
    """Shards against rows, both ways, and every picture against its SHA-256: one sentence each."""
    codes, shards = tables.coded(images["shard"])
    for code, shard in enumerate(shards):
        path = store / shard
        members: dict[str, tar_shards.Member] = {}
        try:
            for member in tar_shards.members(path):
                members[member.name] = member
        except FileNotFoundError:
            yield f"shard {path} is missing, with {int((codes == code).sum())} pictures."
            continue
        except (ValueError, OSError) as error:
            yield f"{error} Copy it again, or ingest into a new folder."
        for row in images.filter(pa.array(codes == code)).to_pylist():
            found = [name for name in members if name.partition(".")[0] == row["image"]]
            pair = [members.pop(name) for name in sorted(found, key=lambda name: name.endswith(".json"))]
            if len(pair) != 2 or (pair[0].offset, pair[0].size) != (row["offset"], row["length"]):
                yield f"picture {row['dataset']}/{row['image']}: {path} has it not whole, or not where the index says."
                continue
            try:
                read(store, row)
            except OSError as error:
                yield str(error)
        for name in members:
            yield f"{name} in {path} belongs to nothing in {layout.IMAGES}."
