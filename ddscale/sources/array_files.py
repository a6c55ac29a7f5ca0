"""Arrays on disk, opened for reading stretch by stretch in the layout a recipe states.

What cannot be read in parts (text, compressed .npz, MATLAB before 7.3) is unpacked into a temporary file first.
Nothing in these files is ever executed: no pickles.
Shapes: C channels, T samples, R repetitions.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from ddscale.sources.arrays import ArraysSource, TextLayout
from ddscale.sources.formats import extension, format_of
from ddscale.sources.recording import OpenRecording
from ddscale.sources.selection import Statements, select

_TEXT_ROWS = 65536  # per block of a table


@dataclass(frozen=True)
class Opened:
    """An array that stays on disk.

    shape: in the order in which the user counts axes. take: the part at an index, as an ndarray. names: of the
    columns of a table.
    """

    shape: tuple[int, ...]
    take: Callable[[tuple[Any, ...]], np.ndarray]
    names: list[str] | None = None


def open_stated_array(path: str, source: ArraysSource) -> OpenRecording:
    """Open an array file as the recipe describes it.

    Raises ValueError when the content is of another kind, shape or key than stated.
    """
    scratch = tempfile.TemporaryDirectory(prefix="ddscale-")
    try:
        opened = _open(Path(path), source, Path(scratch.name))
        return _recording(path, source, opened, scratch.cleanup)
    except BaseException:
        scratch.cleanup()
        raise


def _recording(path: str, source: ArraysSource, opened: Opened, close: Callable[[], None]) -> OpenRecording:
    axes = "TC" if opened.names is not None else source.axes
    if len(opened.shape) != len(axes):
        raise ValueError(
            f"{path} has an array of shape {opened.shape}, and `axes: {axes}` needs {len(axes)} dimensions; "
            "correct `axes:` or `key:`."
        )
    size = dict(zip(axes, opened.shape, strict=True))
    n_channels, per_repetition, n_repetitions = size["C"], size["T"], size.get("R", 1)
    names = _channel_names(path, source, opened, n_channels, axes)
    statements = Statements(unit=source.unit, kinds=source.kinds, kinds_must_match=True)
    selection = select(path, names, kinds=None, units=[None] * n_channels, statements=statements)
    scale_C1 = selection.scale_C[:, None]
    time_axis, channel_axis = axes.index("T"), axes.index("C")

    def take(repetition: int, start: int, stop: int) -> np.ndarray:
        index: list[Any] = [repetition] * len(axes)
        index[time_axis], index[channel_axis] = slice(start, stop), slice(None)
        block = opened.take(tuple(index))
        return block if time_axis > channel_axis else block.T

    def read(start: int, stop: int) -> np.ndarray:
        pieces = []
        for repetition in range(start // per_repetition, -(-stop // per_repetition)):
            first = repetition * per_repetition
            pieces.append(take(repetition, max(start - first, 0), min(stop - first, per_repetition)))
        block_CT = np.concatenate(pieces, axis=1) if len(pieces) > 1 else pieces[0]
        return block_CT[selection.index] * scale_C1

    return OpenRecording(
        path=path,
        sfreq=source.sfreq,
        n_samples=n_repetitions * per_repetition,
        channels=selection.channels,
        read=read,
        unit=selection.unit,
        unit_source=selection.unit_source,
        reference=source.reference,
        spans=[(r * per_repetition, (r + 1) * per_repetition) for r in range(n_repetitions)],
        meta={"format": "array"} | ({"dropped_channels": selection.dropped} if selection.dropped else {}),
        close=close,
    )


def _channel_names(path: str, source: ArraysSource, opened: Opened, n_channels: int, axes: str) -> list[str]:
    stated = len(source.channels) if isinstance(source.channels, list) else source.channels
    if stated is not None and stated != n_channels:
        hint = " (are the axes the other way round?)" if stated in opened.shape else ""
        raise ValueError(
            f"{path} has {n_channels} channels by `axes: {axes}` (shape {opened.shape}), the recipe states {stated}"
            f"{hint}: correct `axes:` or `channels:`."
        )
    if isinstance(source.channels, list):
        return source.channels
    return opened.names or [f"channel {i + 1}" for i in range(n_channels)]


def _open(path: Path, source: ArraysSource, scratch: Path) -> Opened:
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there any more.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes): copy it again from its origin, or exclude it.")
    with path.open("rb") as file:
        content = format_of(file.read(2048)) or "something unknown"
    kind = extension(path.name)
    if content == "NumPy":
        return _open_npy(path)
    if content == "zip" and kind == ".npz":
        return _open_npz(path, source.key, scratch)
    if content == "HDF5":
        return _open_hdf5(path, source.key)
    if content == "MATLAB":
        return _open_matlab(path, source.key, scratch)
    if content == "text" and kind not in (".npy", ".npz", ".h5", ".hdf5", ".mat"):
        return _open_text(path, source.text, scratch)
    raise ValueError(
        f"{path} is no array of a kind known here ({', '.join(('.npy', '.npz', 'HDF5', 'MATLAB', 'text'))}): its "
        f"content is {content}. Recordings in EEG formats belong to a source of kind `files`."
    )


def _numeric(path: Path, what: str, dtype: np.dtype) -> None:
    if dtype.kind not in "iufb":
        raise ValueError(
            f"{path}: {what} holds {dtype}, not numbers, and is not opened (objects could run code): save it as a "
            "plain array."
        )


def _open_npy(path: Path, named: Path | None = None) -> Opened:
    shown = named or path
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except ValueError as error:
        if "objects" in str(error):
            _numeric(shown, "the array", np.dtype(object))
        raise ValueError(
            f"{shown} is damaged or cut short: {error}. Copy it again from its origin."
        ) from error
    _numeric(shown, "the array", array.dtype)

    def take(index: tuple[Any, ...]) -> np.ndarray:
        # Mapped anew for each stretch: pages of a long file that have been read do not stay in the process.
        return np.array(np.lib.format.open_memmap(path, mode="r")[index])

    return Opened(array.shape, take)


def _open_npz(path: Path, key: str | None, scratch: Path) -> Opened:
    with zipfile.ZipFile(path) as archive:
        members = {name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}
        name = _chosen(path, key, {member: "" for member in members})
        with archive.open(members[name]) as packed, (scratch / "array.npy").open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked, 1 << 20)
    return _open_npy(scratch / "array.npy", named=path)


def _open_hdf5(path: Path, key: str | None) -> Opened:
    import h5py

    found: dict[str, str] = {}

    def note(name: str, item: Any) -> None:
        # MATLAB keeps what cells and structs refer to in groups that begin with #.
        if isinstance(item, h5py.Dataset) and item.ndim >= 2 and item.dtype.kind in "iuf" and name[0] != "#":
            found[name] = str(item.shape)

    try:
        with h5py.File(path) as file:
            matlab = file.userblock_size >= 512
            file.visititems(note)
            if key is not None and key not in file:
                raise _no_such_key(path, key, found)
            name = key if key is not None else _chosen(path, None, found)
            dataset = file[name]
            if not isinstance(dataset, h5py.Dataset):
                raise _no_such_key(path, name, found)
            _numeric(path, name, dataset.dtype)
            shape = dataset.shape
    except OSError as error:
        raise ValueError(
            f"{path} is damaged or cut short: {error}. Copy it again from its origin."
        ) from error

    def take(index: tuple[Any, ...]) -> np.ndarray:
        with h5py.File(path) as file:
            # MATLAB writes its columns first, so that HDF5 sees the axes reversed.
            return np.asarray(file[name][index[::-1]]).T if matlab else np.asarray(file[name][index])

    return Opened(shape[::-1] if matlab else shape, take)


def _open_matlab(path: Path, key: str | None, scratch: Path) -> Opened:
    """Before version 7.3 a variable is compressed as a whole (and at most 2 GB): unpacked once, then read in parts."""
    import scipy.io

    shapes = {name: str(shape) for name, shape, kind in scipy.io.whosmat(str(path))}
    first, *deeper = (_chosen(path, None, shapes) if key is None else key).split("/")
    if first not in shapes:
        raise _no_such_key(path, first, shapes)
    loaded = scipy.io.loadmat(
        str(path), variable_names=[first], struct_as_record=False, squeeze_me=bool(deeper)
    )
    value = loaded[first]
    for level in deeper:
        if not hasattr(value, level):
            raise _no_such_key(path, key or first, dict.fromkeys(getattr(value, "_fieldnames", []), ""))
        value = getattr(value, level)
    array = np.asarray(value)
    _numeric(path, key or first, array.dtype)
    np.save(scratch / "array.npy", array, allow_pickle=False)
    return _open_npy(scratch / "array.npy", named=path)


def _open_text(path: Path, layout: TextLayout, scratch: Path) -> Opened:
    """Parsed block by block into a file of float64, (T, C)."""
    import pandas

    delimiter = layout.delimiter or ("\t" if extension(path.name) == ".tsv" else ",")
    if delimiter == layout.decimal:
        raise ValueError(
            f"{path}: the comma cannot separate columns and decimals at once: state `text.delimiter:`, such as `;`."
        )
    options: dict[str, Any] = {
        "sep": r"\s+" if delimiter == "whitespace" else delimiter,
        "decimal": layout.decimal,
        "comment": layout.comment,
        "header": 0 if layout.header else None,
        "skipinitialspace": True,
        "encoding": "utf-8-sig",
        "encoding_errors": "replace",
    }
    try:
        first = pandas.read_csv(path, nrows=1, index_col=False, **options)
    except (pandas.errors.ParserError, pandas.errors.EmptyDataError) as error:
        raise ValueError(f"{path} is not a table as `text:` describes it: {error}.") from error
    names = [str(name).strip() for name in first.columns]
    positions = _positions(path, layout, names)
    rows = 0
    with (scratch / "table").open("wb") as file:
        for block in _blocks(path, positions, options):
            rows += _append(path, file, block, positions, names, rows)
    chosen = [names[p] if layout.header else f"column {p}" for p in positions]
    shape = (rows, len(positions))

    def take(index: tuple[Any, ...]) -> np.ndarray:
        return np.array(np.memmap(scratch / "table", np.float64, "r", shape=shape)[index])

    return Opened(shape, take, chosen)


def _blocks(path: Path, positions: list[int], options: dict[str, Any]) -> Any:
    import pandas

    with pandas.read_csv(path, usecols=positions, chunksize=_TEXT_ROWS, index_col=False, **options) as blocks:
        try:
            yield from blocks
        except pandas.errors.ParserError as error:
            raise ValueError(
                f"{path} is not a table throughout: {error}. Correct `text:` or the file."
            ) from error


def _append(
    path: Path, file: IO[bytes], block: Any, positions: list[int], names: list[str], before: int
) -> int:
    try:
        values_TC = block.to_numpy(np.float64)
    except (ValueError, TypeError):
        import pandas

        for column, position in zip(block.columns, sorted(positions), strict=True):
            numbers = pandas.to_numeric(block[column], errors="coerce")
            wrong = numbers.isna() & block[column].notna()
            if wrong.any():
                row = int(wrong.to_numpy().argmax())
                value = block[column].iloc[row]
                decimal_comma = re.fullmatch(r"\s*[-+]?\d+,\d+([eE][-+]?\d+)?\s*", str(value))
                raise ValueError(
                    f"{path}: {value!r} in column {names[position]!r}, sample {before + row}, is no number. "
                    + (
                        'State `text.decimal: ","`.'
                        if decimal_comma
                        else "Choose the channels with `text.columns:`, or state `text.header:` and `text.comment:`."
                    )
                ) from None
        raise
    order = np.argsort(np.argsort(positions))  # pandas gives columns in the file's order, the recipe may not
    file.write(np.ascontiguousarray(values_TC[:, order]).tobytes())
    return len(values_TC)


def _positions(path: Path, layout: TextLayout, names: list[str]) -> list[int]:
    if layout.columns is None:
        return list(range(len(names)))
    missing = [
        column
        for column in layout.columns
        if (column not in names if isinstance(column, str) else column >= len(names))
    ]
    if missing:
        raise ValueError(
            f"{path} has no column {', '.join(map(str, missing))}; it has {len(names)}: {', '.join(names)}."
        )
    return [names.index(column) if isinstance(column, str) else column for column in layout.columns]


def _chosen(path: Path, key: str | None, found: dict[str, str]) -> str:
    if key is not None and key not in found:
        raise _no_such_key(path, key, found)
    if key is None and len(found) != 1:
        raise ValueError(f"{path} holds {_shown(found)}: say which with `key:`.")
    return key if key is not None else next(iter(found))


def _no_such_key(path: Path, key: str, found: dict[str, str]) -> ValueError:
    return ValueError(f"{path} has no array {key!r}; it holds {_shown(found)}. Correct `key:`.")


def _shown(found: dict[str, str]) -> str:
    return ", ".join(f"{name} {shape}".strip() for name, shape in list(found.items())[:20]) or "no array"
