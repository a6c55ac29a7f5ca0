"""Samplers as tables of numbers, and their replay in NumPy.

DDIM, PLMS, DPM-Solver++, UniPC and LCM are linear: whatever they feed to the U-Net, and the latents they end with,
are sums of the starting noise, of the U-Net's outputs so far and of noise drawn on the way, with weights that depend
on the schedule alone. A table holds those weights, so drawing a picture needs no scheduler classes.

Shape letters: N U-Net calls, Z noises drawn on the way, K = 1 + N + Z terms; G pictures, c, h, w a latent's sizes.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_ARRAYS = ("timesteps", "inputs_NK", "final_K")


@dataclass(frozen=True)
class Table:
    """One sampler at one number of steps."""

    scheduler: str
    """Its name: pndm, ddim, dpmsolver++, unipc, lcm."""
    steps: int
    """As asked of the scheduler; PLMS calls the U-Net once more than that."""
    prediction_type: str
    """What the U-Net's output is, as the scheduler was set: epsilon, v_prediction, sample."""
    timesteps: np.ndarray
    """(N,) float64: the time each call is told."""
    inputs_NK: np.ndarray
    """(N, K) float64: row i makes the latents of call i of the starting noise (unit variance; the sampler's own
    initial sigma and input scaling are in the weights), the outputs of calls 0 .. N-1, and noises 0 .. Z-1."""
    final_K: np.ndarray
    """(K,) float64: the same for the latents to decode."""

    def __post_init__(self) -> None:
        """Raises ValueError when the arrays do not fit each other or look ahead."""
        calls, terms = self.inputs_NK.shape
        if self.timesteps.shape != (calls,) or self.final_K.shape != (terms,) or terms < 1 + calls:
            raise ValueError(
                f"a sampler's table with timesteps {self.timesteps.shape}, inputs {self.inputs_NK.shape} and final "
                f"{self.final_K.shape} is damaged: export again."
            )
        outputs_NN = self.inputs_NK[:, 1 : 1 + calls]
        if np.triu(outputs_NN).any() or not all(np.isfinite(a).all() for a in (self.inputs_NK, self.final_K)):
            raise ValueError(
                f"the table of {self.scheduler} with {self.steps} steps is damaged: a call of the U-Net needs outputs "
                "that come later, or weights are not finite. Export again."
            )

    @property
    def calls(self) -> int:
        """How often the U-Net is called."""
        return len(self.timesteps)

    @property
    def noises(self) -> int:
        """How many noises are drawn on the way, the starting noise not counted."""
        return len(self.final_K) - 1 - self.calls

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as .npz, which np.load reads without pickles. Returns the path."""
        target = Path(path)
        labels = np.array([self.scheduler, str(self.steps), self.prediction_type])
        with target.open("wb") as file:
            np.savez(file, labels=labels, **{name: getattr(self, name) for name in _ARRAYS})
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Table:
        """Read what save wrote. Raises ValueError naming the file when it is no table."""
        try:
            with np.load(path, allow_pickle=False) as file:
                scheduler, steps, prediction_type = (str(label) for label in file["labels"])
                arrays = {name: file[name].astype(np.float64) for name in _ARRAYS}
            return cls(scheduler, int(steps), prediction_type, **arrays)
        except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is not a sampler's table ({error}): export again.") from None


def replay(
    table: Table,
    starting_Gchw: np.ndarray,
    predict: Callable[[np.ndarray, float], np.ndarray],
    draw: Callable[[], np.ndarray] | None = None,
) -> np.ndarray:
    """Draw latents as the table's sampler does.

    starting: unit normal noise. predict(latents, timestep): the U-Net's output for (G, c, h, w) float32, guidance
    already applied. draw(): the next normal noise (G, c, h, w); needed when the table has noises.
    Returns (G, c, h, w) float32. Sums are in float64, so the result is at least as exact as a scheduler's own.
    Raises ValueError when noise is needed and `draw` is missing.
    """
    if table.noises and draw is None:
        raise ValueError(f"{table.scheduler} with {table.steps} steps draws noise on the way: give `draw`.")
    shape = starting_Gchw.shape
    terms = np.zeros((len(table.final_K), starting_Gchw.size))
    terms[0] = starting_Gchw.ravel()
    first_noise = 1 + table.calls
    drawn = 0

    def combine(weights_K: np.ndarray) -> np.ndarray:
        nonlocal drawn
        # Drawn when first needed, in order, as the scheduler would: the caller's stream of noise stays in step.
        while weights_K[first_noise + drawn :].any():
            assert draw is not None, "checked above"
            terms[first_noise + drawn] = draw().ravel()
            drawn += 1
        used = np.flatnonzero(weights_K)
        return (weights_K[used] @ terms[used]).astype(np.float32).reshape(shape)

    for call, (timestep, weights_K) in enumerate(zip(table.timesteps, table.inputs_NK, strict=True)):
        terms[1 + call] = predict(combine(weights_K), float(timestep)).ravel()
    return combine(table.final_K)
