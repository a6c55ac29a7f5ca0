"""What a fine-tuning recipe is refused for, and what the model it builds is made of."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from finetuning import tiny_recipe, write_parts

from ddscale.diffusion import draws
from ddscale.diffusion.finetuning import Finetuning
from ddscale.diffusion.model import build, check_windows
from ddscale.diffusion.pipeline import EEGToImagePipeline
from ddscale.diffusion.settings import FinetuneRecipe
from ddscale.diffusion.unet import load_unet
from ddscale.models import load_encoder
from ddscale.training.ranks import Ranks
from ddscale.training.runs import Display, run
from ddscale.training.watchdog import Watchdog

ALONE = Ranks(0, 1, 0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return write_parts(tmp_path_factory.mktemp("parts"))


def recipe(parts, **changes):
    return FinetuneRecipe.model_validate(tiny_recipe(parts, parts / "run", **changes))


def test_windows_that_do_not_begin_with_a_picture_are_refused(parts):
    data = {"stores": [str(parts / "store")], "window_samples": 64, "n_channels": 8}
    with pytest.raises(ValueError, match=r"data\.cut is 'sliding'"):
        recipe(parts, data=data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": {"schedule": "sequential", "alignment": "none"}}, "nothing to train first"),
        (
            {"objective": {"schedule": "sequential"}, "optimiser": {"weight_decay": 0.1}},
            "shrink the U-Net while only alignment trains",
        ),
    ],
)
def test_a_sequence_that_cannot_be_one_is_refused(parts, changes, message):
    with pytest.raises(ValueError, match=message):
        recipe(parts, **changes)


def test_windows_of_another_kind_than_the_encoders_are_refused(parts):
    ours = recipe(parts)
    check_windows(ours, 128.0, "uV")
    with pytest.raises(ValueError, match=r"sfreq is 256\.0, the encoder's 128\.0"):
        check_windows(ours, 256.0, "uV")
    other = {**tiny_recipe(parts, parts / "run")["data"], "normalisation": {"kind": "divide", "by_uv": 10.0}}
    with pytest.raises(ValueError, match=r"data\.normalisation is .*divide"):
        check_windows(recipe(parts, data=other), 128.0, "uV")
    # Numbers without a unit cannot be normalised as µV were; stretched trials have no rate of their own.
    check_windows(recipe(parts, data=other), 128.0, "standardised")
    check_windows(recipe(parts, data={**other, "short_trials": "stretch"}), 1000.0, "standardised")
    with pytest.raises(ValueError, match=r"data\.n_channels is 9, the encoder's 8"):
        check_windows(recipe(parts, data={**other, "n_channels": 9}), 128.0, "standardised")


def test_from_scratch_keeps_the_sizes_and_not_the_weights(parts):
    torch.manual_seed(1)
    pretrained = build(recipe(parts), 32, {}).conditioner.encoder.state_dict()
    wanted = load_encoder(parts / "encoder").state_dict()
    assert all(torch.equal(pretrained[name], value) for name, value in wanted.items())
    fresh = build(recipe(parts, from_scratch=True), 32, {}).conditioner.encoder.state_dict()
    assert fresh.keys() == wanted.keys()
    assert not torch.equal(fresh["projection.weight"], wanted["projection.weight"])


def test_conditions_begin_on_the_scale_of_a_captions(parts):
    x_BTC = torch.randn(4, 64, 8)
    for normalised in (True, False):
        model = build(recipe(parts, normalise_states=normalised), 32, {})
        spread = model.conditioner(x_BTC).hidden_states.detach().std(dim=-1).mean()
        assert (abs(float(spread) - 1) < 0.1) == normalised


def test_a_store_without_pictures_is_refused_with_what_to_ingest(parts, tmp_path):
    from launching import write_synthetic_store

    store = write_synthetic_store(tmp_path / "store")
    data = {**tiny_recipe(parts, parts / "run")["data"], "stores": [str(store)]}
    with pytest.raises(ValueError, match=r"trial|picture"):
        Finetuning(recipe(parts, data=data), ALONE, Display())


def test_a_step_runs_neither_the_vae_nor_clip(parts, monkeypatch):
    task = Finetuning(recipe(parts, validation={"every": 0}), ALONE, Display())
    from diffusers import AutoencoderKL
    from transformers import CLIPModel

    for kind in (AutoencoderKL, CLIPModel):
        monkeypatch.setattr(kind, "forward", None)
    monkeypatch.setattr(AutoencoderKL, "encode", None)
    model = task.make_model()
    (batch, *_) = next(task.steps())
    terms = task.loss(model, batch)
    terms.total.backward()
    task.close()
    assert torch.isfinite(terms.total)
    assert terms.by_name[:, 1].tolist() == [4.0, 4.0]
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {name for name, p in model.named_parameters() if p.requires_grad}


def test_clip_is_asked_for_by_name_and_only_where_something_is_aligned_with_it(parts, tmp_path):
    bare = shutil.copytree(parts / "sd", tmp_path / "sd")
    shutil.rmtree(bare / "clip")
    changes = {"stable_diffusion": str(bare), "features": str(tmp_path / "features")}
    with pytest.raises(Exception, match=r"no whole CLIP in .*Set clip_model to a local copy"):
        Finetuning(recipe(parts, **changes), ALONE, Display())
    task = Finetuning(recipe(parts, **changes, objective={"alignment": "none"}), ALONE, Display())
    try:
        (batch, *_) = next(task.steps())
        assert task._on_device(batch, 0).features_BD is None
        conditioner = task.make_model().conditioner
        assert conditioner.alignment is None
        assert conditioner.config.condition_dropout == 0.1  # for whoever guides later
    finally:
        task.close()


def test_pictures_are_drawn_at_the_size_that_was_trained(parts, tmp_path):
    changes = {"views": {"image_size": 16, "crops": 1}, "features": str(tmp_path / "features"), "ema": None}
    task = Finetuning(recipe(parts, **changes), ALONE, Display())
    try:
        task.export(task.make_model().state_dict(), tmp_path, {})
    finally:
        task.close()
    pipeline = EEGToImagePipeline.from_pretrained(tmp_path / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(torch.randn(1, 64, 8), num_inference_steps=1).images[0].size == (16, 16)
    # Stable Diffusion's folder stays as it is.
    assert load_unet(parts / "sd").config.sample_size * pipeline.codec.downsampling == 32


def test_the_watchdog_hears_of_every_shard_that_is_precomputed(parts, tmp_path, monkeypatch):
    heard = []
    doing = Watchdog.doing
    monkeypatch.setattr(Watchdog, "doing", lambda self, what: (heard.append(what), doing(self, what)))
    ours = FinetuneRecipe.model_validate(
        tiny_recipe(parts, tmp_path / "run", features=str(tmp_path / "features"))
    )
    display = Display()

    def task():
        Finetuning(ours, ALONE, display).close()
        raise ValueError("far enough")

    with pytest.raises(Exception, match="far enough"):
        run(ours, task, ALONE, display)
    # 72 pictures, 64 in a shard.
    assert heard[-2:] == [f"latents and CLIP features after {done} of 72 pictures" for done in (64, 72)]


def test_features_are_not_kept_at_a_url(parts):
    data = {**tiny_recipe(parts, parts / "run")["data"], "stores": ["s3://bucket/store"]}
    with pytest.raises(ValueError, match=r"kept at s3://bucket/store\.features, .*set features to one"):
        recipe(parts, data=data)
    assert recipe(parts, data=data, features="kept").features_folder == "kept"


def test_what_is_aligned_with_is_the_crops_or_the_whole_images(parts, tmp_path):
    found = {}
    for view in ("crop", "whole"):
        changes = {"objective": {"alignment_view": view}, "features": str(tmp_path / "features")}
        task = Finetuning(recipe(parts, **changes), ALONE, Display())
        try:
            (batch, *_) = next(task.steps())
            given = task._on_device(batch, 0)
            own, whole = (
                task._features.views(batch.images, crops_B).image
                for crops_B in (
                    draws.integers(0, batch.positions, draws.Purpose.VIEW, 2),
                    torch.zeros_like(batch.images),
                )
            )
            assert not torch.equal(own, whole)
            assert task.identity()["objective"].get("alignment_view") == {"whole": "whole"}.get(view)
            found[view] = torch.equal(given.features_BD, own), torch.equal(given.features_BD, whole)
        finally:
            task.close()
    assert found == {"crop": (True, False), "whole": (False, True)}
