"""The cost model against what can be counted here, and the doctor's findings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from launching import ROOT

from ddscale import recipes
from ddscale.cli import GPU_NAMES
from ddscale.models import MAEConfig, MaskedAutoencoder
from ddscale.models.gpus import GPUS, gpu_called
from ddscale.planning import doctor
from ddscale.planning.cost import activation_bytes, count_parameters, plan_pretraining
from ddscale.planning.data import DataAtHand, data_at_hand
from ddscale.store import ArrayRecording, write_store
from ddscale.training.settings import PretrainRecipe
from ddscale.training.throughput import peak_flops


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


def test_twice_the_gpus_compute_in_half_the_time_and_read_as_much_each():
    one = plan_pretraining(recipe(), nodes=2, gpus_per_node=8, gpu="h100", hours=60_000.0)
    two = plan_pretraining(recipe(), nodes=4, gpus_per_node=8, gpu="h100", hours=60_000.0)
    assert two.compute_s == pytest.approx(one.compute_s / 2)
    assert two.communication_s == pytest.approx(one.communication_s, rel=0.05)
    for estimate, nodes in ((one, 2), (two, 4)):
        assert estimate.step_s == estimate.compute_s + estimate.communication_s
        assert estimate.run_s == pytest.approx(1000 * estimate.step_s)
        assert estimate.windows_per_s == pytest.approx(4096 / estimate.step_s)
        assert estimate.pass_s == pytest.approx(60_000 * 3600 / 2 / estimate.windows_per_s)
        assert estimate.reads_s_per_node == pytest.approx(estimate.windows_per_s / nodes)
        assert estimate.read_bytes_s_per_node == pytest.approx(estimate.reads_s_per_node * 512 * 128 * 2)
        assert estimate.checkpoint_every_s == pytest.approx(500 * estimate.step_s)


@pytest.mark.parametrize(("zero_stage", "times"), [(0, 2), (1, 2), (2, 5), (3, 12)])
def test_communication_counts_every_micro_batch_where_its_stage_does(zero_stage, times):
    accumulating = recipe(zero_stage=zero_stage, global_batch_size=4096, micro_batch_size=32)
    estimate = plan_pretraining(accumulating, nodes=4, gpus_per_node=8, gpu="h100")
    assert estimate.accumulation == 4
    sent = estimate.parameters * 2 * times * 31 / 32
    assert estimate.communication_s == pytest.approx(sent / (8 * 50e9 / 2))
    inside = plan_pretraining(recipe(zero_stage=1), nodes=1, gpus_per_node=8, gpu="h100")
    assert inside.communication_s == pytest.approx(inside.parameters * 2 * 2 * 7 / 8 / (450e9 / 2))


def test_overlap_hides_the_shorter_of_the_two():
    overlapping = recipe(deepspeed={"zero_optimization": {"overlap_comm": True}})
    estimate = plan_pretraining(overlapping, nodes=2, gpus_per_node=8, gpu="h100")
    assert estimate.step_s == max(estimate.compute_s, estimate.communication_s)


def test_recomputing_blocks_takes_time():
    plain = plan_pretraining(recipe(), nodes=1, gpus_per_node=8, gpu="h100")
    saving = recipe(model={"preset": "dreamdiffusion", "activation_checkpointing": True})
    again = plan_pretraining(saving, nodes=1, gpus_per_node=8, gpu="h100")
    assert 1.25 * plain.compute_s < again.compute_s < 4 / 3 * plain.compute_s


def test_a_run_that_mostly_communicates_is_warned_of():
    small = recipe(model={"preset": "7b"}, zero_stage=3, global_batch_size=512, micro_batch_size=2)
    (warning,) = plan_pretraining(small, nodes=32, gpus_per_node=8, gpu="h100").warnings
    assert "times as long as computing: take fewer nodes" in warning
    assert plan_pretraining(recipe(), nodes=1, gpus_per_node=8, gpu="h100").warnings == []


@pytest.mark.parametrize(("name", "nodes"), [("vit_l", 1), ("vit_h", 4), ("2b", 8), ("7b", 8)])
def test_shipped_recipes_mostly_compute_fit_and_save_every_quarter_of_an_hour(name, nodes):
    shipped = recipes.load(ROOT / "recipes" / "pretrain" / f"{name}.yaml", PretrainRecipe)
    estimate = plan_pretraining(shipped, nodes=nodes, gpus_per_node=8, gpu="h100")
    assert estimate.fits
    assert estimate.accumulation == 1
    assert estimate.communication_s < 0.25 * estimate.step_s
    assert 600 < estimate.checkpoint_every_s < 1800


@pytest.mark.parametrize(
    ("device", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA GH200 480GB", "h200"),
        ("NVIDIA GB200", "gb200"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("Tesla V100-SXM2-32GB", "v100"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx6000ada"),
        ("NVIDIA GeForce RTX 3090", "rtx3090"),
        ("NVIDIA RTX A4000", None),
        ("AMD Instinct MI300X", None),
    ],
)
def test_a_run_finds_its_gpu_among_the_plans_figures(monkeypatch, device, key):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: device)
    peak, source = peak_flops(torch.device("cuda"), "bf16")
    assert gpu_called(device) == key
    if key is None:
        assert (peak, source) == (None, f"no entry for {device}")
    else:
        assert (peak, source) == (GPUS[key].half_flops, f"published figure of {key}")
        assert peak_flops(torch.device("cuda"), "fp32")[0] == GPUS[key].fp32_flops


def test_what_cannot_be_planned_says_why():
    with pytest.raises(ValueError, match="known: a100, h100"):
        plan_pretraining(recipe(), nodes=1, gpus_per_node=8, gpu="tpu")
    with pytest.raises(ValueError, match="--set global_batch_size=4032 or 4480"):
        plan_pretraining(recipe(), nodes=1, gpus_per_node=7, gpu="h100")
    assert ", ".join(GPUS) == GPU_NAMES


def test_what_does_not_divide_is_said_with_numbers_that_do():
    """Each of the ways named makes a plan."""
    readme = ROOT / "recipes" / "pretrain" / "dreamdiffusion.yaml"
    with pytest.raises(ValueError, match="1 or 2 or 4 GPUs") as refused:
        plan_pretraining(recipes.load(readme, PretrainRecipe), nodes=1, gpus_per_node=8, gpu="h100")
    assert "--set global_batch_size=200;" in str(refused.value)
    mended = recipes.load(readme, PretrainRecipe, ["global_batch_size=200"])
    assert plan_pretraining(mended, nodes=1, gpus_per_node=8, gpu="h100").accumulation == 1
    assert plan_pretraining(recipes.load(readme, PretrainRecipe), nodes=1, gpus_per_node=4, gpu="h100")
    with pytest.raises(ValueError, match="--set micro_batch_size=512;"):
        plan_pretraining(recipe(micro_batch_size=1024), nodes=1, gpus_per_node=8, gpu="h100")
    assert (
        plan_pretraining(recipe(micro_batch_size=64), nodes=1, gpus_per_node=8, gpu="h100").accumulation == 8
    )


def test_workstation_cards_fit_less_talk_over_pcie_and_some_have_no_bf16():
    small = recipe(global_batch_size=128, micro_batch_size=32)
    card = plan_pretraining(small, nodes=1, gpus_per_node=4, gpu="rtx4090")
    large = plan_pretraining(small, nodes=1, gpus_per_node=4, gpu="h100")
    assert card.memory["capacity"] == 24e9
    assert card.compute_s / large.compute_s == pytest.approx(989 / 165.2)
    assert card.communication_s / large.communication_s == pytest.approx(900 / 64)
    assert any("of PCIe in a node" in line for line in card.assumptions)
    old = plan_pretraining(small, nodes=1, gpus_per_node=4, gpu="v100")
    assert any("no bf16: set precision: fp16" in line for line in old.warnings)


def test_steps_are_said_as_passes_over_the_data(tmp_path):
    hours = plan_pretraining(recipe(), nodes=1, gpus_per_node=8, gpu="h100", hours=1000.0)
    assert hours.passes == pytest.approx(1000 * 4096 * 2 / 3600 / 1000)
    assert plan_pretraining(recipe(), nodes=1, gpus_per_node=8, gpu="h100").passes is None

    path = tmp_path / "store"
    signal = np.random.default_rng(0).normal(scale=20, size=(3, 128 * 60))
    one = ArrayRecording("lab", "s", "rest", ["Fp1", "Cz", "Oz"], [(0, signal)])
    write_store(path, [one], sfreq=128.0)
    stored = recipe(data={"stores": [str(path)], "window_samples": 512, "overlap": 0.5})
    data = data_at_hand(stored.data)
    assert data == DataAtHand(windows=29, channels=3.0, sfreq=128.0)
    estimate = plan_pretraining(stored, nodes=1, gpus_per_node=8, gpu="h100", data=data)
    assert estimate.passes == pytest.approx(1000 * 4096 / 29)
    assert estimate.read_bytes_s_per_node == pytest.approx(estimate.reads_s_per_node * 512 * 3 * 2)
    assert data_at_hand(recipe().data) is None
    with pytest.raises(ValueError, match="ingest again"):
        data_at_hand(stored.data.model_copy(update={"sfreq": 256.0}))


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
