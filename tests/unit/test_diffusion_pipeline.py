"""EEGToImagePipeline beside diffusers' own pipeline, and its folder beside diffusers' own loaders."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)

from ddscale.diffusion.codec import LatentCodec
from ddscale.diffusion.conditioning import Condition, EEGConditioner
from ddscale.diffusion.pipeline import EEGToImagePipeline, load_scheduler, scheduler_named
from ddscale.diffusion.tiny_vae import TinyVAE
from ddscale.diffusion.toy import ToySettings, build_toy, save_toy
from ddscale.diffusion.unet import add_time_condition

SIZES = {"n_channels": 8, "n_samples": 64, "patch": 4, "width": 24, "depth": 1, "heads": 2}
CAPTIONS = ["a handwritten three", "a handwritten seven"]
SCHEDULERS = ["pndm", "ddim", "dpmsolver++", "unipc", "lcm"]


@pytest.fixture(scope="module")
def toy_folder(tmp_path_factory):
    """A toy Stable Diffusion that has learned nothing."""
    torch.manual_seed(0)
    settings = ToySettings(vae_channels=(8, 8, 16), unet_channels=(16, 32), image_size=32)
    return save_toy(build_toy(CAPTIONS, settings), tmp_path_factory.mktemp("toy") / "sd")


@pytest.fixture
def stable_diffusion(toy_folder):
    pipeline = StableDiffusionPipeline.from_pretrained(toy_folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _conditioner(**settings):
    torch.manual_seed(1)
    conditioner = EEGConditioner(encoder_sizes=SIZES, length=8, width=64, clip_width=64, **settings)
    conditioner.null.states.data.normal_()
    return conditioner.eval()


@pytest.fixture
def pipeline(toy_folder):
    pipeline = EEGToImagePipeline.from_stable_diffusion(toy_folder, _conditioner())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def windows():
    return torch.randn(2, 64, 8, generator=torch.Generator().manual_seed(2))


def _seeded(n, first=0):
    return [torch.Generator().manual_seed(first + i) for i in range(n)]


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize(("guidance", "per_caption"), [(1.0, 1), (4.0, 2)])
def test_with_a_captions_embedding_in_place_of_eeg_the_pictures_are_stable_diffusions(
    stable_diffusion, pipeline, name, guidance, per_caption
):
    stable_diffusion.scheduler = scheduler_named(name, stable_diffusion.scheduler)
    pipeline.scheduler = scheduler_named(name, pipeline.scheduler)
    embeddings, empty = stable_diffusion.encode_prompt(CAPTIONS, "cpu", 1, True, negative_prompt=["", ""])
    given = {"num_inference_steps": 4, "guidance_scale": guidance, "output_type": "np"}
    expected = stable_diffusion(
        prompt_embeds=embeddings,
        negative_prompt_embeds=empty,
        num_images_per_prompt=per_caption,
        generator=torch.Generator().manual_seed(5),
        **given,
    ).images
    ours = pipeline(
        condition=Condition(embeddings, None, None),
        without=Condition(empty, None, None),
        num_images_per_eeg=per_caption,
        generator=torch.Generator().manual_seed(5),
        **given,
    ).images
    assert ours.shape == (2 * per_caption, 32, 32, 3)
    assert np.isfinite(ours).all()
    assert np.array_equal(ours, expected)


def test_eeg_decides_the_picture(pipeline, windows):
    given = {"num_inference_steps": 2, "output_type": "np", "num_images_per_eeg": 2}
    first = pipeline(windows, generator=_seeded(4), **given).images
    again = pipeline(windows, generator=_seeded(4), **given).images
    other = pipeline(windows.flip(0), generator=_seeded(4), **given).images
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first[0], first[1])


def test_a_generator_for_each_picture_makes_it_independent_of_the_batch(pipeline, windows):
    given = {"num_inference_steps": 3, "output_type": "latent"}
    together = pipeline(windows, generator=_seeded(2), **given).images
    alone = pipeline(windows[1:], generator=_seeded(1, first=1), **given).images
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-4)


def test_guidance_starts_from_the_null_condition(pipeline, windows):
    """One step of DDIM is linear in the prediction, so the guided result is known from the two unguided ones."""
    given = {"num_inference_steps": 1, "output_type": "latent", "latents": torch.randn(2, 4, 8, 8)}
    pipeline.scheduler = scheduler_named("ddim", pipeline.scheduler)
    with_eeg = pipeline(windows, guidance_scale=1.0, **given).images
    without = pipeline(condition=pipeline.conditioner.without_eeg(2), guidance_scale=1.0, **given).images
    guided = pipeline(windows, guidance_scale=3.0, **given).images
    torch.testing.assert_close(guided, without + 3.0 * (with_eeg - without), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("time_condition", [False, True])
def test_a_saved_pipeline_loads_whole_and_its_parts_load_in_diffusers(
    toy_folder, windows, tmp_path, time_condition
):
    unet = UNet2DConditionModel.from_pretrained(toy_folder / "unet")
    if time_condition:
        add_time_condition(unet, 64)
        torch.nn.init.normal_(unet.class_embedding.weight)
    conditioner = _conditioner(time_condition=time_condition)
    pipeline = EEGToImagePipeline.from_stable_diffusion(toy_folder, conditioner, unet)
    pipeline.set_progress_bar_config(disable=True)
    given = {"num_inference_steps": 2, "output_type": "np"}
    expected = pipeline(windows, generator=_seeded(2), **given).images
    pipeline.save_pretrained(tmp_path)

    again = EEGToImagePipeline.from_pretrained(tmp_path, local_files_only=True)
    again.set_progress_bar_config(disable=True)
    assert np.array_equal(again(windows, generator=_seeded(2), **given).images, expected)

    parts = EEGToImagePipeline(
        vae=AutoencoderKL.from_pretrained(tmp_path / "vae"),
        unet=UNet2DConditionModel.from_pretrained(tmp_path / "unet"),
        scheduler=load_scheduler(tmp_path),
        conditioner=EEGConditioner.from_pretrained(tmp_path / "conditioner"),
    )
    parts.set_progress_bar_config(disable=True)
    assert np.array_equal(parts(windows, generator=_seeded(2), **given).images, expected)
    assert sorted(json.loads((tmp_path / "model_index.json").read_text())) == [
        "_class_name", "_diffusers_version", "conditioner", "scheduler", "unet", "vae",
    ]  # fmt: skip


def test_its_unet_and_vae_serve_in_stable_diffusions_own_pipeline(stable_diffusion, pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    given = {"num_inference_steps": 2, "output_type": "np", "guidance_scale": 3.0}
    expected = stable_diffusion(CAPTIONS, generator=_seeded(2), **given).images
    stable_diffusion.unet = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    stable_diffusion.vae = AutoencoderKL.from_pretrained(tmp_path / "vae")
    assert np.array_equal(stable_diffusion(CAPTIONS, generator=_seeded(2), **given).images, expected)


def test_a_tiny_vae_in_a_pipeline_survives_saving(toy_folder, windows, tmp_path):
    torch.manual_seed(0)
    own = EEGToImagePipeline.from_stable_diffusion(toy_folder, _conditioner())
    pipeline = EEGToImagePipeline(TinyVAE(pooled=True).eval(), own.unet, own.scheduler, own.conditioner)
    pipeline.save_pretrained(tmp_path)
    again = EEGToImagePipeline.from_pretrained(tmp_path)
    pictures = []
    for each in (pipeline, again):
        each.set_progress_bar_config(disable=True)
        pictures.append(each(windows, num_inference_steps=2, generator=_seeded(2), output_type="np").images)
    assert pictures[0].shape == (2, 64, 64, 3)
    assert np.array_equal(*pictures)


def test_other_heights_and_widths_are_drawn(pipeline, windows):
    images = pipeline(windows, num_inference_steps=1, height=48, width=32).images
    assert [image.size for image in images] == [(32, 48)] * 2


def test_what_does_not_fit_is_refused(pipeline, windows):
    with pytest.raises(ValueError, match="one of the two"):
        pipeline()
    with pytest.raises(ValueError, match="3 generators for 2 pictures"):
        pipeline(windows, generator=_seeded(3))
    with pytest.raises(ValueError, match="multiples of 4"):
        pipeline(windows, height=30)
    with pytest.raises(ValueError, match="pndm"):
        scheduler_named("euler", pipeline.scheduler)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [({"width": 32}, "conditions 32 wide"), ({"time_condition": True}, "no place for one")],
)
def test_parts_that_do_not_fit_each_other_are_refused(pipeline, settings, complaint):
    conditioner = EEGConditioner(encoder_sizes=SIZES, **{"length": 8, "width": 64, **settings})
    with pytest.raises(ValueError, match=complaint):
        EEGToImagePipeline(pipeline.vae, pipeline.unet, pipeline.scheduler, conditioner)


def test_schedulers_keep_the_noise_levels_and_stable_diffusions_settings(pipeline):
    for name in SCHEDULERS:
        scheduler = scheduler_named(name, pipeline.scheduler)
        assert torch.equal(scheduler.alphas_cumprod, pipeline.scheduler.alphas_cumprod)
        assert scheduler.config.prediction_type == "v_prediction"
        assert not scheduler.config.get("clip_sample", False)
    assert scheduler_named("pndm", pipeline.scheduler).config.skip_prk_steps


def test_schedulers_are_loaded_by_the_class_their_folder_names(toy_folder, tmp_path):
    DDIMScheduler(prediction_type="v_prediction").save_pretrained(tmp_path / "scheduler")
    assert isinstance(load_scheduler(tmp_path), DDIMScheduler)
    with pytest.raises(FileNotFoundError, match="no scheduler in"):
        load_scheduler(tmp_path / "scheduler")
    (tmp_path / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "FutureScheduler"}')
    with pytest.raises(ValueError, match="FutureScheduler"):
        load_scheduler(tmp_path)


def test_the_toy_folder_is_a_codec_too(toy_folder):
    assert LatentCodec.from_folder(toy_folder).downsampling == 4
