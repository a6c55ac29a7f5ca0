"""A trained model's float32 weights, whole, whatever ZeRO stage and precision they were trained at."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ddscale.training.checkpoints import NATIVE
from ddscale.training.optimiser import AVERAGE
from ddscale.training.ranks import quiet_deepspeed

M = TypeVar("M", bound=nn.Module)


def full_weights(engine: Any, checkpoint: Path) -> Mapping[str, Tensor]:
    """State dict of the trained model in float32 on the CPU. For one rank: no collective takes part.

    checkpoint: the engine's state as just published; at ZeRO 1-3 no rank's memory holds all weights, so they are
    put together from its files.
    """
    if engine.zero_optimization():
        # A finished run may have been converted since; its original is what DeepSpeed's tool reads.
        native = checkpoint.with_name(f"{checkpoint.name}{NATIVE}")
        return _from_files(native if native.is_dir() else checkpoint)
    weights = {name: value.detach().cpu().clone() for name, value in engine.module.state_dict().items()}
    masters = {
        name: full.detach().cpu().to(torch.float32).clone()
        for name, full in _master_parameters(engine).items()
    }
    return {name: masters.get(name, value) for name, value in weights.items()}


def averaged_weights(engine: Any, keep: bool) -> dict[str, Tensor]:
    """The running averages of the trained weights, whole, in float32 on the CPU, by name.

    Every rank calls it, for at ZeRO 1-3 each has a part of every weight; keep: whether this rank wants the result,
    which is empty otherwise. One weight at a time is put together.
    """
    quiet_deepspeed()
    from deepspeed.utils import safe_get_full_optimizer_state

    if hasattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state"):
        # DeepSpeed links weights to states after the first group's first update, when the second has none yet.
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()
    averages: dict[str, Tensor] = {}
    masters = _master_parameters(engine)
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    if not any(AVERAGE in state for state in inner.state.values()):
        return {}  # converted at its last step: what is handed on are the weights themselves
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        if engine.zero_optimization():
            average = safe_get_full_optimizer_state(parameter, AVERAGE)
        else:
            average = inner.state[masters.get(name, parameter)][AVERAGE]
        if keep:
            averages[name] = average.detach().float().cpu().clone()
    return averages


def load_full(model: M, weights: Mapping[str, Tensor]) -> M:
    """Put whole weights into a fresh model; raises RuntimeError when they are not the model's."""
    wanted = model.state_dict().keys()
    model.load_state_dict({name: weights[name].float() for name in wanted if name in weights}, strict=True)
    return model


def _from_files(checkpoint: Path) -> dict[str, Tensor]:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    # DeepSpeed narrates every shard on stdout and stderr.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        weights: dict[str, Tensor] = get_fp32_state_dict_from_zero_checkpoint(
            str(checkpoint.parent), tag=checkpoint.name
        )
    return weights


def _master_parameters(engine: Any) -> dict[str, Tensor]:
    """float32 copies that DeepSpeed trains behind half-precision weights at stage 0, by parameter name."""
    optimiser = engine.optimizer
    if not hasattr(optimiser, "fp32_groups"):
        return {}
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    pairs = (
        pair
        for half, full in zip(optimiser.fp16_groups, optimiser.fp32_groups, strict=True)
        for pair in zip(half, full, strict=True)
    )
    return {names[id(half)]: full for half, full in pairs}
