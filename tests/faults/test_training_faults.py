"""Faults at a named rank and step of a launched run: what the others do, what is kept, and what is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launching import ROOT, curve, launch, launched, output_of, rows, tiny_recipe, write_synthetic_store

from ddscale.models.encoder_folder import load_autoencoder

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return write_synthetic_store(tmp_path_factory.mktemp("stores") / "store")


@pytest.fixture(scope="module")
def healthy(store, tmp_path_factory) -> Path:
    """A run of 12 steps by two ranks at ZeRO 2, checkpoints at 6 and 12."""
    run = tmp_path_factory.mktemp("runs") / "healthy"
    launch(tiny_recipe(store, run, zero_stage=2)).succeeded()
    return run


def faults(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "faults.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("zero_stage", "precision"), [(0, "fp32"), (2, "fp32"), (3, "bf16")])
def test_a_nan_on_one_rank_is_skipped_by_all_and_spoils_nothing(
    store, healthy, tmp_path, zero_stage, precision
):
    run = tmp_path / "run"
    recipe = tiny_recipe(store, run, zero_stage=zero_stage, precision=precision)
    launch(recipe, inject="nan@rank=1,step=5-6").succeeded()
    found = rows(run)
    assert [row["step"] for row in found if row["loss"] is None] == [5, 6]
    assert [row["skipped_steps"] for row in found][3:8] == [0, 1, 2, 2, 2]
    assert found[-1]["loss"] < found[0]["loss"]
    assert all(weight.isfinite().all() for weight in load_autoencoder(run / "mae").parameters())
    if precision == "fp32":
        for mine, theirs in zip(curve(run)[:4], curve(healthy)[:4], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-5)
        # The weights of step 4, the samples of step 5: a skipped step moves on in the data, not in the model.
        assert found[6]["samples_seen"] == 7 * 16
    skipped = [fault for fault in faults(run) if fault["kind"] == "skipped"]
    assert [fault["step"] for fault in skipped] == [5, 6]
    assert skipped[0]["where"] == "rank 1"
    assert set(skipped[0]["positions"]) == {"1"}
    assert all(position in range(64, 80) for position in skipped[0]["positions"]["1"])


def test_a_run_that_only_skips_stops_with_one_clear_error_and_its_last_checkpoint(store, healthy, tmp_path):
    run = tmp_path / "run"
    recipe = tiny_recipe(store, run, zero_stage=0, max_skipped_steps=3)
    stopped = launch(recipe, inject="nan@rank=1,step=8-99")
    assert stopped.code != 0
    assert stopped.output.count("error: ") == 1
    assert "error: step 10: 3 steps in a row were skipped" in stopped.output
    assert "(rank 1)" in stopped.output
    assert "Traceback" not in stopped.output
    assert (run / "checkpoints" / "latest").read_text() == "step-00000006"
    launch(recipe).succeeded()
    for mine, theirs in zip(curve(run), curve(healthy), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)


def test_a_crash_while_a_checkpoint_is_written_costs_that_checkpoint_alone(store, healthy, tmp_path):
    run = tmp_path / "run"
    recipe = tiny_recipe(store, run, zero_stage=2)
    crashed = launch(recipe, inject="kill-in-checkpoint@rank=1,step=12")
    assert crashed.code != 0
    names = {path.name for path in (run / "checkpoints").iterdir() if path.is_dir()}
    assert names == {"step-00000006", ".unpublished-step-00000012"}
    resumed = launch(recipe).succeeded()
    assert "step-00000006" in resumed.output
    assert not (run / "checkpoints" / ".unpublished-step-00000012").exists()
    assert curve(run) == curve(healthy)


def test_a_disk_that_is_full_on_one_rank_costs_one_checkpoint_and_no_step(store, healthy, tmp_path):
    run = tmp_path / "run"
    recipe = tiny_recipe(store, run, zero_stage=2, checkpoint={"every": 4, "keep": 3})
    done = launch(recipe, inject="fail-in-checkpoint@rank=1,step=4", launcher=True).succeeded()
    assert curve(run) == curve(healthy)
    warning = next(line for line in done.output.splitlines() if "warning: checkpoint" in line)
    assert "step-00000004 could not be written (rank 1: [Errno 28] No space left on device)" in warning
    assert "Free some space there" in warning
    assert [(fault["kind"], fault["step"]) for fault in faults(run)] == [("checkpoint", 4)]
    names = {path.name for path in (run / "checkpoints").iterdir() if path.is_dir()}
    assert names == {"step-00000008", "step-00000012"}
    took = {row["step"]: row["checkpoint_s"] for row in rows(run) if "checkpoint_s" in row}
    assert set(took) == {5, 9}  # in the row after it
    assert all(seconds > 0 for seconds in took.values())
    assert [row["step"] for row in rows(run) if row.get("validation_s", 0) > 0] == [6, 12]


def test_a_last_checkpoint_that_cannot_be_written_fails_the_run_with_path_and_remedy(
    store, healthy, tmp_path
):
    run = tmp_path / "run"
    recipe = tiny_recipe(store, run, zero_stage=2)
    failed = launch(recipe, inject="fail-in-checkpoint@rank=0,step=12")
    assert failed.code != 0
    assert failed.output.count("error: ") == 1
    assert f"checkpoint {run}/checkpoints/step-00000012 could not be written (rank 0: [Errno" in failed.output
    assert f"Start again: the run continues from {run}/checkpoints/step-00000006." in failed.output
    assert "Traceback" not in failed.output
    assert not (run / "encoder").exists()
    launch(recipe).succeeded()
    assert curve(run) == curve(healthy)


def test_when_a_rank_hangs_every_rank_says_what_it_is_doing(store, tmp_path):
    run = tmp_path / "run"
    recipe = tiny_recipe(store, run, zero_stage=2, stall_minutes=0.1)
    expected = {
        0: "at step 4 for 0.1 min, in all_reduce (",  # where it waits for the other
        1: "at step 4 for 0.1 min, in at_step (training/faults.py:",
    }
    stalled = {rank: run / "stalled" / f"rank-{rank:05}.txt" for rank in expected}
    with launched(recipe, inject="hang@rank=1,step=4"):
        for _ in range(1200):
            if all(path.is_file() and path.stat().st_size for path in stalled.values()):
                break
            time.sleep(0.1)
        said = output_of(recipe)
    for rank, what in expected.items():
        told = stalled[rank].read_text()
        assert f"rank {rank} (" in told
        assert what in told
        assert what in said
        assert "most recent call first" in told


def test_beyond_the_limit_of_unreadable_data_all_ranks_save_and_end_with_one_error(store, healthy, tmp_path):
    run, damaged = tmp_path / "run", tmp_path / "store"
    subprocess.run(["cp", "-r", str(store), str(damaged)], check=True)
    shard = next(path for path in damaged.rglob("four-*.tar"))
    shard.rename(tmp_path / shard.name)
    data = {**tiny_recipe(store, run)["data"], "stores": [str(damaged)], "max_unreadable": 0, "retry_s": 0.0}
    recipe = tiny_recipe(damaged, run, zero_stage=2, data=data, validation={"every": 0})
    failed = launch(recipe)
    assert failed.code != 0
    assert failed.output.count("error: ") == 1, failed.output
    assert "error: step 1: Rank " in failed.output
    assert "max_unreadable is 0" in failed.output
    assert "The run was saved at this step" in failed.output
    assert "Traceback" not in failed.output
    assert rows(run)[-1]["unreadable_windows"] > 0
    assert (run / "checkpoints" / "step-00000001").is_dir()
    (tmp_path / shard.name).rename(shard)
    launch(recipe).succeeded()
    assert [row["step"] for row in rows(run)] == list(range(1, 13))
    assert rows(run)[-1]["unreadable_windows"] == 0
    assert rows(healthy)[0]["unreadable_windows"] == 0


def test_beyond_the_limit_in_a_validation_all_ranks_save_and_end_with_one_error(store, tmp_path):
    run = tmp_path / "run"
    lost = write_synthetic_store(tmp_path / "lost", ("dora",), ("four/dora", "twenty/dora"))
    for shard in lost.rglob("*.tar"):
        shard.unlink()
    data = {
        **tiny_recipe(store, run)["data"],
        "stores": [str(store), str(lost)],
        "max_unreadable": 0,
        "retry_s": 0.0,
    }
    failed = launch(tiny_recipe(store, run, zero_stage=2, data=data, validation={"every": 4, "windows": 64}))
    assert failed.code != 0
    assert failed.output.count("error: ") == 1, failed.output
    assert "error: step 4: Rank " in failed.output
    assert "The run was saved at this step" in failed.output
    assert (run / "checkpoints" / "step-00000004").is_dir()
    told = [json.loads(line) for line in (run / "faults.jsonl").read_text().splitlines()]
    assert "too many unreadable" in {fault["kind"] for fault in told}


def test_an_index_that_is_not_the_manifests_ends_all_ranks_though_one_of_a_node_looks(store, tmp_path):
    damaged = tmp_path / "store"
    subprocess.run(["cp", "-r", str(store), str(damaged)], check=True)
    index = damaged / "records.parquet"
    content = bytearray(index.read_bytes())
    content[4] ^= 1  # in the first page of data
    index.write_bytes(content)
    failed = launch(tiny_recipe(damaged, tmp_path / "run"))
    assert failed.code != 0
    assert "records.parquet is not the index that manifest.json names" in failed.output
    assert "lost contact" not in failed.output


def test_a_flipped_bit_in_the_newest_checkpoint_is_noticed_and_the_one_before_is_used(
    healthy, store, tmp_path
):
    run = tmp_path / "run"
    recipe = tiny_recipe(store, run, zero_stage=2)
    subprocess.run(["cp", "-r", str(healthy), str(run)], check=True)
    shard = next((run / "checkpoints" / "step-00000012").glob("*rank_1*optim_states.pt"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    resumed = launch(recipe).succeeded()
    assert (
        f"checkpoint step-00000012 is damaged and was passed over: {shard.name} has changed bytes"
        in resumed.output
    )
    assert "continuing from" in resumed.output
    assert "step-00000006" in resumed.output
    assert curve(run) == curve(healthy)


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_another_number_of_ranks_is_refused_with_a_command_that_works(store, healthy, tmp_path, zero_stage):
    run = tmp_path / "run"
    recipe = tiny_recipe(store, run, zero_stage=zero_stage)
    launch(recipe, inject="terminate@rank=0,step=6").succeeded()
    refused = launch(recipe, ranks=1)
    assert refused.code != 0
    assert refused.output.count("error: ") == 1
    command = refused.output.split("with `python ")[1].split("`")[0].split()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, check=True, capture_output=True)
    launch(recipe, ranks=1).succeeded()
    assert [row[0] for row in curve(run)] == list(range(1, 13))
    for mine, theirs in zip(curve(run), curve(healthy), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)


def test_a_recipe_with_three_mistakes_is_told_once_by_one_rank(store, tmp_path):
    recipe = tiny_recipe(store, tmp_path / "run", stepz=3, zero_stage=7)
    del recipe["global_batch_size"]
    refused = launch(recipe, launcher=True)
    assert refused.code != 0
    assert refused.output.count("error: ") == 1
    assert "3 problems" in refused.output
    assert "stepz: unknown key. Did you mean `steps`?" in refused.output
    assert "Traceback" not in refused.output
    assert not (tmp_path / "run").exists()
