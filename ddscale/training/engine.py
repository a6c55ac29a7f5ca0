"""The DeepSpeed engine of a recipe: model, optimiser, precision and ZeRO stage put together."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ddscale.training import deepspeed_config
from ddscale.training.optimiser import make_optimiser
from ddscale.training.ranks import Ranks, quiet_deepspeed
from ddscale.training.settings import TrainingSettings

# Above this many parameters a model at ZeRO-3 is never whole on any rank, not even while it is built.
PARTITION_WHILE_BUILDING = 1_000_000_000


def build_engine(
    settings: TrainingSettings,
    make_model: Callable[[], nn.Module],
    ranks: Ranks,
    universal_checkpoint: bool = False,
    builds_whole: bool = False,
) -> Any:
    """A DeepSpeed engine around the model that `make_model` gives, weights drawn from `settings.seed`.

    universal_checkpoint: the checkpoint to be loaded was converted for another number of ranks. builds_whole: the
    model reads weights from files as it is made, which a partitioned one could not take in.
    Every rank calls it, after `check` has passed.
    """
    config = deepspeed_config.build(settings, ranks.world_size)
    if universal_checkpoint:
        config["checkpoint"] = {**config.get("checkpoint", {}), "load_universal": True}
    deepspeed = quiet_deepspeed()
    torch.manual_seed(settings.seed)
    with (
        contextlib.nullcontext()
        if builds_whole
        else _partitioned_if_big(deepspeed, settings, make_model, config)
    ):
        model = make_model()
    engine, _, _, _ = deepspeed.initialize(
        model=model,
        optimizer=make_optimiser(settings, model),
        config=copy.deepcopy(config),
        dist_init_required=False,
    )
    if settings.compile:
        engine.compile()
    return engine


def check(settings: TrainingSettings, ranks: Ranks) -> None:
    """Raise ValueError when the recipe cannot run on these ranks, on this device, or with this DeepSpeed."""
    config = deepspeed_config.build(settings, ranks.world_size)
    if settings.precision == "fp16" and ranks.device.type == "cpu":
        raise ValueError("precision: fp16 needs a GPU, and there is none here: use bf16 or fp32.")
    if settings.precision == "bf16" and ranks.device.type == "cuda" and not torch.cuda.is_bf16_supported():
        name = torch.cuda.get_device_name(ranks.device)
        raise ValueError(f"precision: bf16 is not supported by this GPU ({name}): use fp16 or fp32.")
    quiet_deepspeed()
    from deepspeed.runtime.config import DeepSpeedConfig

    try:
        DeepSpeedConfig(config)
    except Exception as error:
        raise ValueError(f"the `deepspeed:` section is not accepted by DeepSpeed: {error}") from error


def count_parameters(make_model: Callable[[], nn.Module]) -> int:
    """Parameters of a model, found without giving it memory."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in make_model().parameters())


def _partitioned_if_big(
    deepspeed: Any, settings: TrainingSettings, make_model: Callable[[], nn.Module], config: dict[str, Any]
) -> contextlib.AbstractContextManager[Any]:
    if settings.zero_stage < 3 or count_parameters(make_model) < PARTITION_WHILE_BUILDING:
        return contextlib.nullcontext()
    context: contextlib.AbstractContextManager[Any] = deepspeed.zero.Init(config_dict_or_path=config)
    return context
