"""Fine-tuning: neither ZeRO stage, nor number of ranks, nor interruptions change the curve; what is frozen stays so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from finetuning import tiny_recipe, write_parts
from launching import curve, launch, rows
from safetensors.torch import load_file

from ddscale.diffusion.pipeline import EEGToImagePipeline
from ddscale.models import load_encoder

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(900)]

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    return write_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def uninterrupted(parts, tmp_path_factory) -> dict[int, Path]:
    """A run of 16 steps by two ranks at each ZeRO stage, everything on: crops, dropout, averages, time condition."""
    runs = {}
    for stage in range(4):
        runs[stage] = tmp_path_factory.mktemp("runs") / f"zero{stage}"
        recipe = tiny_recipe(parts, runs[stage], zero_stage=stage, time_condition=True)
        launch(recipe, launcher=stage == 0).succeeded()
    return runs


def losses(run: Path) -> list[tuple[float, ...]]:
    return [(row["step"], row["loss"], row["grad_norm"], *row["loss_by_part"].values()) for row in rows(run)]


def generator_bytes(run: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(run)): path.read_bytes() for path in (run / "pipeline").rglob("*.safetensors")
    }


def test_the_four_stages_give_one_curve(uninterrupted):
    for stage in (1, 2, 3):
        for mine, theirs in zip(losses(uninterrupted[stage]), losses(uninterrupted[0]), strict=True):
            assert mine == pytest.approx(theirs, rel=1e-5)


def test_the_four_stages_hand_on_the_same_averages(uninterrupted):
    for part in ("unet", "conditioner"):
        wanted = load_file(uninterrupted[0] / "pipeline" / part / WEIGHTS)
        for stage in (1, 2, 3):
            found = load_file(uninterrupted[stage] / "pipeline" / part / WEIGHTS)
            assert found.keys() == wanted.keys()
            # Keys' biases change nothing, so their gradient is rounding alone, along which Adam steps all the same.
            for name in wanted.keys() - {n for n in wanted if n.endswith("qkv.bias")}:
                assert float((found[name] - wanted[name]).abs().max()) < 1e-6, name


def test_one_rank_gives_the_curve_of_two(uninterrupted, parts, tmp_path):
    # A contrast is with the samples of a micro-batch on all ranks together: as many on one as there on two.
    recipe = tiny_recipe(parts, tmp_path / "alone", zero_stage=1, time_condition=True, micro_batch_size=8)
    launch(recipe, ranks=1).succeeded()
    for mine, theirs in zip(losses(tmp_path / "alone"), losses(uninterrupted[1]), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    mine, theirs = rows(tmp_path / "alone")[-1], rows(uninterrupted[1])[-1]
    for name in ("val_noise", "val_noise_without_eeg"):
        assert mine[name] == pytest.approx(theirs[name], rel=1e-5)


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_killed_and_resumed_it_is_bitwise_the_uninterrupted_run(uninterrupted, parts, tmp_path, zero_stage):
    recipe = tiny_recipe(parts, tmp_path / "run", zero_stage=zero_stage, time_condition=True)
    killed = launch(recipe, inject="kill@rank=1,step=12")
    assert killed.code != 0
    assert not (tmp_path / "run" / "pipeline").exists()
    resumed = launch(recipe).succeeded()
    assert "step-00000008" in resumed.output
    assert curve(tmp_path / "run") == curve(uninterrupted[zero_stage])
    assert generator_bytes(tmp_path / "run") == generator_bytes(uninterrupted[zero_stage])


def test_frozen_parameters_are_bitwise_unchanged_and_trained_ones_are_not(uninterrupted, parts):
    before, after = (
        load_file(folder / "unet" / WEIGHTS) for folder in (parts / "sd", uninterrupted[2] / "pipeline")
    )
    added = {"class_embedding.weight", "class_embedding.bias"}
    assert after.keys() - before.keys() == added
    changed = {name for name in before if (before[name] != after[name]).any()}
    assert changed == {name for name in before if ".attn2." in name}
    assert (parts / "sd" / "vae" / WEIGHTS).read_bytes() == (
        uninterrupted[2] / "pipeline" / "vae" / WEIGHTS
    ).read_bytes()
    was, now = (load_encoder(f / "encoder").state_dict() for f in (parts, uninterrupted[2]))
    assert all((was[name] != now[name]).any() for name in was if "positions" not in name)


def test_the_counts_printed_at_the_start_are_those_of_the_weights(uninterrupted, parts):
    printed = {}
    for line in (uninterrupted[0].with_suffix(".out")).read_text().splitlines():
        if line.endswith("frozen parameters"):
            part, _, counts = line.partition(": ")
            printed[part] = [int(word.replace(",", "")) for word in counts.split() if word[0].isdigit()]
    unet = UNet2DConditionModel.from_pretrained(uninterrupted[0] / "pipeline" / "unet")
    trained = sum(p.numel() for n, p in unet.named_parameters() if ".attn2." in n or "class_embedding" in n)
    total = sum(p.numel() for p in unet.parameters())
    assert printed["U-Net"] == [trained, total - trained]
    encoder = sum(p.numel() for p in load_encoder(parts / "encoder").parameters())
    assert printed["encoder"] == [encoder, 0]
    assert printed["total"] == [sum(c[i] for p, c in printed.items() if p != "total") for i in (0, 1)]


def test_what_is_saved_loads_in_plain_diffusers(uninterrupted):
    folder = uninterrupted[0] / "pipeline"
    UNet2DConditionModel.from_pretrained(folder / "unet")
    AutoencoderKL.from_pretrained(folder / "vae")
    DDIMScheduler.from_pretrained(folder / "scheduler")
    pipeline = EEGToImagePipeline.from_pretrained(folder)
    assert pipeline.conditioner.config.sfreq == 128.0
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == "EEGToImagePipeline"


def test_sequential_trains_alignment_before_the_u_net_at_every_stage(parts, tmp_path):
    changes = {"objective": {"schedule": "sequential", "alignment": "cosine", "alignment_share": 0.5}}
    for stage in (0, 2, 3):
        launch(tiny_recipe(parts, tmp_path / f"zero{stage}", zero_stage=stage, **changes)).succeeded()
        found = rows(tmp_path / f"zero{stage}")
        assert [sorted(row["loss_by_part"]) for row in found] == [["alignment"]] * 8 + [["noise"]] * 8
        for mine, theirs in zip(losses(tmp_path / f"zero{stage}"), losses(tmp_path / "zero0"), strict=True):
            assert mine == pytest.approx(theirs, rel=1e-5)


def test_lora_in_bf16_is_merged_into_a_plain_u_net_whose_other_weights_keep_every_bit(parts, tmp_path):
    changes = {"unet": {"trained": "lora", "lora_rank": 2}, "precision": "bf16"}
    launch(tiny_recipe(parts, tmp_path / "run", zero_stage=2, **changes)).succeeded()
    before, after = (load_file(f / "unet" / WEIGHTS) for f in (parts / "sd", tmp_path / "run" / "pipeline"))
    assert before.keys() == after.keys()
    changed = {name for name in before if (before[name] != after[name]).any()}
    assert changed
    assert all("attn" in name for name in changed)
