"""Metrics on disk: full precision, each step once, valid JSON whatever the numbers."""

from __future__ import annotations

import json
import resource
from unittest.mock import Mock

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ddscale.training.settings import TrainingSettings
from ddscale.training.telemetry import (
    Telemetry,
    finite,
    headline,
    truncate_rows,
    validation_line,
    write_provenance,
)

SETTINGS = TrainingSettings(run="r", global_batch_size=4, micro_batch_size=4, steps=9)


def row(step: int, loss: float = 0.1):
    return {"step": step, "loss": loss, "loss_by_dataset": {"a": loss, "b": 2 * loss}}


def written(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_a_number_comes_back_bit_for_bit(tmp_path):
    awkward = 0.1 + 0.2 * 2**-30
    with Telemetry(tmp_path, SETTINGS, 0) as telemetry:
        telemetry.write(row(1, awkward))
    assert written(tmp_path)[0]["loss"] == awkward


def test_a_resumed_run_drops_the_rows_it_will_write_again(tmp_path):
    with Telemetry(tmp_path, SETTINGS, 0) as telemetry:
        for step in range(1, 8):
            telemetry.write(row(step))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    with Telemetry(tmp_path, SETTINGS, 4) as telemetry:
        telemetry.write(row(5, 7.0))
    assert [(r["step"], r["loss"]) for r in written(tmp_path)] == [*((s, 0.1) for s in range(1, 5)), (5, 7.0)]


def test_tensorboard_shows_the_resumed_curve_alone(tmp_path):
    with Telemetry(tmp_path, SETTINGS, 0) as telemetry:
        for step in range(1, 8):
            telemetry.write(row(step, 1.0))
    with Telemetry(tmp_path, SETTINGS, 4) as telemetry:
        telemetry.write(row(5, 2.0))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [
        (1, 1.0),
        (2, 1.0),
        (3, 1.0),
        (4, 1.0),
        (5, 2.0),
    ]
    assert [e.value for e in events.Scalars("loss_by_dataset/b")][-1] == 4.0


def test_rows_of_a_run_that_never_began_are_no_problem(tmp_path):
    truncate_rows(tmp_path / "metrics.jsonl", 5)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_what_json_cannot_say_becomes_null():
    assert finite({"loss": float("nan"), "by": {"a": float("-inf"), "b": 1.5}, "step": 3}) == {
        "loss": None, "by": {"a": None, "b": 1.5}, "step": 3,
    }  # fmt: skip


def test_the_environment_keeps_every_start(tmp_path):
    for step in (0, 4):
        write_provenance(tmp_path, SETTINGS, {"resumed_from_step": step}, ["node-a"])
    starts = json.loads((tmp_path / "environment.json").read_text())["starts"]
    assert [start["resumed_from_step"] for start in starts] == [0, 4]
    assert starts[0]["packages"]["torch"]
    assert starts[0]["hosts"] == ["node-a"]
    assert (tmp_path / "recipe.yaml").read_text().startswith("run: r\n")


def test_wandb_that_is_not_installed_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    asked = SETTINGS.model_copy(
        update={
            "wandb": TrainingSettings.model_validate(
                {**SETTINGS.model_dump(), "wandb": {"project": "p"}}
            ).wandb
        }
    )
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'ddscale\[wandb\]'"):
        Telemetry(tmp_path, asked, 0)


def test_lines_for_people():
    shown = {"step": 5, "loss": 0.51234, "samples_per_s": 99.6, "data_wait_fraction": 0.2, "mfu": 0.41,
             "val_loss": 0.5, "val_loss_channel_mean": 1.0, "val_loss_interpolation": 0.75}  # fmt: skip
    assert headline(shown) == "loss 0.5123, 100 samples/s, MFU 41%, waiting for data 20%"
    assert headline({**shown, "loss": None, "data_wait_fraction": 0.0}).startswith("loss not finite, 100")
    assert (
        validation_line(shown) == "step 5: held-out loss 0.5000 (channel mean 1.0000, interpolation 0.7500)"
    )


def test_a_full_disk_costs_the_rows_it_has_no_room_for_and_one_warning(tmp_path, capsys, monkeypatch):
    # Only metrics.jsonl's own disk is full.
    monkeypatch.setattr("ddscale.training.telemetry._open_board", lambda folder, purge_step: Mock())
    with Telemetry(tmp_path, SETTINGS, 0) as telemetry:
        telemetry.write(row(1))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        # Room for part of a line, as a disk has that is just getting full.
        resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "metrics.jsonl").stat().st_size + 20, hard))
        try:
            telemetry.write(row(2))
            telemetry.write(row(3))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        telemetry.write(row(4))
    assert [r["step"] for r in written(tmp_path)] == [1, 4]
    warned = capsys.readouterr().err
    assert warned.count("warning: ") == 1
    assert f"{tmp_path / 'metrics.jsonl'} could not be written: OSError" in warned


def test_tensorboard_and_wandb_may_fail_and_come_back(tmp_path, capsys):
    with Telemetry(tmp_path, SETTINGS, 0) as telemetry:
        telemetry._wandb = Mock()
        telemetry._wandb.log.side_effect = ConnectionError("no route")
        telemetry._wandb.finish.side_effect = ConnectionError("no route")
        telemetry.write(row(1, 1.0))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(telemetry._board, "add_scalar", Mock(side_effect=OSError(28, "full")))
            telemetry.write(row(2, 1.0))
        telemetry.write(row(3, 1.0))
    assert [r["step"] for r in written(tmp_path)] == [1, 2, 3]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("loss")][-1] == 3
    warned = capsys.readouterr().err
    assert warned.count("warning: ") == 2
    assert "Weights & Biases could not be written: ConnectionError: no route" in warned
    assert "tensorboard could not be written: OSError" in warned
