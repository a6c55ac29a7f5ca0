"""`ddscale generate`: from a fine-tuned run and EEG to pictures on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddscale.deploy.runtime import EEGToImage
from ddscale.diffusion.generate import EEGWindow, Generated, GenerateSettings, generate
from ddscale.diffusion.settings import FinetuneRecipe
from ddscale.evaluation.drawing import draw_exported, microvolts_of
from ddscale.evaluation.given import Given, given_eeg, needs_of_conditioner
from ddscale.evaluation.leaks import trained_on
from ddscale.evaluation.pictures import load_run
from ddscale.evaluation.results import write_json
from ddscale.evaluation.trials import Trial, Trials
from ddscale.store import layout, open_store

COMPARISON = "runtime.json"
TOLERANCE = 3
"""Largest difference of a pixel, of 255, that the runtime in fp32 may have from PyTorch."""


class RuntimeDiffersError(ValueError):
    """The exported folder does not draw what the run draws."""


def generate_from(
    run: Path,
    eeg: Path,
    split: str,
    windows: int | None,
    folder: Path,
    unit: str | None,
    settings: GenerateSettings,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
    exported: Path | None = None,
    *,
    at: Sequence[float] = (),
    trial_s: float | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[int, dict[str, Any] | None]:
    """Draw pictures for the windows of a store's split, or of a whole recording file.

    unit: of a file's numbers, where its header is silent or wrong. exported: a folder of this run's graphs, from
    which the runtime draws the same windows as well. at: onsets in seconds of the file, to draw at those alone;
    trial_s: of how much EEG from each, by default as long as the trials that were trained on. say: is told what
    a person should know of the windows before they are drawn. Returns how many were written, and how far the
    runtime's are from them.
    Raises ValueError or OSError when the run has no generator, or nothing of the EEG can be used;
    RuntimeDiffersError when the runtime's pictures are others.
    """
    pipeline, recipe = load_run(run)
    facts = {"run": str(run), "steps": recipe.steps, "stable_diffusion": recipe.stable_diffusion}
    length_s = trial_s if trial_s is not None or not at else _trained_trial_s(recipe)
    with given_eeg(eeg, needs_of_conditioner(pipeline.conditioner), unit, at, length_s) as given:
        # A file by itself is held out from nothing: all of it lies in the split that a store has by default.
        held_out = split if given.file is None else "train"
        trials = Trials(pipeline.conditioner, given.address, held_out, windows, file=given.file)
        for line in [*given.left_out, *_about_windows(trials, eeg, given, recipe)]:
            say(line)
        kept: list[Trial] = []

        def windows_in_turn() -> Iterator[EEGWindow]:
            for trial in trials:
                if exported is not None:
                    kept.append(trial)
                yield trial.window

        written = generate(
            pipeline, windows_in_turn(), folder, settings, facts, lambda done: on_progress(done, len(trials))
        )
    return len(written), None if exported is None else _compared(exported, kept, written, settings, folder)


def _trained_trial_s(recipe: FinetuneRecipe) -> float | None:
    """Seconds of the trials that were trained on, where their store is at hand."""
    for address in recipe.data.stores:
        try:
            store = None if layout.is_url(address) else open_store(address)
        except (OSError, ValueError):
            store = None
        if store is not None and store.is_trial.any():
            return float(np.median(store.samples[store.is_trial])) / store.sfreq
    return None


def _about_windows(trials: Trials, eeg: Path, given: Given, recipe: FinetuneRecipe) -> list[str]:
    """What a person who matches pictures with events has to know."""
    told = []
    if not trials.at_onsets:
        told.append(
            f"{eeg} is drawn in windows of {trials.window_s:g} s, one after another, whatever was presented when; "
            "`onset_s` in each JSON is where its window begins, in seconds of the recording."
        )
        if recipe.data.cut == "trials":
            told.append(
                "The run was fine-tuned on trials, which begin with an onset: to draw at onsets, give them (--at), or "
                "ingest the recording with its events (ddscale ingest recipes/ingest/events.yaml) and give that store "
                "(--eeg STORE)."
            )
    if given.file is not None:
        told += [f"warning: {line}" for line in trained_on(given.file, trials.store, recipe.data.stores)]
    return told


def _compared(
    exported: Path,
    trials: list[Trial],
    written: list[Generated],
    settings: GenerateSettings,
    folder: Path,
) -> dict[str, Any]:
    model = EEGToImage.load(exported)
    drawn = draw_exported(model, microvolts_of(trials), settings)
    ours = np.stack([np.asarray(picture.image.convert("RGB")) for picture in written])
    difference = np.abs(drawn.astype(np.int16) - ours.astype(np.int16))
    found = {
        "exported": str(exported),
        "pictures": len(written),
        "largest_pixel_difference": int(difference.max()),
        "mean_pixel_difference": float(difference.mean()),
        "tolerance": TOLERANCE,
        "seconds_per_picture": model.timings.total / model.timings.pictures,
    }
    write_json(folder / COMPARISON, found)
    if difference.max() > TOLERANCE:
        raise RuntimeDiffersError(
            f"{exported} draws other pictures than the run: pixels differ by up to {difference.max()} of 255, and "
            f"{TOLERANCE} are allowed. Export the run again; of half precision compare metrics, not pixels."
        )
    return found
