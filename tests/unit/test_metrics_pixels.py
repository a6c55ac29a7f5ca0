"""Pictures are checked before any arithmetic; pixel metrics agree with scikit-image and NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
import skimage.metrics
import torch
from PIL import Image
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from ddscale.metrics.images import as_float, from_pil, resize
from ddscale.metrics.pixels import mse, pixcorr, psnr, ssim


@pytest.fixture(scope="module")
def pair():
    """Two photographs and damaged copies of them, (2, 3, 128, 160) uint8."""
    rng = np.random.default_rng(0)
    photographs = np.stack([skimage.data.astronaut()[:128, 100:260], skimage.data.coffee()[100:228, 100:260]])
    noise = rng.normal(0, [[[[12.0]]], [[[40.0]]]], photographs.shape)
    damaged = np.clip(np.rint(photographs + noise), 0, 255).astype(np.uint8)
    return damaged.transpose(0, 3, 1, 2), photographs.transpose(0, 3, 1, 2)


def channels_last(pictures):
    return pictures.transpose(0, 2, 3, 1)


def test_psnr_and_mse_agree_with_scikit_image(pair):
    images = list(zip(*map(channels_last, pair), strict=True))
    expected = [skimage.metrics.peak_signal_noise_ratio(b, a, data_range=255) for a, b in images]
    np.testing.assert_allclose(psnr(*pair), expected, rtol=1e-12)
    theirs = peak_signal_noise_ratio(
        *(as_float(pictures) for pictures in pair), data_range=1.0, dim=(1, 2, 3), reduction="none"
    )
    np.testing.assert_allclose(psnr(*pair), theirs, rtol=1e-6)
    expected = [skimage.metrics.mean_squared_error(a / 255, b / 255) for a, b in images]
    np.testing.assert_allclose(mse(*pair), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("window", "options"),
    [("gaussian", {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}), ("uniform", {})],
)
def test_ssim_agrees_with_scikit_image(pair, window, options):
    expected = [
        skimage.metrics.structural_similarity(a, b, data_range=255, channel_axis=-1, **options)
        for a, b in zip(*map(channels_last, pair), strict=True)
    ]
    np.testing.assert_allclose(ssim(*pair, window=window), expected, rtol=1e-9)


def test_ssim_is_torchmetrics_map_without_the_mirrored_border(pair):
    a, b = (as_float(pictures) for pictures in pair)
    _, whole = structural_similarity_index_measure(
        a, b, data_range=1.0, return_full_image=True, reduction="none"
    )
    torch.testing.assert_close(ssim(a, b), whole[..., 5:-5, 5:-5].mean(dim=(1, 2, 3)), rtol=1e-9, atol=0)


def test_pixcorr_agrees_with_numpy(pair):
    expected = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(*pair, strict=True)]
    np.testing.assert_allclose(pixcorr(*pair), expected, rtol=1e-12)


def test_a_constant_picture_has_no_correlation():
    grey = np.full((1, 3, 16, 16), 0.1)
    other = np.random.default_rng(0).random((1, 3, 16, 16))
    assert pixcorr(grey, other).tolist() == [0.0]
    assert pixcorr(other, grey).tolist() == [0.0]


def test_equal_pictures(pair):
    _, photographs = pair
    assert torch.isinf(psnr(photographs, photographs)).all()
    assert mse(photographs, photographs).tolist() == [0.0, 0.0]
    np.testing.assert_allclose(ssim(photographs, photographs), 1.0, rtol=1e-12)
    np.testing.assert_allclose(pixcorr(photographs, photographs), 1.0, rtol=1e-12)


@pytest.mark.parametrize("metric", [mse, psnr, ssim, pixcorr])
def test_uint8_does_not_wrap_around(pair, metric):
    damaged, photographs = pair
    from_bytes = metric(damaged, photographs)
    np.testing.assert_allclose(from_bytes, metric(damaged / 255.0, photographs / 255.0), rtol=1e-12)
    np.testing.assert_allclose(from_bytes, metric(torch.from_numpy(damaged), photographs), rtol=1e-12)


def test_the_wrap_around_that_is_guarded_against():
    dark, bright = np.full((1, 3, 8, 8), 3, np.uint8), np.full((1, 3, 8, 8), 203, np.uint8)
    assert np.square(bright - dark).mean() == 200**2 % 256  # the original's error: 64 where it is 40,000
    assert mse(bright, dark).item() == pytest.approx(200**2 / 255**2)


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (np.zeros((2, 16, 16, 3), np.uint8), r"transpose\(0, 3, 1, 2\)"),
        (np.zeros((3, 16, 16), np.uint8), "batch axis"),
        (np.zeros((2, 1, 16, 16), np.uint8), "grey"),
        (np.zeros((0, 3, 16, 16), np.uint8), "B pictures"),
        (np.zeros((2, 3, 16, 16), np.int32), "int32"),
        (np.zeros((2, 3, 16, 16), bool), "bool"),
        (np.full((2, 3, 16, 16), 200.0), "divide by 255"),
        (np.full((2, 3, 16, 16), -0.5), r"\(x \+ 1\) / 2"),
        (np.full((2, 3, 16, 16), np.nan), "NaN"),
    ],
)
def test_what_is_no_picture_is_refused_with_a_remedy(pictures, message):
    with pytest.raises(ValueError, match=message):
        as_float(pictures)


def test_pictures_of_different_sizes_are_not_compared():
    with pytest.raises(ValueError, match="resize"):
        mse(np.zeros((1, 3, 16, 16)), np.zeros((1, 3, 16, 17)))
    with pytest.raises(ValueError, match="11 × 11"):
        ssim(np.zeros((1, 3, 8, 16)), np.zeros((1, 3, 8, 16)))


def test_pil_pictures_and_resizing_as_pillow_does():
    photograph = Image.fromarray(skimage.data.chelsea()[:256, :256])
    pictures = from_pil([photograph, photograph.convert("L")])
    assert pictures.shape == (2, 3, 256, 256)
    assert (pictures[1, 0] == pictures[1, 2]).all()
    ours = resize(as_float(pictures[:1]), 100, "bicubic")[0].permute(1, 2, 0).numpy() * 255
    theirs = np.asarray(photograph.resize((100, 100), Image.Resampling.BICUBIC), float)
    assert np.abs(ours - theirs).max() <= 1.0  # Pillow rounds between its two passes
    with pytest.raises(ValueError, match="different sizes"):
        from_pil([photograph, photograph.resize((10, 10))])
