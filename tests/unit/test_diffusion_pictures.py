"""Pictures to tensors: square, sized, cropped where the seed says."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from ddscale.diffusion.pictures import WHOLE, Crop, as_tensor, crops_of, decode


def _ramp(width, height):
    x = np.linspace(0, 255, width).round().astype(np.uint8)
    return Image.fromarray(np.repeat(np.broadcast_to(x, (height, width))[..., None], 3, axis=2).copy())


def test_a_picture_of_the_right_size_is_only_rescaled():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    tensor = as_tensor(Image.fromarray(pixels), 16)
    assert torch.equal(tensor, torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1)


def test_a_wide_picture_is_cut_around_its_centre():
    tensor = as_tensor(_ramp(64, 32), 32)
    assert tensor.shape == (3, 32, 32)
    expected = as_tensor(_ramp(64, 32).crop((16, 0, 48, 32)), 32)
    torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-6)


def test_crops_begin_with_the_whole_and_stay_inside():
    crops = crops_of(picture=3, count=20, share=0.8, seed=0)
    assert crops[0] == WHOLE
    assert all(0 <= c.left <= 0.2 and 0 <= c.top <= 0.2 and c.side == 0.8 for c in crops[1:])
    assert len({c.left for c in crops[1:]}) == 19
    assert crops[:5] == crops_of(picture=3, count=5, share=0.8, seed=0)
    assert crops[1] != crops_of(picture=4, count=2, share=0.8, seed=0)[1]
    assert crops[1] != crops_of(picture=3, count=2, share=0.8, seed=1)[1]


def test_a_crop_shows_its_part():
    right_half = as_tensor(_ramp(64, 64), 32, Crop(0.5, 0.25, 0.5))
    assert abs(right_half.mean() - 0.5) < 0.02


def test_files_are_decoded_to_rgb_and_others_refused_by_name():
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), 7, dtype=np.uint8)).save(buffer, format="PNG")
    assert decode(buffer.getvalue(), "grey").getpixel((0, 0)) == (7, 7, 7)
    with pytest.raises(ValueError, match="n01440764_1"):
        decode(b"not a picture", "n01440764_1")
    with pytest.raises(ValueError, match="half"):
        decode(buffer.getvalue()[:40], "half")
