"""Which checkpoints a recipe may continue, and what the refusal says."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddscale.training import resume
from ddscale.training.checkpoints import Checkpoint
from ddscale.training.settings import TrainingSettings

TASK = {"model": {"width": 96, "depth": 4}, "data": {"seed": 1, "weights": None}}


def settings(**changes) -> TrainingSettings:
    return TrainingSettings(
        **{"run": "r", "global_batch_size": 8, "micro_batch_size": 4, "steps": 10, "zero_stage": 2, **changes}
    )


def checkpoint(world_size: int = 2, universal: bool = False, task=TASK, **changes) -> Checkpoint:
    saved = settings(**changes)
    state = {
        "identity": resume.identity(saved, task),
        "world_size": world_size,
        "zero_stage": saved.zero_stage,
        "universal": universal,
    }
    return Checkpoint(Path("r/checkpoints/step-00000005"), state)


def test_the_same_recipe_on_as_many_ranks_continues():
    resume.check(checkpoint(), settings(), TASK, world_size=2)


def test_what_does_not_change_the_curve_so_far_may_change():
    changed = settings(steps=20, log_every=3, micro_batch_size=2, optimiser={"lr": 1.0}, clip=0.5)
    resume.check(checkpoint(), changed, TASK, world_size=2)


def test_every_changed_key_is_named_with_both_values():
    now = {"model": {"width": 128, "depth": 4}, "data": {"seed": 1, "weights": {"a": 1.0}}}
    with pytest.raises(ValueError) as caught:
        resume.check(
            checkpoint(), settings(seed=3, global_batch_size=16, precision="bf16"), now, world_size=2
        )
    message = str(caught.value)
    for part in (
        "`seed` is 3, the checkpoint was trained with 0",
        "`global_batch_size` is 16, the checkpoint was trained with 8",
        "`precision` is 'bf16', the checkpoint was trained with 'fp32'",
        "`model.width` is 128, the checkpoint was trained with 96",
        "`data.weights.a` is 1.0, the checkpoint was trained with absent",
    ):
        assert part in message
    assert "new `run:` folder" in message


@pytest.mark.parametrize(
    ("saved", "world_size", "stage"),
    [
        ({"zero_stage": 0, "world_size": 2}, 4, 0),
        ({"zero_stage": 2, "world_size": 2, "universal": True}, 3, 2),
        ({"zero_stage": 2, "world_size": 2, "universal": True}, 2, 1),
        ({"zero_stage": 3, "world_size": 2, "universal": True}, 1, 3),
    ],
)
def test_ranks_and_stages_that_deepspeed_can_load(saved, world_size, stage):
    resume.check(checkpoint(**saved), settings(zero_stage=stage), TASK, world_size)


@pytest.mark.parametrize(
    ("saved", "world_size", "stage"),
    [({"zero_stage": 2}, 1, 2), ({"zero_stage": 1}, 2, 2), ({"zero_stage": 3}, 4, 3)],
)
def test_another_number_of_ranks_gets_the_command_that_converts(saved, world_size, stage):
    with pytest.raises(ValueError) as caught:
        resume.check(checkpoint(**saved), settings(zero_stage=stage), TASK, world_size)
    assert "python -m ddscale.training.convert r/checkpoints/step-00000005" in str(caught.value)
    assert f"start 2 ranks with zero_stage {saved['zero_stage']}" in str(caught.value)


@pytest.mark.parametrize(
    ("saved", "stage"),
    [
        ({"zero_stage": 0}, 1),
        ({"zero_stage": 2}, 0),
        ({"zero_stage": 2}, 3),
        ({"zero_stage": 3, "universal": True}, 2),
    ],
)
def test_stages_that_cannot_take_each_others_state_say_which_one_to_set(saved, stage):
    with pytest.raises(ValueError, match=f"set zero_stage to {saved['zero_stage']}"):
        resume.check(checkpoint(**saved), settings(zero_stage=stage), TASK, world_size=2)
