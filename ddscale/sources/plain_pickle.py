"""Pickles that hold nothing but arrays, numbers, texts, lists and dicts; any other is refused, unexecuted."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("_codecs", "encode"),
    ("builtins", "bytearray"),
}


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which could run code")
        return super().find_class(module, name)


def load_dict(path: Path) -> dict[str, Any]:
    """A dict that `numpy.save` or `pickle.dump` wrote, as published data sets have them.

    Raises FileNotFoundError, or ValueError naming the file when it holds anything else or is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Put it there, or correct the source's folders.")
    with path.open("rb") as file:
        try:
            if file.read(6) == b"\x93NUMPY":
                file.seek(0)
                version = np.lib.format.read_magic(file)
                header = np.lib.format.read_array_header_1_0 if version == (1, 0) else None
                shape, _, dtype = (header or np.lib.format.read_array_header_2_0)(file)
                if shape != () or dtype.kind != "O":
                    raise ValueError(f"it is an array {shape} of {dtype}, not a dict")
                loaded = _Plain(file).load().item()
            else:
                file.seek(0)
                loaded = _Plain(file).load()
        except (
            pickle.UnpicklingError,
            ValueError,
            EOFError,
            AttributeError,
            ImportError,
            IndexError,
            TypeError,
        ) as error:
            raise ValueError(
                f"{path} cannot be read as a dict of arrays: {error}. Copy it again from its origin."
            ) from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, not a dict: it is not as published.")
    return loaded
