"""Held-out windows through the trained autoencoder: scores beside baselines, and windows to look at.

T samples, C channels of a recording (those the model was given, at most its own number).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddscale.metrics.reconstruction import ReconstructionScore
from ddscale.models.baselines import channel_mean, linear_interpolation
from ddscale.models.encoder_folder import load_autoencoder
from ddscale.reporting.plots import Reconstruction
from ddscale.store import Store
from ddscale.stream.collation import HostBatch
from ddscale.stream.device import first_channels, materialise
from ddscale.stream.loader import Loader, open_stores
from ddscale.training.settings import PretrainRecipe

MODEL = "this model"
BASELINES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "linear interpolation across the gap": linear_interpolation,
    "channel mean of the visible samples": channel_mean,
}
MICRO_BATCH = 32


@dataclass(frozen=True)
class HeldOut:
    """What the held-out windows show."""

    scores: dict[str, dict[str, ReconstructionScore]]
    """Data set -> prediction's name -> score, over each recording's own channels."""
    examples: list[tuple[str, Reconstruction]]
    """The best, the median and the worst window by the model's error."""
    windows: int


def reconstruct_held_out(run: Path, recipe: PretrainRecipe, windows: int) -> HeldOut:
    """Reconstruct `windows` held-out windows of the run's stores with its model, on the CPU or first GPU.

    Raises FileNotFoundError when the run has no mae/ folder yet, ValueError when its stores changed.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_autoencoder(run / "mae").to(device)
    stores = open_stores(recipe.data)
    scores: dict[str, dict[str, ReconstructionScore]] = {}
    looked_at: list[Reconstruction] = []
    with Loader.fixed(recipe.data, windows=windows, micro_batch_size=MICRO_BATCH, stores=stores) as loader:
        for (batch,) in loader:
            x_BTC = materialise(
                batch, device, loader.step_uv, recipe.model.n_channels, recipe.data.normalisation
            )
            predicted_BTC, masked_BN = model.reconstruct(x_BTC, batch.mask_seeds.to(device))
            predictions = {MODEL: predicted_BTC} | {
                name: f(x_BTC, masked_BN) for name, f in BASELINES.items()
            }
            arrays = {name: value.cpu().numpy() for name, value in predictions.items()}
            original_BTC = x_BTC.cpu().numpy()
            masked_BT = masked_BN.repeat_interleave(recipe.model.patch, dim=1).cpu().numpy()
            _score(batch, loader.datasets, original_BTC, arrays, masked_BT, scores)
            looked_at += _described(batch, loader, stores, original_BTC, arrays[MODEL], masked_BT)
    return HeldOut(dict(sorted(scores.items())), _ranked(looked_at), len(looked_at))


def _ranked(windows: list[Reconstruction]) -> list[tuple[str, Reconstruction]]:
    """Best, median and worst window by mean squared error: not only what looks good."""
    ordered = sorted(windows, key=lambda window: window.mean_squared_error)
    places = {"best": 0, "median": len(ordered) // 2, "worst": len(ordered) - 1}
    return [(name, ordered[place]) for name, place in places.items()] if ordered else []


def _score(
    batch: HostBatch,
    datasets: list[str],
    x_BTC: np.ndarray,
    predictions: dict[str, np.ndarray],
    masked_BT: np.ndarray,
    scores: dict[str, dict[str, ReconstructionScore]],
) -> None:
    """Add a batch to the scores: own channels only, since tiled copies would count some channels twice."""
    for sample in np.flatnonzero(batch.valid.numpy()):
        own = min(int(batch.channels[sample]), x_BTC.shape[2])
        of_dataset = scores.setdefault(
            datasets[batch.datasets[sample]], {name: ReconstructionScore() for name in predictions}
        )
        for name, prediction_BTC in predictions.items():
            of_dataset[name].add(x_BTC[sample, :, :own], prediction_BTC[sample, :, :own], masked_BT[sample])


def _described(
    batch: HostBatch,
    loader: Loader,
    stores: list[Store],
    x_BTC: np.ndarray,
    prediction_BTC: np.ndarray,
    masked_BT: np.ndarray,
) -> list[Reconstruction]:
    """The batch's windows with the names of their channels."""
    samples = np.flatnonzero(batch.valid.numpy())
    located = loader.locate(batch.positions[samples].numpy())
    first_C = first_channels(batch.mask_seeds[samples], batch.channels[samples], x_BTC.shape[2])
    described = []
    for place, sample in enumerate(samples):
        own = min(int(batch.channels[sample]), x_BTC.shape[2])
        channels = stores[located.store[place]].channels_of(int(located.row[place]))
        shown = channels[int(first_C[place]) : int(first_C[place]) + own]
        error = (x_BTC[sample, :, :own] - prediction_BTC[sample, :, :own])[masked_BT[sample]]
        described.append(
            Reconstruction(
                dataset=loader.datasets[batch.datasets[sample]],
                channel_names=[channel.name for channel in shown],
                sfreq=loader.sfreq,
                original_TC=x_BTC[sample, :, :own],
                prediction_TC=prediction_BTC[sample, :, :own],
                masked_T=masked_BT[sample],
                mean_squared_error=float(np.mean(error**2)),
            )
        )
    return described
