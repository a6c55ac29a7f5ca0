"""Pretraining in this process, on a small store: the loop against plain PyTorch, and what a run leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from launching import curve, rows, tiny_recipe, write_synthetic_store

from ddscale import recipes
from ddscale.models.encoder_folder import load_autoencoder, load_encoder
from ddscale.models.masked_autoencoder import MaskedAutoencoder
from ddscale.store import open_store
from ddscale.stream.device import materialise
from ddscale.stream.loader import Loader
from ddscale.training.convert import convert
from ddscale.training.optimiser import parameter_groups
from ddscale.training.ownership import only_run_in
from ddscale.training.pretraining import Pretraining, pretrain
from ddscale.training.ranks import AgreedError, start
from ddscale.training.runs import Display
from ddscale.training.schedules import learning_rate
from ddscale.training.settings import PretrainRecipe


@pytest.fixture(scope="module")
def ranks():
    joined = start()
    yield joined
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_synthetic_store(tmp_path_factory.mktemp("stores") / "store")


def recipe(store, run, **changes) -> PretrainRecipe:
    return recipes.check(tiny_recipe(store, run, **changes), PretrainRecipe, "test")


@pytest.fixture(scope="module")
def finished(ranks, store, tmp_path_factory):
    """A run of 12 steps, its recipe and what it said."""
    settings = recipe(store, tmp_path_factory.mktemp("runs") / "run", zero_stage=0)
    said: list[str] = []
    assert pretrain(settings, ranks, Display(say=said.append)) is None
    return settings, Path(settings.run), said


def windows(settings, batch, step_uv):
    return materialise(batch, "cpu", step_uv, settings.data.n_channels, settings.data.normalisation)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_a_run_is_what_a_plain_pytorch_loop_computes(ranks, store, tmp_path, zero_stage):
    settings = recipe(store, tmp_path / "run", zero_stage=zero_stage, clip=0.3)
    pretrain(settings, ranks, Display())

    torch.manual_seed(settings.seed)
    model = MaskedAutoencoder(settings.model)
    groups = parameter_groups(model, settings.optimiser.weight_decay)
    optimiser = torch.optim.AdamW(groups, betas=tuple(settings.optimiser.betas))
    expected = []
    # The whole global batch at once: accumulation must not change the mathematics.
    with Loader(settings.data, global_batch_size=16, micro_batch_size=16) as loader:
        for step in range(settings.steps):
            (batch,) = next(loader)
            output = model(windows(settings, batch, loader.step_uv), batch.mask_seeds)
            loss = output.sum_squared_error / output.masked_values
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            rate = learning_rate(settings.schedule, step, settings.steps, settings.optimiser.lr)
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()
            optimiser.zero_grad()
            expected.append((step + 1, loss.item(), norm.item(), rate))
    assert any(norm > settings.clip for _, _, norm, _ in expected)
    for found, wanted in zip(curve(tmp_path / "run"), expected, strict=True):
        assert found == pytest.approx(wanted, rel=1e-5)


def test_a_row_has_what_other_tools_read(finished):
    _, run, _ = finished
    first, *_, last = rows(run)
    assert {
        "step", "loss", "lr", "grad_norm", "samples_seen", "eeg_hours_seen", "samples_per_s", "eeg_hours_per_s",
        "data_wait_fraction", "mfu", "loss_by_dataset",
    } <= first.keys()  # fmt: skip
    assert [row["step"] for row in rows(run)] == list(range(1, 13))
    assert last["samples_seen"] == 12 * 16
    assert last["eeg_hours_seen"] == pytest.approx(12 * 16 * 1.0 / 3600)
    assert 0 <= last["data_wait_fraction"] <= 1
    assert 0 < last["mfu"] < 1
    assert set(last["loss_by_dataset"]) == {"four", "twenty"}
    assert [row["step"] for row in rows(run) if "val_loss" in row] == [6, 12]


def test_training_and_validation_share_what_they_have_opened(ranks, store, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(
        "ddscale.stream.loader.open_store", lambda path, *rest: opened.append(path) or open_store(path, *rest)
    )
    Pretraining(recipe(store, tmp_path / "run"), ranks).close()
    assert opened == [str(store)]


def test_the_loss_is_the_mean_over_the_datasets_windows(finished):
    settings, run, _ = finished
    with Loader(settings.data, global_batch_size=16, micro_batch_size=16) as loader:
        (batch,) = next(loader)
        counts = {name: int((batch.datasets == number).sum()) for number, name in enumerate(loader.datasets)}
    row = rows(run)[0]
    mean = sum(row["loss_by_dataset"][name] * count for name, count in counts.items()) / 16
    assert row["loss"] == pytest.approx(mean, rel=1e-6)


def test_validation_and_its_baselines_are_those_of_the_held_out_windows(finished):
    settings, run, _ = finished
    model = load_autoencoder(run / "mae")
    patch, errors, guesses, lines, seen = settings.model.patch, 0.0, 0.0, 0.0, 0
    with Loader.fixed(settings.data, windows=21, micro_batch_size=1) as loader:
        for (batch,) in loader:
            x = windows(settings, batch, loader.step_uv)
            prediction, masked = model.reconstruct(x, batch.mask_seeds)
            hidden = masked[0].repeat_interleave(patch)
            signal, visible = x[0].double(), (~hidden).nonzero()[:, 0]
            errors += (prediction[0].double() - signal)[hidden].square().sum().item()
            guesses += (signal[visible].mean(0) - signal)[hidden].square().sum().item()
            for t in hidden.nonzero()[:, 0].tolist():
                before, after = visible[visible < t], visible[visible > t]
                left = before[-1] if len(before) else after[0]
                right = after[0] if len(after) else before[-1]
                part = 0.0 if right == left else float((t - left) / (right - left))
                lines += (signal[left] * (1 - part) + signal[right] * part - signal[t]).square().sum().item()
            seen += int(hidden.sum()) * signal.shape[1]
    row = rows(run)[-1]
    assert row["val_loss"] == pytest.approx(errors / seen, rel=1e-5)
    assert row["val_loss_channel_mean"] == pytest.approx(guesses / seen, rel=1e-5)
    assert row["val_loss_interpolation"] == pytest.approx(lines / seen, rel=1e-5)
    assert rows(run)[5]["val_loss_interpolation"] == row["val_loss_interpolation"]


def test_the_run_folder_holds_what_the_run_can_be_repeated_and_used_from(finished):
    settings, run, said = finished
    assert recipes.load(run / "recipe.yaml", PretrainRecipe) == settings
    (begun,) = json.loads((run / "environment.json").read_text())["starts"]
    assert begun["world_size"] == 1
    assert begun["parameters"] == sum(p.numel() for p in MaskedAutoencoder(settings.model).parameters())
    assert begun["peak_flops_source"] == "float32 matmul measured at the start of the run"
    assert list((run / "tensorboard").iterdir())
    encoder, autoencoder = load_encoder(run / "encoder"), load_autoencoder(run / "mae")
    for name, weight in encoder.state_dict().items():
        assert torch.equal(weight, autoencoder.state_dict()[f"encoder.{name}"])
    metadata = json.loads((run / "encoder" / "config.json").read_text())["metadata"]
    assert metadata["samples_seen"] == 192
    assert metadata["sfreq"] == 128.0
    assert metadata["stores"][0]["fingerprint"]
    assert any(line.startswith("step 12: held-out loss") for line in said)
    assert f"encoder: {run / 'encoder'}" in said


def test_a_finished_run_started_again_trains_no_further_and_exports_again(finished, ranks):
    settings, run, _ = finished
    before = rows(run)
    (run / "encoder" / "model.safetensors").unlink()
    assert pretrain(settings, ranks, Display()) is None
    assert rows(run) == before
    assert load_encoder(run / "encoder")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_exported_weights_are_the_trained_float32_ones(ranks, store, tmp_path, zero_stage, precision):
    settings = recipe(
        store, tmp_path / "run", zero_stage=zero_stage, precision=precision, steps=4, schedule={}
    )
    pretrain(settings, ranks, Display())
    model = load_autoencoder(tmp_path / "run" / "mae")
    assert all(weight.dtype == torch.float32 for weight in model.state_dict().values())
    rounded = [torch.equal(weight, weight.bfloat16().float()) for weight in model.parameters()]
    assert sum(rounded) < len(rounded) / 2, "these are bf16's weights, not their float32 masters"
    error, seen = 0.0, 0.0
    with Loader.fixed(settings.data, windows=21, micro_batch_size=4) as loader, torch.no_grad():
        for (batch,) in loader:
            output = model(windows(settings, batch, loader.step_uv), batch.mask_seeds, batch.valid)
            error += output.sum_squared_error.item()
            seen += output.masked_values.item()
    tolerance = 1e-5 if precision == "fp32" else 1e-2
    assert rows(tmp_path / "run")[-1]["val_loss"] == pytest.approx(error / seen, rel=tolerance)


def test_activation_checkpointing_changes_no_number(ranks, store, tmp_path):
    runs = []
    for name, again in (("kept", False), ("again", True)):
        tree = tiny_recipe(store, tmp_path / name, steps=4, zero_stage=3)
        tree["model"] = {**tree["model"], "activation_checkpointing": again}
        pretrain(recipes.check(tree, PretrainRecipe, "test"), ranks, Display())
        runs.append(curve(tmp_path / name))
    assert runs[0] == runs[1]


def test_windows_that_cannot_be_read_count_for_nothing_and_are_named(ranks, tmp_path):
    broken = write_synthetic_store(tmp_path / "store")
    shard = next(broken.rglob("twenty-*.tar"))
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 3])
    data = {**tiny_recipe(broken, tmp_path / "run")["data"], "max_unreadable_fraction": 1.0}
    settings = recipe(broken, tmp_path / "run", data=data, validation={"every": 0})
    pretrain(settings, ranks, Display())
    faults = [json.loads(line) for line in (tmp_path / "run" / "faults.jsonl").read_text().splitlines()]
    assert {fault["kind"] for fault in faults} == {"unreadable"}
    assert all(fault["dataset"] == "twenty" and fault["rank"] == 0 for fault in faults)
    unreadable = 0
    with Loader(settings.data, global_batch_size=16, micro_batch_size=16) as loader:
        for row in rows(tmp_path / "run"):
            (batch,) = next(loader)
            read = {
                name: int((batch.valid & (batch.datasets == number)).sum())
                for number, name in enumerate(loader.datasets)
            }
            unreadable += 16 - sum(read.values())
            total = sum(row["loss_by_dataset"][name] * count for name, count in read.items() if count)
            assert row["loss"] == pytest.approx(total / sum(read.values()), rel=1e-6)
    assert unreadable


def stores_with_lost_held_out_data(store: Path, folder: Path) -> list[str]:
    """A healthy store, and one of a held-out person whose shards are empty."""
    lost = write_synthetic_store(folder / "lost", ("dora",), ("four/dora", "twenty/dora"))
    for shard in lost.rglob("*.tar"):
        os.truncate(shard, 0)
    return [str(store), str(lost)]


def validated(run: Path) -> list[dict]:
    return [row for row in rows(run) if "val_windows" in row]


def test_held_out_windows_that_cannot_be_read_are_counted_and_named_to_the_last_step(ranks, store, tmp_path):
    data = {**tiny_recipe(store, tmp_path)["data"], "retry_s": 0.0, "max_unreadable_fraction": 1.0}
    data["stores"] = stores_with_lost_held_out_data(store, tmp_path)
    run = tmp_path / "run"
    pretrain(recipe(store, run, data=data, validation={"every": 12, "windows": 100}), ranks, Display())
    (row,) = validated(run)
    assert 0 < row["val_windows"] < 100
    assert row["val_loss"] > 0
    told = [json.loads(line) for line in (run / "faults.jsonl").read_text().splitlines()]
    assert told
    assert all("dora" in fault["record"] for fault in told)
    assert {fault["step"] for fault in told} == {12}


def test_baselines_of_a_part_of_the_held_out_windows_are_not_kept(ranks, store, tmp_path):
    data = {**tiny_recipe(store, tmp_path)["data"], "retry_s": 0.0, "max_unreadable_fraction": 1.0}
    data["stores"] = stores_with_lost_held_out_data(store, tmp_path)
    whole = write_synthetic_store(tmp_path / "whole", ("dora",), ("four/dora", "twenty/dora"))

    def mend(line: str) -> None:
        if line.startswith("step 6: held-out"):
            for shard in whole.rglob("*.tar"):
                shutil.copyfile(shard, tmp_path / "lost" / shard.relative_to(whole))

    settings = recipe(store, tmp_path / "run", data=data, validation={"every": 6, "windows": 100})
    pretrain(settings, ranks, Display(say=mend))
    first, last = validated(tmp_path / "run")
    assert first["val_windows"] < last["val_windows"] == 100
    assert first["val_loss_channel_mean"] != last["val_loss_channel_mean"]


def test_without_any_held_out_window_training_goes_on_and_the_limit_keeps_a_checkpoint(
    ranks, store, tmp_path
):
    lost = stores_with_lost_held_out_data(store, tmp_path)
    data = {
        **tiny_recipe(store, tmp_path)["data"],
        "stores": lost,
        "retry_s": 0.0,
        "max_unreadable_fraction": 1.0,
    }
    data["blocklist"] = ["four/carl", "twenty/carl"]
    pretrain(recipe(store, tmp_path / "goes on", data=data), ranks, Display())
    assert [row["val_windows"] for row in validated(tmp_path / "goes on")] == [0, 0]
    assert not any("val_loss" in row for row in rows(tmp_path / "goes on"))
    data["max_unreadable"] = 0
    with pytest.raises(AgreedError, match=r"step 6: Rank 0 could not read .*The run was saved at this step"):
        pretrain(recipe(store, tmp_path / "ends", data=data), ranks, Display())
    assert (tmp_path / "ends" / "checkpoints" / "step-00000006").is_dir()


def test_beyond_the_limit_in_the_last_step_the_run_is_complete_and_says_what_is_not(
    ranks, store, tmp_path, capsys
):
    data = {**tiny_recipe(store, tmp_path)["data"], "retry_s": 0.0, "max_unreadable": 0}
    data["stores"] = stores_with_lost_held_out_data(store, tmp_path)
    run = tmp_path / "run"
    pretrain(recipe(store, run, data=data, validation={"every": 12, "windows": 100}), ranks, Display())
    assert "warning: step 12: Rank 0 could not read" in (said := capsys.readouterr().err)
    assert "the run is complete, its last figures are of what could be read" in said
    assert (run / "checkpoints" / "step-00000012").is_dir()


def test_every_mistake_of_a_start_is_told_with_its_remedy(ranks, store, tmp_path):
    def refused(**changes):
        with pytest.raises(AgreedError) as caught:
            pretrain(recipe(changes.pop("store", store), tmp_path / "run", **changes), ranks, Display())
        return str(caught.value)

    assert "fp16 needs a GPU" in refused(precision="fp16")
    assert "not accepted by DeepSpeed" in refused(
        deepspeed={"zero_optimization": {"reduce_bucket_size": "many"}}
    )
    assert "nowhere" in refused(store=tmp_path / "nowhere")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()

    pretrain(recipe(store, tmp_path / "run", steps=6), ranks, Display())
    message = refused(seed=5, steps=6)
    assert "`seed` is 5, the checkpoint was trained with 0" in message
    assert "has 6 steps, the recipe asks for 4" in refused(steps=4)
    other = write_synthetic_store(tmp_path / "other", subjects=("dora", "emil", "carl"))
    assert "stores are not those of the checkpoint" in refused(store=other, steps=6)


def test_two_runs_cannot_share_a_folder(ranks, store, tmp_path):
    with only_run_in(tmp_path / "run"), pytest.raises(AgreedError, match="another run is training into"):
        pretrain(recipe(store, tmp_path / "run"), ranks, Display())


def test_a_store_with_nobody_held_out_says_how_to_train_on_it(ranks, tmp_path):
    everybody = write_synthetic_store(tmp_path / "store", held_out=())
    with pytest.raises(AgreedError, match=r"validation.every: 0"):
        pretrain(recipe(everybody, tmp_path / "run"), ranks, Display())
    pretrain(recipe(everybody, tmp_path / "run", validation={"every": 0}, steps=5), ranks, Display())


def test_a_model_partitioned_while_it_is_built_trains_alike(ranks, store, tmp_path, monkeypatch):
    pretrain(recipe(store, tmp_path / "whole", zero_stage=3), ranks, Display())
    monkeypatch.setattr("ddscale.training.engine.PARTITION_WHILE_BUILDING", 1)
    pretrain(recipe(store, tmp_path / "parts", zero_stage=3), ranks, Display())
    for found, wanted in zip(curve(tmp_path / "parts"), curve(tmp_path / "whole"), strict=True):
        assert found == pytest.approx(wanted, rel=1e-5)
    assert load_encoder(tmp_path / "parts" / "encoder")


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_deepspeeds_own_sections_reach_it(ranks, store, tmp_path, zero_stage):
    offload = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
    pretrain(
        recipe(store, tmp_path / "off", zero_stage=zero_stage, deepspeed=offload, steps=5), ranks, Display()
    )
    pretrain(recipe(store, tmp_path / "on", zero_stage=zero_stage, steps=5), ranks, Display())
    for found, wanted in zip(curve(tmp_path / "off"), curve(tmp_path / "on"), strict=True):
        assert found == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_a_bf16_run_resumes_bitwise(ranks, store, tmp_path, zero_stage):
    def at(name, **changes):
        pretrain(
            recipe(store, tmp_path / name, zero_stage=zero_stage, precision="bf16", **changes),
            ranks,
            Display(),
        )
        return curve(tmp_path / name)

    schedule = {"kind": "wsd", "warmup_steps": 2, "decay_steps": 2}
    whole = at("whole", schedule=schedule)
    # Half of a run that was meant to be whole: the same recipe, its last checkpoint taken away.
    at("half", schedule=schedule)
    shutil.rmtree(tmp_path / "half" / "checkpoints" / "step-00000012")
    assert at("half", schedule=schedule) == whole


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_a_converted_checkpoint_continues_bitwise_and_a_finished_one_still_exports(
    ranks, store, tmp_path, zero_stage
):
    run = tmp_path / "run"
    settings = recipe(store, run, zero_stage=zero_stage)
    pretrain(settings, ranks, Display())
    whole, weights = curve(run), (run / "mae" / "model.safetensors").read_bytes()
    convert(run / "checkpoints" / "step-00000012", workers=1)
    pretrain(settings, ranks, Display())
    assert (run / "mae" / "model.safetensors").read_bytes() == weights

    for leftover in (run / "checkpoints").glob("step-00000012*"):
        shutil.rmtree(leftover)
    convert(run / "checkpoints" / "step-00000006", workers=1)
    pretrain(settings, ranks, Display())
    assert curve(run) == whole
    with pytest.raises(ValueError, match="is converted already"):
        convert(run / "checkpoints" / "step-00000006")


def test_a_compiled_model_trains_alike(ranks, store, tmp_path):
    for name, compiled in (("eager", False), ("compiled", True)):
        tree = tiny_recipe(
            store, tmp_path / name, steps=3, schedule={}, validation={"every": 0}, compile=compiled
        )
        tree["model"] = {**tree["model"], "depth": 1}
        pretrain(recipes.check(tree, PretrainRecipe, "test"), ranks, Display())
    for found, wanted in zip(curve(tmp_path / "compiled"), curve(tmp_path / "eager"), strict=True):
        assert found == pytest.approx(wanted, rel=1e-4)
