"""`ddscale generate`: from a fine-tuned run and EEG to pictures on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ddscale.diffusion.generate import GenerateSettings, generate
from ddscale.evaluation.pictures import load_run
from ddscale.evaluation.trials import Trials, store_of


def generate_from(
    run: Path,
    eeg: Path,
    split: str,
    windows: int | None,
    folder: Path,
    unit: str | None,
    settings: GenerateSettings,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> int:
    """Draw pictures for the windows of a store's split, or of a whole recording file; how many were written.

    unit: of a file's numbers, where its header is silent or wrong. Raises ValueError or OSError when the run has no
    generator, or nothing of the EEG can be used.
    """
    pipeline, recipe = load_run(run)
    facts = {"run": str(run), "steps": recipe.steps, "stable_diffusion": recipe.stable_diffusion}
    with store_of(eeg, pipeline.conditioner, unit) as store:
        # A file by itself is held out from nothing: all of it lies in the split that a store has by default.
        trials = Trials(pipeline.conditioner, store, split if store == eeg else "train", windows)
        written = generate(
            pipeline,
            (trial.window for trial in trials),
            folder,
            settings,
            facts,
            lambda done: on_progress(done, len(trials)),
        )
    return len(written)
