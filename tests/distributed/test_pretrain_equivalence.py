"""Pretraining on real recordings: neither ZeRO stage, nor number of ranks, nor interruptions change the curve."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from launching import TINY, curve, launch, launched, output_of, rows, tiny_recipe
from safetensors.torch import load_file

from ddscale.models.encoder_folder import load_encoder

pytestmark = [pytest.mark.distributed, pytest.mark.real, pytest.mark.timeout(900)]

STEPS = 50


def recipe(store: Path, run: Path, zero_stage: int) -> dict:
    return tiny_recipe(
        store,
        run,
        zero_stage=zero_stage,
        model={**TINY, "n_channels": 16, "n_samples": 512},
        data={"stores": [str(store)], "window_samples": 512, "n_channels": 16, "overlap": 0.5},
        steps=STEPS,
        schedule={"warmup_steps": 10},
        checkpoint={"every": 25, "keep": 2},
        validation={"every": 25, "windows": 50},
        ema=0.9,
    )


@pytest.fixture(scope="module")
def uninterrupted(gtec_store, tmp_path_factory) -> dict[int, Path]:
    """A run of 50 steps by two ranks at each ZeRO stage."""
    runs = {}
    for stage in range(4):
        runs[stage] = tmp_path_factory.mktemp("runs") / f"zero{stage}"
        launch(recipe(gtec_store, runs[stage], stage), launcher=True).succeeded()
    return runs


def assert_curves_agree(found: Path, wanted: Path) -> None:
    assert [row[0] for row in curve(found)] == list(range(1, STEPS + 1))
    for mine, theirs in zip(curve(found), curve(wanted), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)


def same_weights(one: Path, other: Path) -> bool:
    return (one / "mae" / "model.safetensors").read_bytes() == (
        other / "mae" / "model.safetensors"
    ).read_bytes()


def test_the_four_stages_give_one_curve(uninterrupted):
    for stage in (1, 2, 3):
        assert_curves_agree(uninterrupted[stage], uninterrupted[0])


def test_the_run_hands_on_the_averaged_weights_at_every_stage(uninterrupted):
    exported = [load_file(uninterrupted[stage] / "mae" / "model.safetensors") for stage in range(4)]
    last = uninterrupted[0] / "checkpoints" / f"step-{STEPS:08d}" / "mp_rank_00_model_states.pt"
    raw = torch.load(last, map_location="cpu", weights_only=False)["module"]
    for name, value in exported[0].items():
        for other in exported[1:]:
            # The mean: a gradient that is 0 but for rounding (keys' biases) still makes Adam step.
            assert float((other[name] - value).abs().mean()) < 1e-5, name
    distances = [float((raw[name] - value).abs().max()) for name, value in exported[0].items()]
    assert max(distances) > 1e-4


def test_one_rank_gives_the_curve_of_two(uninterrupted, gtec_store, tmp_path):
    launch(recipe(gtec_store, tmp_path / "alone", 1), ranks=1).succeeded()
    assert_curves_agree(tmp_path / "alone", uninterrupted[1])
    mine, theirs = rows(tmp_path / "alone")[-1], rows(uninterrupted[1])[-1]
    assert mine["val_loss"] == pytest.approx(theirs["val_loss"], rel=1e-5)
    assert mine["val_loss_interpolation"] == pytest.approx(theirs["val_loss_interpolation"], rel=1e-6)


def test_training_learns_and_leaves_an_encoder(uninterrupted):
    losses = [row["loss"] for row in rows(uninterrupted[0])]
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])
    assert load_encoder(uninterrupted[0] / "encoder").config.n_samples == 512


@pytest.mark.parametrize("zero_stage", range(4))
def test_stopped_by_a_signal_and_resumed_the_curve_is_bitwise_the_uninterrupted_one(
    uninterrupted, gtec_store, tmp_path, zero_stage
):
    wanted = recipe(gtec_store, tmp_path / "run", zero_stage)
    # One rank alone is asked: all of them must agree to stop.
    stopped = launch(wanted, inject="terminate@rank=1,step=18").succeeded()
    assert "stopped by SIGTERM, with a checkpoint" in stopped.output
    assert 18 <= rows(tmp_path / "run")[-1]["step"] <= 19
    assert not (tmp_path / "run" / "encoder").exists()
    resumed = launch(wanted).succeeded()
    assert "continuing from" in resumed.output
    assert curve(tmp_path / "run") == curve(uninterrupted[zero_stage])
    assert same_weights(tmp_path / "run", uninterrupted[zero_stage])


def test_killed_between_checkpoints_the_run_continues_from_the_last_one(uninterrupted, gtec_store, tmp_path):
    wanted = recipe(gtec_store, tmp_path / "run", 2)
    killed = launch(wanted, inject="kill@rank=1,step=33")
    assert killed.code != 0
    assert "rank 0 lost contact with another rank" in killed.output
    assert rows(tmp_path / "run")[-1]["step"] == 32
    resumed = launch(wanted).succeeded()
    assert "continuing from" in resumed.output
    assert "step-00000025" in resumed.output
    assert curve(tmp_path / "run") == curve(uninterrupted[2])
    assert same_weights(tmp_path / "run", uninterrupted[2])


def test_ctrl_c_in_the_terminal_is_a_clean_stop_with_a_checkpoint(uninterrupted, gtec_store, tmp_path):
    run = tmp_path / "run"
    wanted = recipe(gtec_store, run, 3)
    with launched(wanted, launcher=True) as (process,):
        deadline = time.monotonic() + 240
        while not (run / "metrics.jsonl").exists() or len(rows(run)) < 5:
            assert process.poll() is None, output_of(wanted)
            assert time.monotonic() < deadline
            time.sleep(0.05)
        # As a terminal does: to the launcher, what it started, and the ranks, all at once.
        os.killpg(process.pid, signal.SIGINT)
        process.wait(120)
    assert "stopped by SIGINT, with a checkpoint" in output_of(wanted)
    # (DeepSpeed's launcher shows where its own waiting was interrupted.)
    assert 'pretrain.py", line' not in output_of(wanted)
    launch(wanted).succeeded()
    assert curve(run) == curve(uninterrupted[3])
