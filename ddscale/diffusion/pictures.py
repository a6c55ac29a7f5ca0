"""Pictures as networks take them: decoded, cut square, resized by Pillow, -1..1."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ddscale.diffusion.draws import Purpose, uniform


class Crop(NamedTuple):
    """A square inside the largest centred square of a picture, whose side is 1."""

    left: float
    top: float
    side: float


WHOLE = Crop(0.0, 0.0, 1.0)


def decode(data: bytes, name: str) -> Image.Image:
    """A PNG, JPEG or other picture file's bytes as RGB; ValueError naming it when they are none."""
    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise ValueError(f"picture {name} cannot be decoded ({error}): replace or remove it.") from error


def crops_of(picture: int, count: int, share: float, seed: int) -> list[Crop]:
    """`count` crops of one picture (its number): the whole square, then squares of side `share` at random places.

    The places belong to (seed, picture, number of the crop).
    """
    numbers = torch.arange(1, count, dtype=torch.int64)
    places = [
        uniform(seed, picture * 2**20 + 2 * numbers + axis, Purpose.CROP) * (1 - share) for axis in (0, 1)
    ]
    found = [Crop(x, y, share) for x, y in zip(places[0].tolist(), places[1].tolist(), strict=True)]
    return [WHOLE, *found]


def as_tensor(picture: Image.Image, size: int, crop: Crop = WHOLE) -> Tensor:
    """The crop of a picture, resized bicubically: (3, size, size) float32 in -1..1."""
    side = min(picture.size)
    left = (picture.width - side) / 2 + crop.left * side
    top = (picture.height - side) / 2 + crop.top * side
    box = (left, top, left + crop.side * side, top + crop.side * side)
    if box == (0, 0, size, size):
        resized = picture
    else:
        resized = picture.resize((size, size), Image.Resampling.BICUBIC, box=box)
    pixels = torch.from_numpy(np.array(resized, dtype=np.uint8)).permute(2, 0, 1)
    return pixels.float() / 127.5 - 1
