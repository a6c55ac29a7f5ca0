"""A probe from its recipe to its result: every method on the same trials and folds, with its controls.

Legend: N trials, R repetitions (seeds), S shuffles, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ddscale.evaluation import classical
from ddscale.evaluation.encoding import (
    TrialWindows,
    finetune_and_predict,
    frozen_features,
    random_encoder,
    trial_windows,
)
from ddscale.evaluation.exposure import Exposure, exposure
from ddscale.evaluation.labelled import LabelledTrials, read_trials
from ddscale.evaluation.linear import leave_one_subject_out, shuffled
from ddscale.evaluation.probe_recipe import ProbeRecipe
from ddscale.evaluation.probe_result import Method, result_of
from ddscale.evaluation.results import write_json
from ddscale.models.config import EncoderConfig
from ddscale.models.encoder import EEGEncoder
from ddscale.models.encoder_folder import describe, load_encoder

Labels = NDArray[np.int64]
Features = NDArray[np.float64]


@dataclass
class _Encoder:
    """One encoder to probe: a folder's, or random ones of the same sizes."""

    name: str
    windows: TrialWindows
    make: Callable[[int], EEGEncoder]
    """Seed -> a fresh copy."""
    exposure: Exposure | None
    """None: not pretrained."""
    rival: str | None
    """Name of the random encoder of its sizes; None: it is that one."""


@dataclass
class Probe:
    """Trials, what has been found so far, and how far the work is."""

    recipe: ProbeRecipe
    trials: LabelledTrials
    device: torch.device
    on_progress: Callable[[int, int, str], None]
    total: int = 0
    done: int = 0
    methods: list[Method] = field(default_factory=list)

    def advance(self, label: str) -> None:
        self.done += 1
        self.on_progress(self.done, self.total, label)


def probe(
    recipe: ProbeRecipe, on_progress: Callable[[int, int, str], None] = lambda done, total, label: None
) -> dict[str, Any]:
    """Probe as the recipe says and write probe.json into its folder; what the file holds.

    Raises ValueError, OSError or ModuleNotFoundError for what a user can mend: no labelled trials, an encoder that
    does not fit them, scikit-learn missing.
    """
    trials = read_trials(recipe)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    at_work = Probe(recipe, trials, device, on_progress)
    encoders = _encoders(recipe, trials, device)
    baselines = _baselines(recipe, trials)
    fits = 1 + recipe.shuffles
    at_work.total = len(baselines) * fits
    for encoder in encoders:
        repeats = len(recipe.seeds) if encoder.exposure is None else 1
        at_work.total += (repeats + recipe.shuffles) * len(recipe.linear.features)
        if recipe.finetuning is not None:
            at_work.total += (len(recipe.finetuning.seeds or recipe.seeds) + 1) * len(trials.subjects)
    for kind in recipe.linear.features:
        for encoder in encoders:
            _probe_linearly(at_work, encoder, kind)
    if recipe.finetuning is not None:
        for encoder in encoders:
            _probe_by_finetuning(at_work, encoder)
    for name, (features, note) in baselines.items():
        at_work.methods.append(_linear_method(at_work, name, [features], note=note))
    found = result_of(recipe, trials, at_work.methods)
    write_json(Path(recipe.out) / "probe.json", found)
    return found


def _encoders(recipe: ProbeRecipe, trials: LabelledTrials, device: torch.device) -> list[_Encoder]:
    """Pretrained ones, then a random one for each different size and preparation among them."""
    found: list[_Encoder] = []
    random: dict[str, _Encoder] = {}
    for name, folder in recipe.encoders.items():
        description = describe(folder)
        load_encoder(folder)  # a damaged folder is found now, not after an hour
        windows = trial_windows(
            trials, description, folder, recipe.window_overlap, recipe.short_trials, device
        )
        config = EncoderConfig.model_validate(description.config)
        like = f"{config.model_dump_json()} {description.metadata.get('normalisation')}"
        if like not in random:
            random[like] = _Encoder(
                f"random like {name}" if random else "random",
                windows,
                lambda seed, config=config: random_encoder(config, seed).to(device),  # type: ignore[misc]
                None,
                None,
            )
        found.append(
            _Encoder(
                name,
                windows,
                lambda seed, folder=folder: load_encoder(folder).to(device),  # type: ignore[misc]
                exposure(description, trials),
                random[like].name,
            )
        )
    taken = sorted({encoder.name for encoder in random.values()} & recipe.encoders.keys())
    if taken:
        raise ValueError(
            f"encoders.{taken[0]}: this name is kept for the encoder with random weights; use another."
        )
    return [*found, *random.values()]


def _baselines(recipe: ProbeRecipe, trials: LabelledTrials) -> dict[str, tuple[Features, str]]:
    """Name -> features and how they are made."""
    found: dict[str, tuple[Features, str]] = {}
    x, sfreq = trials.x_NTC, trials.sfreq
    if recipe.band_power is not None:
        bands = recipe.band_power.bands
        note = "log power of each channel in " + ", ".join(
            f"{n} {b[0]:g}-{b[1]:g} Hz" for n, b in bands.items()
        )
        found["band power"] = classical.band_power(x, sfreq, bands), note
    if recipe.steady_state is not None:
        given = recipe.steady_state
        how = f"{', '.join(f'{f:g}' for f in given.frequencies)} Hz and {given.harmonics} harmonics"
        arguments = (x, sfreq, given.frequencies, given.harmonics)
        found["power at stimulus frequencies"] = (
            classical.stimulus_power(*arguments),
            f"log power of each channel at {how}, over its neighbours'",
        )
        found["CCA"] = (
            classical.canonical_correlations(*arguments),
            f"canonical correlations with sines and cosines at {how}; classes, rest among them, by logistic regression",
        )
    return found


def _probe_linearly(at_work: Probe, encoder: _Encoder, kind: Literal["mean", "mean_std"]) -> None:
    recipe, how = at_work.recipe, f"linear probe ({kind})"
    seeds = recipe.seeds if encoder.exposure is None else recipe.seeds[:1]
    features = [
        frozen_features(encoder.make(seed), encoder.windows, len(at_work.trials), kind) for seed in seeds
    ]
    method = _linear_method(at_work, f"{encoder.name}, {how}", features)
    method.exposure = encoder.exposure
    method.rival = f"{encoder.rival}, {how}" if encoder.rival else None
    at_work.methods.append(method)


def _linear_method(at_work: Probe, name: str, features: list[Features], note: str = "") -> Method:
    """features: one (N, D) per repetition; the shuffled control is done on the first."""
    grid = at_work.recipe.linear.regularisation
    found = []
    for of_repetition in features:
        found.append(leave_one_subject_out(of_repetition, at_work.trials, grid))
        at_work.advance(name)
    control = []
    for seed in range(at_work.recipe.shuffles):
        control.append(leave_one_subject_out(features[0], at_work.trials, grid, seed).predicted_N)
        at_work.advance(f"{name}, shuffled labels")
    return Method(
        name,
        np.stack([result.predicted_N for result in found]),
        np.stack(control),
        note=note,
        regularisation=[result.regularisation for result in found],
    )


def _probe_by_finetuning(at_work: Probe, encoder: _Encoder) -> None:
    recipe, trials = at_work.recipe, at_work.trials
    settings = recipe.finetuning
    assert settings is not None, "asked for only with its settings at hand"
    seeds = settings.seeds or recipe.seeds
    name = f"{encoder.name}, fine-tuned"

    def predictions(labels: Labels, seed: int, label: str) -> Labels:
        predicted = np.empty(len(trials), np.int64)
        for train, test in trials.folds():
            predicted[test] = finetune_and_predict(
                encoder.make(seed),
                encoder.windows,
                labels,
                len(trials.classes),
                train,
                test,
                settings,
                seed,
            )
            at_work.advance(label)
        return predicted

    repeated = np.stack([predictions(trials.label_N, seed, name) for seed in seeds])
    control = predictions(shuffled(trials, 0), seeds[0], f"{name}, shuffled labels")
    at_work.methods.append(
        Method(
            name,
            repeated,
            control[None],
            exposure=encoder.exposure,
            rival=f"{encoder.rival}, fine-tuned" if encoder.rival else None,
        )
    )
