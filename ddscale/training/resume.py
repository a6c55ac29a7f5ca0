"""Whether a checkpoint may be continued by a recipe on these ranks, and what to do where it may not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ddscale.training.checkpoints import Checkpoint
from ddscale.training.settings import TrainingSettings

# Stages whose checkpoints hold the same kind of files, once they are converted.
_FAMILY = {0: "whole", 1: "optimiser", 2: "optimiser", 3: "parameters"}


def identity(settings: TrainingSettings, of_task: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a run this run: changed, the loss curve after a resume would belong to another one."""
    shared = {
        "seed": settings.seed,
        "global_batch_size": settings.global_batch_size,
        "precision": settings.precision,
        "ema": settings.ema,
    }
    return _flat({**shared, **of_task})


def check(
    checkpoint: Checkpoint, settings: TrainingSettings, of_task: Mapping[str, Any], world_size: int
) -> None:
    """Raise ValueError naming every reason why `checkpoint` cannot be continued."""
    saved = checkpoint.state
    now = identity(settings, of_task)
    problems = [
        f"`{key}` is {_show(now.get(key))}, the checkpoint was trained with {_show(saved['identity'].get(key))}"
        for key in sorted({*now, *saved["identity"]})
        if now.get(key) != saved["identity"].get(key)
    ]
    if problems:
        raise ValueError(
            f"{checkpoint.path} cannot be continued with this recipe: {'; '.join(problems)}. "
            "Set them back, or name a new `run:` folder to start afresh."
        )
    _check_shape(checkpoint, settings, world_size)


def _check_shape(checkpoint: Checkpoint, settings: TrainingSettings, world_size: int) -> None:
    """Raise ValueError unless DeepSpeed can load this checkpoint at this stage on this many ranks."""
    saved = checkpoint.state
    before, now = saved["zero_stage"], settings.zero_stage
    same = before == now and (before == 0 or saved["world_size"] == world_size)
    convertible = _FAMILY[before] == _FAMILY[now] and before > 0
    if convertible if saved["universal"] else same:
        return
    made = f"{checkpoint.path} was written by {saved['world_size']} ranks at zero_stage {before}"
    wanted = f"this start has {world_size} at zero_stage {now}"
    if saved["universal"] or not convertible:
        raise ValueError(
            f"{made}; {wanted}. Only stages 1 and 2 can take each other's state: set zero_stage to {before}."
        )
    raise ValueError(
        f"{made}; {wanted}. Convert it once, with `python -m ddscale.training.convert {checkpoint.path}`, and start "
        f"again as now; or start {saved['world_size']} ranks with zero_stage {before}."
    )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _show(value: Any) -> str:
    return "absent" if value is None else repr(value)
