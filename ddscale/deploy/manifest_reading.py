"""manifest.json back to dataclasses, and whether what it says can be: it may come from anywhere.

Standard library only, as the manifest itself.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from ddscale.deploy.manifest import Manifest

_DTYPES = ("float16", "float32", "float64", "int32", "int64")
T = TypeVar("T")


def read_json(path: Path) -> Any:
    """Raises ValueError when it is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def decode(kind: type[T], value: Any, where: str) -> T:
    """JSON to a dataclass of dataclasses, checking keys and types. Raises ValueError naming the place.

    Keys with a default may be missing: they came later than some exports.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    result: Any
    if dataclasses.is_dataclass(kind):
        result = _decode_fields(kind, value, where)
    elif origin is tuple and isinstance(value, list):
        result = tuple(decode(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    elif origin is dict and isinstance(value, dict):
        result = {name: decode(arguments[1], item, f"{where}.{name}") for name, item in value.items()}
    elif origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return typing.cast(T, None)
        fitting = [a for a in arguments if a is not type(None)]
        plain = [a for a in fitting if isinstance(a, type) and isinstance(value, a)]
        result = decode((plain or fitting)[0], value, where)
    elif origin is Literal and value in arguments:
        result = value
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        result = _finite(value, where)
    elif kind is Any or (kind in (int, str) and type(value) is kind):
        result = value
    else:
        raise ValueError(f"{where} is {str(value)[:80]!r}")
    return typing.cast(T, result)


def _decode_fields(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is no mapping")
    hints = typing.get_type_hints(kind)
    known = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := sorted(value.keys() - known.keys()):
        raise ValueError(f"{where} has keys that this ddscale does not know, {', '.join(unknown)[:200]}")
    needed = {
        name
        for name, field in known.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    if missing := sorted(needed - value.keys()):
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    return kind(**{name: decode(hints[name], item, f"{where}.{name}") for name, item in value.items()})


def _finite(value: float, where: str) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{where} is {str(value)[:80]}")
    return number


def check_possible(manifest: Manifest) -> None:
    """Raise ValueError for names that lead out of the folder, files without a checksum and impossible numbers."""
    for name in manifest.graphs:
        # It becomes the name of files and folders.
        if not re.fullmatch(r"[a-z0-9_]+", name):
            raise ValueError(f"graphs has {name[:80]!r}")
    for name in manifest.files:
        if not _is_plain(name):
            raise ValueError(f"files has {name[:80]!r}, which is no plain name below the folder")
    if unlisted := sorted({file for file in _named_files(manifest) if file not in manifest.files}):
        raise ValueError(f"there is no checksum of {', '.join(unlisted)[:200]}")
    if unknown := sorted(manifest.golden.tolerances.keys() - manifest.graphs.keys()):
        raise ValueError(f"golden.tolerances has {', '.join(unknown)[:200]}, no such graph is there")
    for where, number, least in _numbers(manifest):
        if number < least:
            raise ValueError(f"{where} is {number}")
    if manifest.sfreq is not None and not manifest.sfreq > 0:
        raise ValueError(f"sfreq is {manifest.sfreq}")
    for profile in manifest.profiles:
        if not 1 <= profile.min <= profile.opt <= profile.max:
            sizes = f"{profile.min}, {profile.opt}, {profile.max}"
            raise ValueError(f"profile {profile.name[:80]}: {sizes} are not 1 <= min <= opt <= max")
    for name, graph in manifest.graphs.items():
        for tensor in (*graph.inputs, *graph.outputs):
            first, *others = tensor.shape or (0,)
            fixed = all(isinstance(size, int) and size >= 1 for size in others)
            if tensor.dtype not in _DTYPES or not isinstance(first, str) or not fixed:
                shape = str(tensor.shape)[:80]
                raise ValueError(f"{name}: {tensor.name[:80]} is {tensor.dtype[:80]} of shape {shape}")


def _is_plain(name: str) -> bool:
    # `\` and `:` lead elsewhere on Windows.
    parts = name.split("/")
    return not any(part in ("", ".", "..") for part in parts) and not set(name) & {"\\", ":", "\0"}


def _named_files(manifest: Manifest) -> Iterator[str]:
    for graph in manifest.graphs.values():
        yield graph.file
        if graph.data_file is not None:
            yield graph.data_file
    yield from (schedule.file for schedule in manifest.schedules)
    yield from (manifest.golden.file, manifest.weight_names)
    if manifest.constants is not None:
        yield manifest.constants


def _numbers(manifest: Manifest) -> Iterator[tuple[str, float, float]]:
    """Where, how much, and how much at least."""
    yield "channels", manifest.channels, 1
    yield "samples", manifest.samples, 1
    if (latent := manifest.latent) is not None:
        for name, size in dataclasses.asdict(latent).items():
            yield f"latent.{name}", size, 1
    for name, graph in manifest.graphs.items():
        yield f"{name}.opset", graph.opset, 1
        yield f"{name}.parameters", graph.parameters, 0
    for name, file in manifest.files.items():
        yield f"files.{name}.bytes", file.bytes, 0
    for schedule in manifest.schedules:
        yield f"steps of {schedule.name[:80]}", schedule.steps, 1
    for name, tolerance in manifest.golden.tolerances.items():
        yield f"golden.tolerances.{name}", tolerance, 0
    if (end := manifest.golden.end_to_end) is not None:
        yield "golden.end_to_end.steps", end.steps, 1
        yield "golden.end_to_end.tolerance", end.tolerance, 0
