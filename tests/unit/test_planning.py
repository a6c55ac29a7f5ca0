"""The cost model against what can be counted here, and the doctor's findings."""

from __future__ import annotations

import pytest
import torch

from ddscale.models import MAEConfig, MaskedAutoencoder
from ddscale.planning import doctor
from ddscale.planning.cost import GPUS, activation_bytes, count_parameters, plan_pretraining
from ddscale.training.settings import PretrainRecipe


def recipe(**changes) -> PretrainRecipe:
    return PretrainRecipe.model_validate(
        {
            "stage": "pretrain",
            "run": "runs/x",
            "model": {"preset": "dreamdiffusion"},
            "data": {"stores": ["s"]},
            "global_batch_size": 4096,
            "micro_batch_size": 64,
            "steps": 1000,
            "precision": "bf16",
            "schedule": {"warmup_steps": 10},
            **changes,
        }
    )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activation_memory_is_what_autograd_really_keeps(checkpointing):
    config = MAEConfig(
        width=128, depth=6, heads=4, mlp_ratio=2.0, decoder_width=64, decoder_depth=3, decoder_heads=4,
        activation_checkpointing=checkpointing,
    )  # fmt: skip
    model, batch = MaskedAutoencoder(config), 4
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = model(torch.randn(batch, 512, 128), torch.arange(batch))
    assert output.sum_squared_error.requires_grad
    counted = sum(kept.values())
    estimate = activation_bytes(config, 4) * batch
    if checkpointing:  # the block that is recomputed is alive only during the backward pass
        assert estimate > 0.8 * counted
    else:
        assert estimate == pytest.approx(counted, rel=0.1)


def test_parameters_are_counted_without_building_the_model():
    assert count_parameters(MAEConfig(preset="dreamdiffusion")) == pytest.approx(165.2e6, rel=2e-3)


def test_zero_stages_share_out_more_and_more():
    totals = [
        plan_pretraining(recipe(zero_stage=stage), nodes=1, gpus_per_node=8, gpu="h100").memory["total"]
        for stage in range(4)
    ]
    assert totals == sorted(totals, reverse=True)
    assert len(set(totals)) == 4


def test_a_model_that_cannot_fit_is_said_not_to_fit():
    large = recipe(model={"preset": "7b"}, zero_stage=0, global_batch_size=512)
    assert not plan_pretraining(large, nodes=1, gpus_per_node=8, gpu="h100").fits
    shared = recipe(
        model={"preset": "7b", "activation_checkpointing": True}, zero_stage=3, micro_batch_size=16
    )
    assert plan_pretraining(shared, nodes=32, gpus_per_node=8, gpu="h100").fits


def test_twice_the_gpus_take_half_the_time_and_read_the_same_per_node():
    one = plan_pretraining(recipe(), nodes=1, gpus_per_node=8, gpu="h100", hours=60_000.0)
    two = plan_pretraining(recipe(), nodes=2, gpus_per_node=8, gpu="h100", hours=60_000.0)
    assert two.run_s == pytest.approx(one.run_s / 2)
    assert two.pass_s == pytest.approx(one.pass_s / 2)
    assert two.read_bytes_s_per_node == pytest.approx(one.read_bytes_s_per_node)
    assert one.read_bytes_s_per_node == pytest.approx(one.windows_per_s * 512 * 128 * 2)


def test_what_cannot_be_planned_says_why():
    with pytest.raises(ValueError, match="known: a100, h100"):
        plan_pretraining(recipe(), nodes=1, gpus_per_node=8, gpu="tpu")
    with pytest.raises(ValueError, match="choose a multiple of 448"):
        plan_pretraining(recipe(), nodes=1, gpus_per_node=7, gpu="h100")
    assert set(GPUS) == {"a100", "h100", "h200", "b200"}


def test_the_doctor_names_a_stale_lock_and_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    healthy = {finding.subject: finding for finding in doctor.examine()}
    assert healthy["extension builds"].state == "ok"
    assert healthy["torch"].state == "ok"
    (tmp_path / "fused_adam").mkdir()
    (tmp_path / "fused_adam" / "lock").touch()
    stale = {finding.subject: finding for finding in doctor.examine()}["extension builds"]
    assert stale.state == "broken"
    assert str(tmp_path / "fused_adam" / "lock") in stale.found
    assert "delete these files" in stale.remedy
