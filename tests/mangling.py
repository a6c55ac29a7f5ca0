"""Bodies of requests that are wrong in many ways, and a judge of those that are right by chance."""

from __future__ import annotations

import io
import struct

import numpy as np
from deployed import CHANNELS, SAMPLES, eeg


def npy(array):
    """A .npy file of an array, as bytes."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def is_eeg(body):
    """Whether NumPy itself reads all of it as finite windows of the tiny folder's shape."""
    stream = io.BytesIO(body)
    try:
        windows = np.load(stream, allow_pickle=False)
    except Exception:
        return False
    right = windows.ndim in (2, 3) and windows.shape[-2:] == (CHANNELS, SAMPLES) and windows.size > 0
    return right and windows.dtype.kind in "fi" and np.isfinite(windows).all() and not stream.read()


def mangled(random):
    """A body that is wrong in one of many ways, or by chance right."""
    good = bytearray(npy(eeg(1 + random.integers(3))))
    match random.integers(9):
        case 0:
            return random.bytes(random.integers(300))
        case 1:
            return bytes(good[: random.integers(len(good))])
        case 2:
            return bytes(good) + random.bytes(random.integers(1, 5000))
        case 3:
            for _ in range(random.integers(1, 8)):
                good[random.integers(128)] ^= 1 << random.integers(8)
            return bytes(good)
        case 4:
            return b"\x93NUMPY" + random.bytes(random.integers(200))
        case 5:
            version = random.choice([1, 2])
            header = "".join(
                random.choice(list("{}[]()',:<>f4i8 descrshapefortran_orderTrue0123456789-*~L"), 100)
            )
            length = struct.pack("<H" if version == 1 else "<I", random.choice([100, 99, 2**16 - 1, 0]))
            return b"\x93NUMPY" + bytes([version, 0]) + length + header.encode() + random.bytes(50)
        case 6:
            shape = tuple(
                int(n) for n in random.choice([0, 1, 4, 32, -1, 2**31, 2**62, 2**40], random.integers(5))
            )
            descr = random.choice(
                ["<f4", "|O", "<f8", "<U9", "V999999", "<c16", "<M8[s]", "(9,)f4", "f4,f4", "junk"]
            )
            header = str({"descr": str(descr), "fortran_order": False, "shape": shape}).encode()
            return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + random.bytes(600)
        case 7:
            nested = random.choice([b"(", b"[", b"{", b"-", b"~", b"not ", b"'", b'"""', b"\\", b"0,"])
            header = (bytes(nested) * 1024)[:1024]
            return b"\x93NUMPY\x01\x00" + struct.pack("<H", 1024) + header
        case _:
            windows = eeg(1)
            values = [np.nan, np.inf, 0, 1e30, -1e38, 1e-30]
            windows[0, random.integers(CHANNELS)] = random.choice(values)
            return npy(windows)
