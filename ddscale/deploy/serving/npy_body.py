"""EEG in the body of a request, as a .npy file: refused as soon as it cannot be right, before memory is spent on it.

Shape letters: B windows, C channels, T samples.
"""

from __future__ import annotations

import io
import math
import warnings

import numpy as np

from ddscale.deploy.manifest import Manifest
from ddscale.deploy.runtime.windows import expected

_MAGIC = b"\x93NUMPY"
# NumPy writes headers of 118 bytes; whoever sends a long one wants to keep a parser busy.
_LONGEST_HEADER = 1024
# Version -> bytes of the header's length, which follow the magic and two bytes of version.
_LENGTH_BYTES = {(1, 0): 2, (2, 0): 4}
_KINDS = {("f", 2), ("f", 4), ("f", 8), ("i", 2), ("i", 4)}
_HOW = "send np.save's bytes as they are (curl --data-binary @eeg.npy)"


class BodyError(ValueError):
    """A body that is not EEG for this model; `status` is HTTP's code."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class NpyBody:
    """Collects the pieces of one body."""

    def __init__(self, manifest: Manifest, max_windows: int) -> None:
        self._manifest, self._max_windows = manifest, max_windows
        self._bytes = bytearray()
        self._expected: int | None = None
        self._windows = 0

    @staticmethod
    def longest(manifest: Manifest, max_windows: int) -> int:
        """Bytes that no right body exceeds."""
        return 12 + _LONGEST_HEADER + max_windows * manifest.channels * manifest.samples * 8

    @property
    def windows(self) -> int:
        """Windows that the header announces; 0 before it was read."""
        return self._windows

    def feed(self, piece: bytes) -> None:
        """Take the next piece. Raises BodyError as soon as the body cannot be right."""
        self._bytes += piece
        if self._expected is None:
            self._read_header()
        if self._expected is not None and len(self._bytes) > self._expected:
            raise BodyError(
                400, f"the body is longer than the {self._expected} bytes its header announces: {_HOW}."
            )

    def array(self) -> np.ndarray:
        """The EEG, (C, T) or (B, C, T), when all has come. Raises BodyError when some is missing."""
        if not self._bytes:
            raise BodyError(400, f"the body is empty: {_HOW}.")
        if self._expected is None:
            raise BodyError(400, f"the body of {len(self._bytes)} bytes ends within the .npy header: {_HOW}.")
        if len(self._bytes) < self._expected:
            raise BodyError(
                400,
                f"the body ends after {len(self._bytes)} of {self._expected} bytes: send it again, whole.",
            )
        array: np.ndarray = np.load(
            io.BytesIO(self._bytes), allow_pickle=False, max_header_size=_LONGEST_HEADER
        )
        return array

    def _read_header(self) -> None:
        if bytes(self._bytes[:6]) != _MAGIC[: len(self._bytes)]:
            kind = "a .npz or zip archive" if self._bytes.startswith(b"PK") else "not a .npy file"
            raise BodyError(400, f"the body is {kind}: {_HOW}.")
        if len(self._bytes) < 8:
            return
        version = (self._bytes[6], self._bytes[7])
        if version not in _LENGTH_BYTES:
            raise BodyError(
                400, f"the .npy is of version {version}: save a plain float32 array with np.save."
            )
        start = 8 + _LENGTH_BYTES[version]
        if len(self._bytes) < start:
            return
        length = int.from_bytes(self._bytes[8:start], "little")
        if length > _LONGEST_HEADER:
            raise BodyError(400, f"the .npy header has {length} bytes, more than {_LONGEST_HEADER}: {_HOW}.")
        if len(self._bytes) < start + length:
            return
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        try:
            with warnings.catch_warnings():
                # Of Python, about the literal's style.
                warnings.simplefilter("ignore")
                shape, _, dtype = read(
                    io.BytesIO(self._bytes[8 : start + length]), max_header_size=_LONGEST_HEADER
                )
        except Exception as error:
            # It evaluates a literal: bad ones raise errors of many kinds, MemoryError and RecursionError among them.
            reason = " ".join(str(error).split())[:120]
            raise BodyError(400, f"the .npy header cannot be read ({reason}): {_HOW}.") from None
        self._check(shape, dtype)
        self._expected = start + length + math.prod(shape) * dtype.itemsize

    def _check(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        if dtype.hasobject or dtype.fields or (dtype.kind, dtype.itemsize) not in _KINDS:
            raise BodyError(
                400,
                f"the array is of type {str(dtype)[:60]}: send float32 (or float16, float64, int16, int32).",
            )
        wanted = (self._manifest.channels, self._manifest.samples)
        if len(shape) not in (2, 3) or tuple(shape[-2:]) != wanted or 0 in shape:
            hint = (
                "swap its last two axes" if tuple(shape[-2:]) == wanted[::-1] else "cut or select it to that"
            )
            raise BodyError(
                422,
                f"the array has shape {_short(shape)}, the model takes (windows, channels, samples) or one window "
                f"of {expected(self._manifest)}: {hint}.",
            )
        self._windows = shape[0] if len(shape) == 3 else 1
        if self._windows > self._max_windows:
            raise BodyError(
                413,
                f"{self._windows} windows in one request, at most {self._max_windows} are taken: send several.",
            )


def _short(shape: tuple[int, ...]) -> str:
    text = str(shape)
    return text if len(text) <= 80 else f"{text[:80]}..."
