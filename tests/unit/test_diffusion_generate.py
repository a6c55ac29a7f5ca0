"""Pictures from EEG as files, their sidecars and the grid."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from ddscale.diffusion.conditioning import EEGConditioner
from ddscale.diffusion.generate import EEGWindow, GenerateSettings, generate, grid_of, seed_of
from ddscale.diffusion.pipeline import EEGToImagePipeline
from ddscale.diffusion.toy import ToySettings, build_toy

SIZES = {"n_channels": 8, "n_samples": 64, "patch": 4, "width": 24, "depth": 1, "heads": 2}
SETTINGS = GenerateSettings(scheduler="ddim", steps=2, samples=2, batch_size=2)


@pytest.fixture(scope="module")
def pipeline():
    torch.manual_seed(0)
    toy = build_toy(["a handwritten three"], ToySettings(vae_channels=(8, 8, 16), unet_channels=(16, 32)))
    conditioner = EEGConditioner(encoder_sizes=SIZES, length=8, width=64, clip_width=None)
    return EEGToImagePipeline(toy.vae.eval(), toy.unet.eval(), toy.scheduler, conditioner.eval())


def _windows(n=3, seen=True):
    generator = torch.Generator().manual_seed(0)
    return [
        EEGWindow(
            key=f"set-rec 1/{number}",
            x_TC=torch.randn(64, 8, generator=generator),
            facts={"label": number},
            seen=Image.new("RGB", (8, 8), "red") if seen else None,
        )
        for number in range(n)
    ]


def test_every_picture_has_a_sidecar_that_gives_it_again(pipeline, tmp_path):
    results = generate(pipeline, _windows(), tmp_path, SETTINGS, facts={"run": "toy run"})
    assert [(r.key, r.sample) for r in results] == [(f"set-rec 1/{n}", k) for n in range(3) for k in range(2)]
    for result in results:
        assert np.array_equal(np.asarray(Image.open(result.path)), np.asarray(result.image))
    sidecar = json.loads(results[3].path.with_suffix(".json").read_text())
    assert sidecar["window"] == {"key": "set-rec 1/1", "label": 1}
    assert sidecar["model"] == {"run": "toy run"}
    assert (sidecar["scheduler"], sidecar["steps"], sidecar["sample"]) == ("ddim", 2, 1)
    assert sidecar["picture"] == results[3].path.name

    again = pipeline(
        _windows()[1].x_TC[None],
        num_inference_steps=sidecar["steps"],
        guidance_scale=sidecar["guidance_scale"],
        generator=torch.Generator().manual_seed(sidecar["seed"]),
    ).images[0]
    difference = np.asarray(again).astype(int) - np.asarray(results[3].image).astype(int)
    # Alone instead of in a batch of four, sums round differently.
    assert np.abs(difference).max() <= 1


def test_the_batch_size_does_not_change_which_noise_a_picture_starts_from(pipeline, tmp_path):
    seeds = []
    for size in (1, 3):
        folder = tmp_path / str(size)
        generate(pipeline, _windows(), folder, SETTINGS.model_copy(update={"batch_size": size}))
        seeds.append([json.loads(p.read_text())["seed"] for p in sorted(folder.glob("*.json"))])
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == 6


def test_run_again_the_files_are_the_same(pipeline, tmp_path):
    for folder in ("first", "second"):
        generate(pipeline, _windows(), tmp_path / folder, SETTINGS)
    names = sorted(p.name for p in (tmp_path / "first").iterdir())
    assert len(names) == 3 * 2 * 2 + 1
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_the_grid_has_a_row_for_each_window_with_the_shown_picture_first(pipeline, tmp_path):
    results = generate(pipeline, _windows(), tmp_path, SETTINGS.model_copy(update={"grid_rows": 2}))
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert grid.shape == (2 * 32 + 4, 3 * 32 + 8, 3)
    assert (grid[:32, :32] == (255, 0, 0)).all()
    assert np.array_equal(grid[:32, 36:68], np.asarray(results[0].image))
    assert np.array_equal(grid[36:, 72:], np.asarray(results[3].image))
    assert (grid[32:36] == 255).all()


def test_without_shown_pictures_or_grid(pipeline, tmp_path):
    generate(pipeline, _windows(1, seen=False), tmp_path / "a", SETTINGS)
    assert Image.open(tmp_path / "a" / "grid.png").size == (2 * 32 + 4, 32)
    generate(pipeline, _windows(1), tmp_path / "b", SETTINGS.model_copy(update={"grid_rows": 0}))
    assert not (tmp_path / "b" / "grid.png").exists()


def test_windows_whose_files_would_overwrite_each_other_are_refused(pipeline, tmp_path):
    windows = _windows(2)
    windows[1] = windows[1]._replace(key="set-rec_1/0")
    with pytest.raises(ValueError, match="set-rec_1/0"):
        generate(pipeline, windows, tmp_path, SETTINGS)
    assert not list(tmp_path.glob("*.png"))


def test_seeds_differ_and_fit_torchs_generator():
    seeds = {seed_of(s, w, k) for s in range(3) for w in range(20) for k in range(5)}
    assert len(seeds) == 300
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_a_grid_takes_pictures_of_any_size():
    grid = grid_of(
        [[Image.new("L", (10, 20), 0), Image.new("RGB", (6, 6), "blue")], [Image.new("RGB", (6, 6))]]
    )
    assert grid.size == (16, 16)
    assert grid.getpixel((15, 3)) == (0, 0, 255)
    assert grid.getpixel((15, 13)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("dropout", "scale", "warned"), [(0.0, 3.0, 1), (0.0, 1.0, 0), (0.1, 3.0, 0), (None, 3.0, 0)]
)
def test_guidance_that_was_never_trained_is_warned_of(pipeline, dropout, scale, warned):
    conditioner = EEGConditioner(
        encoder_sizes=SIZES, length=8, width=64, clip_width=None, condition_dropout=dropout
    )
    other = EEGToImagePipeline(pipeline.vae, pipeline.unet, pipeline.scheduler, conditioner.eval())
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        other(_windows()[0].x_TC[None], num_inference_steps=1, guidance_scale=scale)
    about = [str(warning.message) for warning in told if "condition_dropout 0" in str(warning.message)]
    assert len(about) == warned
    assert all("Set guidance_scale to 1" in line for line in about)
