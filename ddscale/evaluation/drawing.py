"""Pictures for held-out trials under each condition: drawn by PyTorch, or by an export's runtime.

Shape letters: n trials, G pictures (n times the samples of a trial), H height, W width, C channels, T samples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ddscale.deploy.manifest import Manifest
from ddscale.deploy.runtime import EEGToImage
from ddscale.deploy.source import hash_source
from ddscale.diffusion.conditioning import Condition
from ddscale.diffusion.finetuning import PIPELINE
from ddscale.diffusion.generate import GenerateSettings, draw, seed_of
from ddscale.diffusion.pipeline import EEGToImagePipeline, scheduler_named
from ddscale.evaluation.conditions import Conditions, Given, condition_of, shuffled_trials
from ddscale.evaluation.trials import Trial
from ddscale.recipes import Settings

Pixels = NDArray[np.uint8]
Progress = Callable[[int, int], None]
"""Trials that are drawn, of how many."""


class RuntimeSettings(Settings):
    """How an export is run."""

    provider: Literal["cpu", "cuda", "tensorrt", "openvino"] = "cpu"
    """What runs the graphs."""
    decoder: Literal["full", "tiny"] = "full"
    """`tiny`: the small decoder, where one was exported."""


def half_precision_of(device: torch.device) -> torch.dtype | None:
    """What halves memory and time on a GPU; None on the CPU, where it only costs digits."""
    if device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


class FromPipeline:
    """Draws with the run's own pipeline."""

    def __init__(
        self,
        pipeline: EEGToImagePipeline,
        trials: Sequence[Trial],
        training: Sequence[Trial],
        stable_diffusion: str,
        settings: GenerateSettings,
        seed: int,
        precision: torch.dtype | None = None,
    ) -> None:
        """training, stable_diffusion, seed: what conditions are made of, see `condition_of`. precision: of matrix
        products and convolutions, None for the weights' own."""
        self._precision = precision
        self._pipeline, self._trials, self._settings = pipeline, trials, settings
        self._made_of = (training, stable_diffusion, seed)

    def draw(self, given: Given, on_progress: Progress) -> Pixels:
        """(G, 3, H, W); the starting noise of a trial's sample is the same under every condition.

        Raises ValueError or FileNotFoundError when the condition cannot be made, saying why.
        """
        pipeline, fine_tuned = self._pipeline, self._pipeline.unet
        states = condition_of(given, pipeline, self._trials, *self._made_of)
        try:
            if states.unet is not None:
                pipeline.unet = states.unet
            with torch.autocast(
                pipeline.device.type, dtype=self._precision, enabled=self._precision is not None
            ):
                return self._draw_all(states, on_progress)
        finally:
            pipeline.unet = fine_tuned

    def facts(self) -> dict[str, Any] | None:
        """Nothing: the run draws itself."""
        return None

    def _draw_all(self, states: Conditions, on_progress: Progress) -> Pixels:
        pipeline, settings, given = self._pipeline, self._settings, states.condition
        pipeline.scheduler = scheduler_named(settings.scheduler, pipeline.scheduler)
        images: list[Image.Image] = []
        for part in _parts(len(self._trials), settings.batch_size):
            condition = Condition(
                given.hidden_states[part], None if given.time is None else given.time[part], None
            )
            count = part.stop - part.start
            without = states.without and Condition(
                states.without.hidden_states.expand(count, -1, -1), None, None
            )
            seeds = [
                seed_of(settings.seed, trial, sample)
                for trial in range(part.start, part.stop)
                for sample in range(settings.samples)
            ]
            images += draw(pipeline, settings, seeds, condition=condition, without=without)
            on_progress(part.stop, len(self._trials))
        return np.stack([np.asarray(image.convert("RGB")) for image in images]).transpose(0, 3, 1, 2)


class FromRuntime:
    """Draws with an exported folder, from the same trials and the same starting noise."""

    def __init__(
        self,
        folder: str | Path,
        run: Path,
        trials: Sequence[Trial],
        settings: GenerateSettings,
        runtime: RuntimeSettings,
        seed: int,
    ) -> None:
        """Raises ValueError when the folder was exported from other weights than `run` has, has not the sampler or
        cannot run here, FileNotFoundError when there is none."""
        manifest = Manifest.load(folder)
        if manifest.source.sha256 != hash_source(run / PIPELINE):
            raise ValueError(
                f"{folder} was exported from {manifest.source.path}, whose weights were others than {run} has now: "
                "export this run (python export/to_onnx.py RECIPE), or name the run that it came from."
            )
        self._model = EEGToImage.load(folder, runtime.provider, runtime.decoder)
        self._model.table(settings.scheduler, settings.steps)
        self._microvolts_nCT = microvolts_of(trials)
        self._folder, self._settings, self._runtime = folder, settings, runtime
        self._precision, self._trials, self._seed = manifest.precision, trials, seed
        self._seconds, self._drawn = 0.0, 0

    def draw(self, given: Given, on_progress: Progress) -> Pixels:
        """(G, 3, H, W). Raises ValueError for a condition that is made of more than EEG."""
        if given not in ("eeg", "shuffled_eeg"):
            raise ValueError("an export takes EEG and nothing else: evaluate the run itself for it.")
        eeg = self._microvolts_nCT
        if given == "shuffled_eeg":
            eeg = eeg[shuffled_trials(self._trials, self._seed)]
        settings, images = self._settings, []
        began = time.perf_counter()
        for part in _parts(len(eeg), settings.batch_size):
            images.append(draw_exported(self._model, eeg[part], settings, part.start))
            on_progress(part.stop, len(eeg))
        self._seconds += time.perf_counter() - began
        drawn = np.concatenate(images)
        self._drawn += len(drawn)
        return drawn.transpose(0, 3, 1, 2)

    def facts(self) -> dict[str, Any]:
        """What drew, for the results; JSON."""
        return {
            "folder": str(self._folder),
            "precision": self._precision,
            **self._runtime.model_dump(),
            "seconds_per_picture": self._seconds / max(1, self._drawn),
        }


def draw_exported(
    model: EEGToImage, eeg_BCT: NDArray[np.float32], settings: GenerateSettings, first_window: int = 0
) -> Pixels:
    """(B x samples, H, W, 3), drawn as the pipeline draws with the same settings."""
    return model.generate(
        eeg_BCT,
        steps=settings.steps,
        scheduler=settings.scheduler,
        guidance=settings.guidance_scale,
        seed=settings.seed,
        samples=settings.samples,
        first_window=first_window,
    )


def microvolts_of(trials: Sequence[Trial]) -> NDArray[np.float32]:
    """(n, C, T) µV of all trials. Raises ValueError when they have different numbers of channels."""
    if len({trial.microvolts_TC.shape for trial in trials}) > 1:
        raise ValueError(
            "the windows have different numbers of channels; an export takes one: name a store of one."
        )
    return torch.stack([trial.microvolts_TC for trial in trials]).transpose(1, 2).contiguous().numpy()


def _parts(n: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]
