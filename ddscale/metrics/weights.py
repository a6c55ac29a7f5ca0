"""Weights of the networks that judge pictures: where they are looked for, and reading them safely.

Nothing is downloaded at run time. A file is looked for in the folder that DDSCALE_WEIGHTS names, under the
path that `WeightsFile` states, and its SHA-256 decides whether it is the published one.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

VARIABLE = "DDSCALE_WEIGHTS"


class MissingWeights(FileNotFoundError):
    """A metric's weights file is not there; the message says which, where it was looked for, whence it comes."""


@dataclass(frozen=True)
class WeightsFile:
    """A published file (or folder) of weights.

    paths: where it may lie below the weights folder, first choice first.
    sha256: its checksum, or the leading digits that its publisher put into its name.
    source: where a person gets it.
    """

    paths: tuple[str, ...]
    source: str
    sha256: str = ""

    def find(self, what: str, folder: Path | None = None) -> Path:
        """Its path below `folder` (default: DDSCALE_WEIGHTS); raises MissingWeights naming `what` needs it."""
        given = folder or os.environ.get(VARIABLE)
        where = f"but {VARIABLE} is not set: set it to a folder that holds them"
        if given:
            root = Path(given).expanduser()
            where = f"which are not in {root}" + ("" if folder else f" ({VARIABLE})")
            for path in self.paths:
                if (root / path).exists():
                    return root / path
        raise MissingWeights(
            f"{what} needs the weights {' or '.join(self.paths)}, {where}. Source: {self.source}."
        )

    def is_published(self, path: Path) -> bool:
        return bool(self.sha256) and checksum(path).startswith(self.sha256)


def checksum(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A torch file of named tensors; nothing in it is executed. Raises ValueError when it is something else."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as a torch file of tensors ({error}): download it again."
        ) from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} does not hold named tensors: it is not the weights file it is named after.")
    return state


def load_strictly(module: torch.nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Put named tensors into a network; raises ValueError naming what is missing, left over or of other shape.

    BatchNorm's counters of training steps may be missing: conversions from TensorFlow do not have them.
    """
    own = module.state_dict()
    needed = {name for name in own if not name.endswith("num_batches_tracked")}
    missing, left_over = sorted(needed - state.keys()), sorted(state.keys() - own.keys())
    misshapen = sorted(name for name in needed & state.keys() if own[name].shape != state[name].shape)
    for problem, names in (
        ("lacks", missing),
        ("has besides", left_over),
        ("has in another shape", misshapen),
    ):
        if names:
            raise ValueError(
                f"{path} does not fit {type(module).__name__}: it {problem} {', '.join(names[:4])}"
                f"{f' and {len(names) - 4} more' if len(names) > 4 else ''}. It is another network's file."
            )
    module.load_state_dict(state, strict=False)


def read_numpy_pickle(path: Path) -> dict[str, Any]:
    """A pickle of nested dicts of numeric NumPy arrays; anything else in it is refused, nothing is executed.

    Not even NumPy's own unpickling runs: arrays are built from their bytes by `np.frombuffer`.
    """
    try:
        with path.open("rb") as file:
            return _arrays(_NumPyOnly(file).load())
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        TypeError,
        AttributeError,
        IndexError,
        KeyError,
    ) as error:
        raise ValueError(
            f"{path} is not a plain pickle of NumPy arrays ({error}): it was not read."
        ) from None


class _PickledType:
    """A pickled np.dtype: its code and byte order, nothing more."""

    def __init__(self, code: str, *_: object) -> None:
        if code not in {"f2", "f4", "f8", "i4", "i8", "u1"}:
            raise pickle.UnpicklingError(f"array type {code!r}")
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = {"<": "<", ">": ">", "|": "|"}[state[1]]


class _PickledArray:
    """A pickled np.ndarray; `array` is built from its bytes."""

    array: NDArray[Any]

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, is_fortran, data = state
        flat = np.frombuffer(data, dtype=np.dtype(kind.order + kind.code))
        self.array = flat.reshape(shape, order="F" if is_fortran else "C")


class _NumPyOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        match module.replace("numpy._core", "numpy.core"), name:
            case ("numpy.core.multiarray", "_reconstruct"):
                return _PickledArray
            case ("numpy", "ndarray"):
                return None  # only ever an argument of _reconstruct, which ignores it
            case ("numpy", "dtype"):
                return _PickledType
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _arrays(tree: Any) -> dict[str, Any]:
    if not isinstance(tree, dict):
        raise ValueError(f"a {type(tree).__name__} at its top")
    return {
        str(key): value.array if isinstance(value, _PickledArray) else _arrays(value)
        for key, value in tree.items()
    }
