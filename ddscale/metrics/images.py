"""Pictures as every metric here takes them: (B, 3, H, W), uint8 0..255 or float 0..1, nothing else.

Legend: B pictures, H height, W width, G generated samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Pixels = NDArray[np.generic] | Tensor


class Pictures(Protocol):
    """Pictures addressed by number: a NumPy array or a torch tensor is one, a reader of files can be one."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: NDArray[np.int64]) -> Pixels: ...


def as_float(pictures: Pixels) -> Tensor:
    """Check pictures and return them as (B, 3, H, W) float64 in 0..1.

    pictures: (B, 3, H, W), red-green-blue, uint8 0..255 or floating point 0..1.
    Converting before any arithmetic is the point: uint8 differences wrap around (3 − 5 = 254).
    Raises ValueError on another shape, another type, values out of range or not finite.
    """
    tensor = pictures if isinstance(pictures, Tensor) else torch.from_numpy(np.ascontiguousarray(pictures))
    if tensor.ndim != 4 or tensor.shape[1] != 3 or 0 in tensor.shape:
        raise ValueError(
            f"pictures of shape {tuple(tensor.shape)} are not (B, 3, H, W): {_shape_remedy(tensor)}"
        )
    if tensor.dtype == torch.uint8:
        return tensor.to(torch.float64) / 255.0
    if not tensor.is_floating_point():
        raise ValueError(f"pictures of type {tensor.dtype}: give uint8 0..255 or floating point 0..1.")
    as_double = tensor.detach().to(torch.float64)
    low, high = as_double.aminmax()
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise ValueError("pictures hold NaN or infinite values: generation went wrong before the metric.")
    if low < -1e-3 or high > 1 + 1e-3:
        remedy = "divide by 255, or give uint8" if high > 2 else "shift −1..1 to 0..1 by (x + 1) / 2, or clip"
        raise ValueError(f"pictures as floats range over {low:.4g}..{high:.4g}, not 0..1: {remedy}.")
    return as_double.clamp(0.0, 1.0)


def as_float_pair(a: Pixels, b: Pixels) -> tuple[Tensor, Tensor]:
    """Check two batches that are compared picture by picture; raises ValueError when their shapes differ."""
    first, second = as_float(a), as_float(b)
    if first.shape != second.shape:
        raise ValueError(
            f"pictures of shapes {tuple(first.shape)} and {tuple(second.shape)} cannot be compared pixel by pixel: "
            "resize one to the other's height and width."
        )
    return first, second.to(first.device)


def from_pil(pictures: Sequence[Image.Image]) -> NDArray[np.uint8]:
    """PIL pictures of one size as (B, 3, H, W) uint8; transparency is dropped, grey becomes three equal planes."""
    sizes = {picture.size for picture in pictures}
    if len(sizes) != 1:
        raise ValueError(f"pictures of {len(sizes)} different sizes {sorted(sizes)[:4]}: resize them to one.")
    return np.stack([np.asarray(picture.convert("RGB")).transpose(2, 0, 1) for picture in pictures])


def resize(pictures: Tensor, size: int, mode: str) -> Tensor:
    """Resize float (B, 3, H, W) to (B, 3, size, size) with anti-aliasing, as Pillow does; not square is squashed."""
    if tuple(pictures.shape[-2:]) == (size, size):
        return pictures
    resized = F.interpolate(pictures, size=(size, size), mode=mode, align_corners=False, antialias=True)
    return resized.clamp(0.0, 1.0)


def _shape_remedy(tensor: Tensor) -> str:
    if tensor.ndim == 4 and tensor.shape[-1] == 3:
        return "move the colours to axis 1, with .transpose(0, 3, 1, 2) in NumPy or .permute(0, 3, 1, 2) in torch."
    if tensor.ndim == 3:
        return "add the batch axis, with x[None]."
    if tensor.ndim == 4 and tensor.shape[1] == 1:
        return "repeat the grey plane three times."
    return "B pictures of three planes, red, green, blue."
