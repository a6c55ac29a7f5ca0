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
    masters = _masters_of_half_precision(engine)
    return {name: masters.get(name, value) for name, value in weights.items()}


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


def _masters_of_half_precision(engine: Any) -> dict[str, Tensor]:
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
    return {names[id(half)]: full.detach().cpu().to(torch.float32).clone() for half, full in pairs}
