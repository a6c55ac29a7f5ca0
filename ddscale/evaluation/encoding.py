"""Trials through an encoder: windows normalised as in its pretraining, features and fine-tuned predictions.

Legend: N trials, B windows, T samples of a trial, W samples of a window, C channels, K classes, D features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ddscale.evaluation.given import normalisation_of
from ddscale.evaluation.labelled import LabelledTrials
from ddscale.evaluation.probe_recipe import FineTuning
from ddscale.models.config import EncoderConfig
from ddscale.models.encoder import EEGEncoder
from ddscale.models.encoder_folder import ModelDescription
from ddscale.stream.collation import Group, HostBatch
from ddscale.stream.device import materialise
from ddscale.stream.settings import Normalisation

Features = Literal["mean", "mean_std", "tokens"]

_BATCH = 64


class TrialWindows:
    """Windows of trials as an encoder expects them: so many samples and channels, normalised."""

    def __init__(
        self,
        trials: LabelledTrials,
        config: EncoderConfig,
        normalisation: Normalisation,
        overlap: float,
        short_trials: Literal["pad", "stretch"],
        device: torch.device,
    ) -> None:
        self._trials = trials
        self._config = config
        self._normalisation = normalisation
        self._short_trials = short_trials
        self._device = device
        self._spare = max(0, trials.x_NTC.shape[1] - config.n_samples)
        hop = max(1, round(config.n_samples * (1 - overlap)))
        count = math.ceil(self._spare / hop) + 1
        self.starts = [round(place) for place in np.linspace(0, self._spare, count)]
        """First samples of the windows that stand for a trial when it is judged; they cover all of it."""

    def at(self, trial_B: NDArray[np.int64], start_B: NDArray[np.int64]) -> Tensor:
        """One window of each of these trials; (B, W, C of the encoder)."""
        W = self._config.n_samples
        recorded = min(W, self._trials.x_NTC.shape[1])
        B, C = len(trial_B), self._trials.x_NTC.shape[2]
        windows = np.zeros((B, W, C), np.float32)
        for place, (trial, start) in enumerate(zip(trial_B.tolist(), start_B.tolist(), strict=True)):
            windows[place, :recorded] = self._trials.x_NTC[trial, start : start + recorded]
        numbers = torch.arange(B)
        batch = HostBatch(
            flat=torch.from_numpy(windows.reshape(-1)),
            groups=(Group(channels=C, first=0, count=B, offset=0),),
            rows=numbers,
            window_samples=W,
            channels=torch.full((B,), C),
            positions=numbers,
            mask_seeds=torch.zeros(
                B, dtype=torch.int64
            ),  # of too many channels every window keeps the same ones
            datasets=torch.zeros(B, dtype=torch.int64),
            valid=torch.ones(B, dtype=torch.bool),
            lengths=torch.full((B,), recorded),
            short_trials=self._short_trials,
        )
        return materialise(batch, self._device, 1.0, self._config.n_channels, self._normalisation)

    def drawn(self, trial_B: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
        """A window from a random place of each of these trials."""
        return self.at(trial_B, rng.integers(0, self._spare + 1, len(trial_B)))


def trial_windows(
    trials: LabelledTrials,
    description: ModelDescription,
    folder: str,
    overlap: float,
    short_trials: Literal["pad", "stretch"],
    device: torch.device,
) -> TrialWindows:
    """Windows for the encoder of a folder; raises ValueError when it was pretrained at another rate."""
    sfreq = description.metadata.get("sfreq")
    if sfreq is not None and not math.isclose(float(sfreq), trials.sfreq, rel_tol=1e-6):
        raise ValueError(
            f"{folder} was pretrained at {float(sfreq):g} Hz, the trials of {trials.store.path} have "
            f"{trials.sfreq:g} Hz: ingest them with preprocessing.sfreq: {float(sfreq):g}."
        )
    normalisation = normalisation_of(description.metadata.get("normalisation"))
    config = EncoderConfig.model_validate(description.config)
    return TrialWindows(trials, config, normalisation, overlap, short_trials, device)


def random_encoder(config: EncoderConfig, seed: int) -> EEGEncoder:
    """An encoder as pretraining starts from, its weights decided by the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return EEGEncoder(config).eval()


@torch.no_grad()
def features_of(encoder: EEGEncoder, x_BWC: Tensor, kind: Features) -> Tensor:
    """Of each window the mean of its tokens (B, D), mean and standard deviation over time (B, 2D), or the tokens
    (B, tokens, D)."""
    output = encoder(x_BWC)
    if kind == "tokens":
        return output.tokens
    return output.pooled if kind == "mean" else torch.cat([output.pooled, output.tokens.std(dim=1)], dim=1)


@torch.no_grad()
def frozen_features(
    encoder: EEGEncoder, windows: TrialWindows, n_trials: int, kind: Literal["mean", "mean_std"]
) -> NDArray[np.float64]:
    """(N, D): of each trial's windows the mean of their tokens' mean (and standard deviation over time)."""
    encoder.eval()
    total: NDArray[np.float64] | float = 0.0
    for start in windows.starts:
        parts = []
        for first in range(0, n_trials, _BATCH):
            chosen = np.arange(first, min(first + _BATCH, n_trials))
            x_BWC = windows.at(chosen, np.full(len(chosen), start))
            parts.append(features_of(encoder, x_BWC, kind).double().cpu().numpy())
        total = total + np.concatenate(parts)
    return np.asarray(total) / len(windows.starts)


def finetune_and_predict(
    encoder: EEGEncoder,
    windows: TrialWindows,
    labels_N: NDArray[np.int64],
    classes: int,
    train: NDArray[np.int64],
    test: NDArray[np.int64],
    settings: FineTuning,
    seed: int,
) -> NDArray[np.int64]:
    """Train encoder (in place) and a linear head on the training trials; the class of each test trial.

    Batches, windows and the head's weights follow from the seed. A trial's classes are judged by the mean of the
    probabilities of all its windows.
    """
    device = next(encoder.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(encoder.config.width, classes).to(device)
    rng = np.random.default_rng(seed)
    weights = [*encoder.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=settings.lr, weight_decay=settings.weight_decay)
    per_epoch = math.ceil(len(train) / settings.batch_size)
    steps = settings.epochs * per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _warm_then_cosine(step, steps))
    encoder.train()
    for _ in range(settings.epochs):
        for chosen in np.array_split(rng.permutation(train), per_epoch):
            logits_BK = head(encoder(windows.drawn(chosen, rng)).pooled)
            loss = F.cross_entropy(logits_BK, torch.from_numpy(labels_N[chosen]).to(device))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimiser.step()
            schedule.step()
    encoder.eval()
    with torch.no_grad():
        return _judge(encoder, head, windows, test)


def _judge(
    encoder: EEGEncoder, head: nn.Module, windows: TrialWindows, test: NDArray[np.int64]
) -> NDArray[np.int64]:
    judged = []
    for chosen in _batches(test):
        probabilities = [
            head(encoder(windows.at(chosen, np.full(len(chosen), start))).pooled).softmax(dim=1)
            for start in windows.starts
        ]
        judged.append(torch.stack(probabilities).mean(dim=0).argmax(dim=1).cpu().numpy())
    return np.concatenate(judged)


def _batches(trials: NDArray[np.int64]) -> Sequence[NDArray[np.int64]]:
    return [trials[first : first + _BATCH] for first in range(0, len(trials), _BATCH)]


def _warm_then_cosine(step: int, steps: int) -> float:
    warm = max(1, steps // 10)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
