"""What a generator is given in place of the EEG of the trial, so that the result can be held against it.

Shape letters: B windows, T samples, C channels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray

from ddscale.diffusion.clip import caption_states
from ddscale.diffusion.conditioning import Condition, EEGConditioner
from ddscale.diffusion.pipeline import EEGToImagePipeline
from ddscale.diffusion.unet import load_unet
from ddscale.evaluation.trials import Trial
from ddscale.metrics.controls import shuffled_pairs

Control = Literal["shuffled_eeg", "random_encoder", "no_eeg", "label_only"]
Given = Literal["eeg"] | Control
CONTROLS: tuple[Control, ...] = get_args(Control)
MEANING: dict[Given, str] = {
    "eeg": "the trial's own EEG",
    "shuffled_eeg": "the EEG of a trial of another picture of the same split",
    "random_encoder": "the trial's EEG through an encoder and projector of random weights",
    "no_eeg": "the mean of what the EEG of training trials is turned into, the same for every trial",
    "label_only": "no EEG: the shown picture's caption, given to Stable Diffusion as it was before fine-tuning",
}

_BATCH = 64


class Conditions(NamedTuple):
    """What all trials are given, on the CPU."""

    condition: Condition
    without: Condition | None = None
    """What guidance starts from, of one trial; None: what stands for no EEG."""
    unet: UNet2DConditionModel | None = None
    """The U-Net to draw with, where it is not the fine-tuned one."""


@torch.no_grad()
def condition_of(
    given: Given,
    pipeline: EEGToImagePipeline,
    trials: Sequence[Trial],
    training: Sequence[Trial],
    stable_diffusion: str,
    seed: int,
) -> Conditions:
    """Conditions of all trials under one control.

    training: trials that were trained on, for `no_eeg`. stable_diffusion: folder of what was fine-tuned, for
    `label_only`. Raises ValueError or FileNotFoundError when a control cannot be made, saying why.
    """
    conditioner = pipeline.conditioner
    if given == "no_eeg":
        mean = _of_eeg(conditioner, torch.stack([trial.window.x_TC for trial in training]))
        return Conditions(
            Condition(
                mean.hidden_states.mean(dim=0, keepdim=True).expand(len(trials), -1, -1),
                None if mean.time is None else mean.time.mean(dim=0, keepdim=True).expand(len(trials), -1),
                None,
            )
        )
    if given == "label_only":
        return _of_captions(trials, stable_diffusion, pipeline)
    x_BTC = torch.stack([trial.window.x_TC for trial in trials])
    if given == "shuffled_eeg":
        x_BTC = x_BTC[torch.from_numpy(shuffled_trials(trials, seed))]
    if given == "random_encoder":
        conditioner = _random(conditioner, seed)
    return Conditions(_of_eeg(conditioner, x_BTC))


def shuffled_trials(trials: Sequence[Trial], seed: int) -> NDArray[np.int64]:
    """Which trial's EEG each trial is given: never one of the same picture. Raises ValueError when there is none."""
    return shuffled_pairs(len(trials), seed, np.array([trial.image for trial in trials]))


def _of_eeg(conditioner: EEGConditioner, x_BTC: torch.Tensor) -> Condition:
    parts = [conditioner(batch.to(conditioner.device, conditioner.dtype)) for batch in x_BTC.split(_BATCH)]
    times = [part.time.cpu() for part in parts if part.time is not None]
    return Condition(
        torch.cat([part.hidden_states.cpu() for part in parts]), torch.cat(times) if times else None, None
    )


def _random(conditioner: EEGConditioner, seed: int) -> EEGConditioner:
    """The same conditioner with fresh weights; what stands for no EEG is kept, for the U-Net knows it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = EEGConditioner.from_config(conditioner.config)
    fresh.null.load_state_dict(copy.deepcopy(conditioner.null.state_dict()))
    return fresh.to(conditioner.device).eval()


def _of_captions(trials: Sequence[Trial], stable_diffusion: str, pipeline: EEGToImagePipeline) -> Conditions:
    captions = [str(trial.window.facts.get("caption") or "") for trial in trials]
    if not all(captions):
        raise ValueError("not every picture has a caption.")
    different = sorted(set(captions))
    states = torch.cat(
        [
            caption_states(stable_diffusion, different[i : i + _BATCH])
            for i in range(0, len(different), _BATCH)
        ]
    )
    rows = {caption: row for row, caption in enumerate(different)}
    hidden = states[torch.tensor([rows[caption] for caption in captions])]
    unet = load_unet(stable_diffusion).to(pipeline.device)
    return Conditions(
        Condition(hidden, None, None), Condition(caption_states(stable_diffusion, [""]), None, None), unet
    )
