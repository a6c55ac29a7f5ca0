"""AdamW for a model's parameters, decayed and not, averaged if asked for, and guarded for runs without ZeRO."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from ddscale.training.settings import TrainingSettings

AVERAGE = "average"
"""Key of the averaged weights in an optimiser's state."""


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trained parameters in two groups: matrices, which decay, and biases, norms and single tokens, which do not."""
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for parameter in module.parameters():
        if not parameter.requires_grad:
            continue
        # A parameter that ZeRO-3 has already shared out is empty here; DeepSpeed keeps its real shape aside.
        shape = getattr(parameter, "ds_shape", parameter.shape)
        (decayed if sum(size > 1 for size in shape) > 1 else kept).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]


def make_optimiser(settings: TrainingSettings, module: nn.Module) -> torch.optim.AdamW:
    """The optimiser given to DeepSpeed, which wraps it according to ZeRO stage and precision."""
    options: dict[str, Any] = {
        "lr": settings.optimiser.lr,
        "betas": tuple(settings.optimiser.betas),
        "eps": settings.optimiser.eps,
        # torch's own fused kernel (CPU, CUDA); DeepSpeed's FusedAdam would be compiled on first use.
        "fused": True,
    }
    groups = parameter_groups(module, settings.optimiser.weight_decay)
    if settings.unwrapped_optimiser:
        return GuardedAdamW(groups, clip=settings.clip, ema=settings.ema, **options)
    return (
        AveragingAdamW(groups, settings.ema, **options)
        if settings.ema
        else torch.optim.AdamW(groups, **options)
    )


def hyperparameters(optimiser: Any) -> list[dict[str, Any]]:
    """Each group's settings, to be put back after a checkpoint has brought its own along."""
    return [
        {key: value for key, value in group.items() if key != "params"} for group in optimiser.param_groups
    ]


def restate(optimiser: Any, remembered: list[dict[str, Any]]) -> None:
    """Put the recipe's hyperparameters back, and mend what DeepSpeed does on loading a converted stage 3 checkpoint.

    Any checkpoint restores the hyperparameters it was saved with; a converted one gives every group those of the
    first, so that biases and norms would decay too. It also hands all groups one and the same step counter, which
    each of them then advances: bias correction would run ahead.
    """
    for group, settings in zip(optimiser.param_groups, remembered, strict=True):
        group.update(settings)
    inner = getattr(optimiser, "optimizer", optimiser)
    for state in inner.state.values():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()


def set_learning_rate(optimiser: Any, rate: float) -> None:
    """The rate of the next update, in all groups."""
    for group in optimiser.param_groups:
        group["lr"] = rate


class AveragingAdamW(torch.optim.AdamW):
    """AdamW that, when asked to, keeps an exponential moving average of the weights it updates.

    The average is one more state of the optimiser, so ZeRO shares it out over ranks and checkpoints hold it exactly
    as they do Adam's moments. Its memory is short at first, (1 + n) / (10 + n) after n updates, as diffusers' is.
    """

    def __init__(self, params: Iterable[Any], ema: float | None = None, **options: Any) -> None:
        super().__init__(params, **options)
        self.ema = ema

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        super().step(closure)
        if self.ema is None:
            return
        for parameter in (p for group in self.param_groups for p in group["params"]):
            state = self.state[parameter]
            if AVERAGE not in state:
                state[AVERAGE] = parameter.detach().clone()
                continue
            # Computed where the counter lies: on a GPU the host does not wait for it.
            decay = torch.clamp((1 + state["step"]) / (10 + state["step"]), max=self.ema)
            state[AVERAGE].lerp_(parameter, (1 - decay).to(parameter.device))


class GuardedAdamW(AveragingAdamW):
    """AdamW that clips, and that leaves weights and moments alone when a gradient is not finite.

    At ZeRO 1-3 and in half precision DeepSpeed's wrappers do both. At stage 0 in float32 it gives the gradients
    to the optimiser as they are, and one NaN on one rank would end in every weight of every rank. DeepSpeed reads
    `overflow` and `_global_grad_norm` from whatever optimiser it has, so the engine counts a skipped step the
    same way at all stages. Gradients are already averaged over ranks: all of them decide alike.
    """

    def __init__(self, params: Iterable[Any], clip: float, ema: float | None = None, **options: Any) -> None:
        super().__init__(params, ema=ema, **options)
        self.clip = clip
        self.overflow = False
        self._global_grad_norm = 0.0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self._global_grad_norm = float(norm)
        self.overflow = not math.isfinite(self._global_grad_norm)
        if self.overflow:
            return
        if self.clip and self._global_grad_norm > self.clip:
            torch._foreach_mul_(gradients, self.clip / (self._global_grad_norm + 1e-6))
        super().step(closure)
