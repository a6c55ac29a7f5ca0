"""Pictures as PNG files in memory, with the standard library's zlib."""

from __future__ import annotations

import struct
import zlib

import numpy as np

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_RGB_8_BIT = bytes([8, 2, 0, 0, 0])
_GAP = 4


def png(picture_HW3: np.ndarray) -> bytes:
    """A PNG of a uint8 picture (H, W, 3)."""
    height, width, _ = picture_HW3.shape
    # Each line begins with its filter: 0, none.
    lines = np.zeros((height, 1 + 3 * width), np.uint8)
    lines[:, 1:] = picture_HW3.reshape(height, -1)
    chunks = [
        (b"IHDR", struct.pack(">II", width, height) + _RGB_8_BIT),
        (b"IDAT", zlib.compress(lines.tobytes(), 6)),
        (b"IEND", b""),
    ]
    return _SIGNATURE + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def grid(pictures_GHW3: np.ndarray, columns: int) -> np.ndarray:
    """Pictures in rows of `columns`, white gaps between them: one uint8 picture."""
    count, height, width, _ = pictures_GHW3.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3), 255, np.uint8)
    for number, picture in enumerate(pictures_GHW3):
        top, left = number // columns * (height + _GAP), number % columns * (width + _GAP)
        sheet[top : top + height, left : left + width] = picture
    return sheet
