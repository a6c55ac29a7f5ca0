"""What a generator is given in place of the EEG of the trial, so that the result can be held against it.

Shape letters: B windows, T samples, C channels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal, get_args

import torch

from ddscale.diffusion.clip import caption_states
from ddscale.diffusion.conditioning import Condition, EEGConditioner
from ddscale.diffusion.pipeline import EEGToImagePipeline
from ddscale.evaluation.trials import Trial
from ddscale.metrics.controls import shuffled_pairs

Control = Literal["shuffled_eeg", "random_encoder", "no_eeg", "label_only"]
Given = Literal["eeg"] | Control
CONTROLS: tuple[Control, ...] = get_args(Control)
MEANING: dict[Given, str] = {
    "eeg": "the trial's own EEG",
    "shuffled_eeg": "the EEG of another trial of the same split",
    "random_encoder": "the trial's EEG through an encoder and projector of random weights",
    "no_eeg": "the states that stand for no EEG, the same for every trial",
    "label_only": "the shown picture's caption instead of EEG, through Stable Diffusion's text encoder: no EEG at all",
}

_BATCH = 64


@torch.no_grad()
def condition_of(
    given: Given,
    pipeline: EEGToImagePipeline,
    trials: Sequence[Trial],
    stable_diffusion: str | None,
    seed: int,
) -> Condition:
    """Conditions of all trials under one control: hidden states (n, L, W) and vectors.

    stable_diffusion: folder with the text encoder, needed for `label_only`.
    Raises ValueError or FileNotFoundError when a control cannot be made, saying why.
    """
    conditioner = pipeline.conditioner
    x_BTC = torch.stack([trial.window.x_TC for trial in trials])
    if given == "shuffled_eeg":
        x_BTC = x_BTC[torch.from_numpy(shuffled_pairs(len(trials), seed))]
    if given == "random_encoder":
        conditioner = _random(conditioner, seed)
    if given == "no_eeg":
        return conditioner.without_eeg(len(trials))
    if given == "label_only":
        return _of_captions(conditioner, trials, stable_diffusion)
    parts = [conditioner(batch.to(conditioner.device, conditioner.dtype)) for batch in x_BTC.split(_BATCH)]
    times = [part.time for part in parts if part.time is not None]
    return Condition(
        torch.cat([part.hidden_states for part in parts]), torch.cat(times) if times else None, None
    )


def _random(conditioner: EEGConditioner, seed: int) -> EEGConditioner:
    """The same conditioner with fresh weights; what stands for no EEG is kept, for the U-Net knows it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = EEGConditioner.from_config(conditioner.config)
    fresh.null.load_state_dict(copy.deepcopy(conditioner.null.state_dict()))
    return fresh.to(conditioner.device, conditioner.dtype).eval()


def _of_captions(
    conditioner: EEGConditioner, trials: Sequence[Trial], stable_diffusion: str | None
) -> Condition:
    captions = [str(trial.window.facts.get("caption") or "") for trial in trials]
    if stable_diffusion is None or not all(captions):
        raise ValueError("not every picture has a caption, or the Stable Diffusion's folder is not known.")
    different = sorted(set(captions))
    states = caption_states(stable_diffusion, different)
    hidden = states[torch.tensor([different.index(caption) for caption in captions])]
    hidden = hidden.to(conditioner.device, conditioner.dtype)
    return Condition(
        hidden, None if conditioner.time_pooling is None else conditioner.time_pooling(hidden), None
    )
