"""Where an export's weights come from, and what is refused before any work is done."""

from __future__ import annotations

import json

import pytest
import torch
from deploying import CHANNELS, ENCODER_SIZES, save_toy_pipeline
from diffusers import AutoencoderTiny
from pydantic import ValidationError

from ddscale.deploy.recipe import ExportRecipe
from ddscale.deploy.source import hash_source, load_source
from ddscale.models import EEGEncoder, EncoderConfig, save_encoder


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return save_toy_pipeline(tmp_path_factory.mktemp("run") / "pipeline")


@pytest.fixture
def encoder(tmp_path):
    encoder = EEGEncoder(EncoderConfig(**ENCODER_SIZES))
    facts = {"sfreq": 128.0, "normalisation": {"kind": "divide", "by_uv": 10.0}}
    return save_encoder(encoder, tmp_path / "run" / "encoder", facts)


def _recipe(source, **settings):
    return ExportRecipe(source=str(source), out="somewhere", **settings)


def test_a_run_and_its_pipeline_are_the_same_source(pipeline):
    of_run, of_pipeline = load_source(_recipe(pipeline.parent)), load_source(_recipe(pipeline))
    assert of_run.path == of_pipeline.path == pipeline
    assert of_run.windows.sfreq == 256.0
    assert of_run.windows.normalisation == {"kind": "zscore", "clip": 15.0, "eps_uv": 0.1}
    assert of_run.windows.channels == ENCODER_SIZES["n_channels"]


def test_a_diffusers_folder_needs_a_conditioner_and_takes_one(pipeline, tmp_path):
    plain = tmp_path / "sd"
    plain.mkdir()
    for name in ("unet", "vae", "scheduler", "model_index.json"):
        (plain / name).symlink_to(pipeline / name)
    with pytest.raises(FileNotFoundError, match="no EEG conditioner in .*State `conditioner:`"):
        load_source(_recipe(plain))
    source = load_source(_recipe(plain, conditioner=str(pipeline / "conditioner")))
    assert source.pipeline is not None
    with pytest.raises(ValueError, match="holds a UNet2DConditionModel, not an EEGConditioner"):
        load_source(_recipe(plain, conditioner=str(pipeline / "unet")))


def test_an_encoder_alone_is_a_source_with_its_own_facts(encoder):
    for folder in (encoder, encoder.parent):
        source = load_source(_recipe(folder))
        assert source.pipeline is None
        assert source.encoder is not None
        assert source.windows.sfreq == 128.0
        assert source.windows.normalisation == {"kind": "divide", "by_uv": 10.0}


def test_settings_that_an_encoder_alone_has_no_use_for_are_refused(encoder):
    with pytest.raises(ValueError, match="`tiny_decoder` has no use here"):
        load_source(_recipe(encoder, tiny_decoder="x"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sfreq": 512.0}, r"eeg\.sfreq: the recipe says 512\.0, .* was trained with 128\.0"),
        ({"normalisation": {"kind": "zscore"}}, r"eeg\.normalisation"),
        ({"channels": 17}, r"eeg\.channels 17 is more than the 16"),
    ],
)
def test_a_recipe_may_not_contradict_the_source(encoder, given, said):
    with pytest.raises(ValueError, match=said):
        load_source(_recipe(encoder, eeg=given))


def test_what_a_source_does_not_say_the_recipe_may(tmp_path):
    save_encoder(EEGEncoder(EncoderConfig(**ENCODER_SIZES)), tmp_path)
    eeg = {"sfreq": 200.0, "channels": CHANNELS, "preprocessing": {"h_freq": 70.0}}
    windows = load_source(_recipe(tmp_path, eeg=eeg)).windows
    assert (windows.sfreq, windows.channels, windows.preprocessing) == (200.0, CHANNELS, {"h_freq": 70.0})


def test_a_source_that_is_none_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not there"):
        load_source(_recipe(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="neither a pipeline .* nor an encoder"):
        load_source(_recipe(tmp_path))


def test_a_tiny_decoder_for_other_latents_is_refused(pipeline, tmp_path):
    AutoencoderTiny(latent_channels=4).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="latents of 4 channels at 1/8, the pipeline's have 4 at 1/4"):
        load_source(_recipe(pipeline, tiny_decoder=str(tmp_path)))


def test_the_hash_of_a_source_follows_its_weights_alone(pipeline, tmp_path):
    before = hash_source(pipeline)
    assert hash_source(pipeline) == before
    (tmp_path / "a.json").write_text("{}")
    first = hash_source(tmp_path)
    (tmp_path / "notes.txt").write_text("not a weight")
    assert hash_source(tmp_path) == first
    (tmp_path / "a.json").write_text(json.dumps({"a": 1}))
    assert hash_source(tmp_path) != first


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"precisions": ["fp32", "fp32"]}, "stated twice: fp32"),
        ({"precisions": []}, "at least 1"),
        ({"schedules": [{"name": "ddim", "steps": 4}] * 2}, "ddim with 4 steps"),
        ({"profiles": [{"min": 4, "opt": 2, "max": 8}]}, "not min <= opt <= max"),
        ({"precisions": ["bf16"]}, "fp32"),
    ],
)
def test_recipes_that_cannot_be_meant_are_refused(settings, said):
    with pytest.raises(ValidationError, match=said):
        _recipe("x", **settings)


@torch.no_grad()
def test_weights_saved_in_half_precision_are_exported_from_fp32(pipeline, tmp_path):
    source = load_source(_recipe(pipeline))
    source.pipeline.to(torch.float16).save_pretrained(tmp_path / "half")
    loaded = load_source(_recipe(tmp_path / "half"))
    assert {p.dtype for p in loaded.pipeline.unet.parameters()} == {torch.float32}
