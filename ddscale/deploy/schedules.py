"""Any linear scheduler of diffusers as a table of numbers, found by letting it work on unit vectors.

The schedulers are elementwise and linear: run on a "picture" with one pixel for each quantity they combine (starting
noise, U-Net outputs, noises), each quantity being 1 in its own pixel, a scheduler writes its weights into the pixels.
Shape letters: N U-Net calls, Z noises drawn on the way, K = 1 + N + Z terms.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ddscale.deploy.runtime.sampler import Table, replay

TOLERANCE = 1e-6
"""Relative L2 by which a table's latents may differ from the scheduler's own."""
_PIXELS = 512


def tabulate(scheduler: Any, steps: int, name: str | None = None) -> Table:
    """The table of a diffusers scheduler at a number of steps.

    scheduler: as made by ddscale.diffusion.pipeline.scheduler_named; left as it was. name: stands in the table; the
    class's name when not given. Raises ValueError for a scheduler that cannot be a table (it clips or thresholds what
    it predicts, or draws noise in a way that cannot be followed), or when the table fails its check.
    """
    label = name or type(scheduler).__name__
    if steps < 1:
        raise ValueError(f"{label} with {steps} steps: ask for at least 1.")
    for setting in ("thresholding", "clip_sample"):
        if scheduler.config.get(setting):
            raise ValueError(
                f"{label} has {setting}: true, which is not linear and so has no table: set it to false, as Stable "
                "Diffusion does, or use another scheduler."
            )
    own = copy.deepcopy(scheduler)
    own.set_timesteps(steps)
    calls = len(own.timesteps)
    # One noise for each call is room enough; columns that no call used are cut off at the end.
    terms = 1 + 2 * calls
    basis_KK = torch.eye(terms, dtype=torch.float64)
    noises = iter(basis_KK[1 + calls :])
    drawn = 0

    def draw() -> Tensor:
        nonlocal drawn
        drawn += 1
        return _as_picture(next(noises))

    rows: list[np.ndarray] = []

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        rows.append(latents.numpy().ravel().copy())
        return _as_picture(basis_KK[len(rows)])

    with _KeepDouble():
        final = _run(own, _as_picture(basis_KK[0]), predict, draw).numpy().ravel()
    kept = 1 + calls + drawn
    table = Table(
        scheduler=label,
        steps=steps,
        prediction_type=str(scheduler.config.get("prediction_type", "epsilon")),
        timesteps=own.timesteps.double().numpy(),
        inputs_NK=np.stack(rows)[:, :kept],
        final_K=final[:kept],
    )
    difference = disagreement(table, scheduler)
    if not difference <= TOLERANCE:
        raise ValueError(
            f"the table of {label} with {steps} steps differs from the scheduler by {difference:.1e} (relative), more "
            f"than {TOLERANCE:.0e}: the scheduler is not linear with these settings. Use pndm, ddim, dpmsolver++, "
            "unipc or lcm."
        )
    return table


def disagreement(table: Table, scheduler: Any, seed: int = 0) -> float:
    """Largest relative L2 between a table's replay and diffusers' scheduler in float32, over every U-Net input and
    the final latents, both driven by the same made-up U-Net, whose output depends on its input as a denoiser's does.
    """
    own = copy.deepcopy(scheduler)
    own.set_timesteps(table.steps)
    random = np.random.default_rng(seed)
    shape = (1, 1, 1, _PIXELS)
    starting, target = (random.standard_normal(shape, dtype=np.float32) for _ in range(2))
    noises = random.standard_normal((max(table.noises, 1), *shape), dtype=np.float32)
    seen: dict[str, list[np.ndarray]] = {"scheduler": [], "table": []}

    def unet(latents: np.ndarray, timestep: float) -> np.ndarray:
        return (np.tanh(latents - target) + np.float32(timestep / 2000) * target).astype(np.float32)

    def in_torch(latents: Tensor, timestep: Tensor) -> Tensor:
        seen["scheduler"].append(latents.numpy().copy())
        return torch.from_numpy(unet(latents.numpy(), float(timestep)))

    def in_numpy(latents: np.ndarray, timestep: float) -> np.ndarray:
        seen["table"].append(latents)
        return unet(latents, timestep)

    for_torch, for_numpy = iter(noises), iter(noises)
    final = _run(own, torch.from_numpy(starting), in_torch, lambda: torch.from_numpy(next(for_torch)))
    seen["scheduler"].append(final.numpy())
    seen["table"].append(replay(table, starting, in_numpy, lambda: next(for_numpy)))
    if len(seen["scheduler"]) != len(seen["table"]):
        return float("inf")
    return max(
        float(np.linalg.norm(a - b) / np.linalg.norm(a))
        for a, b in zip(seen["scheduler"], seen["table"], strict=True)
    )


def _run(
    scheduler: Any, starting: Tensor, predict: Callable[[Tensor, Tensor], Tensor], draw: Callable[[], Tensor]
) -> Tensor:
    """The pipeline's loop: starting noise to latents. The scheduler's own timesteps must have been set."""
    latents = starting * scheduler.init_noise_sigma
    with _noise_from(scheduler, draw):
        for timestep in scheduler.timesteps:
            predicted = predict(scheduler.scale_model_input(latents, timestep), timestep)
            latents = scheduler.step(predicted, timestep, latents, return_dict=False)[0]
    return latents


@contextmanager
def _noise_from(scheduler: Any, draw: Callable[[], Tensor]) -> Iterator[None]:
    """Schedulers draw by randn_tensor of their own module: replaced by `draw` within."""
    module = sys.modules[type(scheduler).__module__]
    if not hasattr(module, "randn_tensor"):
        yield
        return
    with patch.object(module, "randn_tensor", lambda *args, **kwargs: draw()):
        yield


class _KeepDouble(TorchFunctionMode):
    """Some schedulers round latents to float32; weights are wanted with all their digits."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.to and torch.float32 in args and args[0].dtype == torch.float64:
            return args[0]
        return func(*args, **(kwargs or {}))


def _as_picture(vector_K: Tensor) -> Tensor:
    return vector_K.reshape(1, 1, 1, -1).clone()
