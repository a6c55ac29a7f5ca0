"""Pictures from EEG windows as files: a PNG each, beside it a JSON that says how to get it again, and a grid.

Shape letters: B windows, T samples, C channels.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

import ddscale
from ddscale.diffusion.conditioning import Condition
from ddscale.diffusion.draws import Purpose, integers
from ddscale.diffusion.pipeline import EEGToImagePipeline, SchedulerName, scheduler_named
from ddscale.recipes import Settings
from ddscale.store.layout import written_whole

GRID = "grid.png"
_GAP = 4


class GenerateSettings(Settings):
    """How pictures are drawn from EEG."""

    scheduler: SchedulerName = "dpmsolver++"
    """Sampler: `pndm` is the original's PLMS, `dpmsolver++` and `unipc` need the fewest steps."""
    steps: int = Field(default=25, ge=1)
    """Denoising steps; the original takes 250 of PLMS."""
    guidance_scale: float = Field(default=3.0, ge=1)
    """How far predictions are pushed away from those without EEG; 1 is none, as in the original, at half the cost."""
    samples: int = Field(default=1, ge=1)
    """Pictures for each window; the original draws 5."""
    batch_size: int = Field(default=8, ge=1)
    """Windows generated together; memory grows with it."""
    seed: int = 0
    """With a window's number and the sample's it decides the starting noise."""
    grid_rows: int = Field(default=16, ge=0)
    """Windows shown in the grid image, a row each; 0 for no grid."""


class EEGWindow(NamedTuple):
    """One window to draw pictures for."""

    key: str
    """Names its files; unique."""
    x_TC: Tensor
    """(T, C) float32, as the pipeline's encoder takes it."""
    facts: dict[str, Any]
    """What is known of it, for the sidecar: record, start, label, caption; JSON."""
    seen: Image.Image | None = None
    """The picture that was shown, if known; put first in its row of the grid."""


class Generated(NamedTuple):
    """One picture, and where it was written."""

    key: str
    sample: int
    path: Path
    image: Image.Image


def generate(
    pipeline: EEGToImagePipeline,
    windows: Iterable[EEGWindow],
    folder: str | Path,
    settings: GenerateSettings,
    facts: dict[str, Any] | None = None,
    on_progress: Callable[[int], None] = lambda windows_done: None,
) -> list[Generated]:
    """Draw and write `<key>-<sample>.png` and `.json` for every window, and the grid.

    facts: about the model, for every sidecar. The starting noise belongs to (seed, window's number, sample): the
    seed in a sidecar, given to torch.Generator on the CPU, gives it again.
    Raises ValueError when two windows have the same key.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = scheduler_named(settings.scheduler, pipeline.scheduler)
    results: list[Generated] = []
    rows: list[list[Image.Image]] = []
    taken: set[str] = set()
    for batch in _batches(windows, settings.batch_size):
        for window in batch:
            if (name := _file_name(window.key)) in taken:
                raise ValueError(
                    f"two windows are called {window.key!r}: their files would overwrite each other."
                )
            taken.add(name)
        first = len(taken) - len(batch)
        seeds = [
            seed_of(settings.seed, first + i, k) for i in range(len(batch)) for k in range(settings.samples)
        ]
        images = draw(pipeline, settings, seeds, eeg=torch.stack([window.x_TC for window in batch]))
        for i, window in enumerate(batch):
            own = slice(i * settings.samples, (i + 1) * settings.samples)
            for sample, (image, seed) in enumerate(zip(images[own], seeds[own], strict=True)):
                path = target / f"{_file_name(window.key)}-{sample}.png"
                sidecar = _sidecar(path.name, window, sample, seed, settings, pipeline, facts or {})
                _write_picture(image, path)
                with written_whole(path.with_suffix(".json")) as temporary:
                    temporary.write_text(json.dumps(sidecar, indent=2, ensure_ascii=False), encoding="utf-8")
                results.append(Generated(window.key, sample, path, image))
            if len(rows) < settings.grid_rows:
                rows.append([*([window.seen] if window.seen is not None else []), *images[own]])
        on_progress(len(taken))
    if rows:
        _write_picture(grid_of(rows), target / GRID)
    return results


def draw(
    pipeline: EEGToImagePipeline,
    settings: GenerateSettings,
    seeds: Sequence[int],
    eeg: Tensor | None = None,
    condition: Condition | None = None,
    without: Condition | None = None,
) -> list[Image.Image]:
    """Pictures of one batch, those of a window beside each other, each from its own seed.

    eeg: (B, T, C), or in its place a condition, and what guidance starts from where that is not what the conditioner
    has for no EEG; seeds: B times `settings.samples`.
    """
    images: list[Image.Image] = pipeline(
        eeg,
        condition=condition,
        without=without,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        num_images_per_eeg=settings.samples,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
    ).images
    return images


def seed_of(seed: int, window: int, sample: int) -> int:
    """Seed (below 2**32, which is what torch's CPU generator holds) of one picture."""
    return int(integers(seed, torch.tensor([window * 2**20 + sample]), Purpose.START, below=2**32))


def grid_of(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Pictures in rows, all at the size of the last of the first row, with white gaps."""
    width, height = rows[0][-1].size
    columns = max(len(row) for row in rows)
    size = (columns * (width + _GAP) - _GAP, len(rows) * (height + _GAP) - _GAP)
    sheet = Image.new("RGB", size, "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            shown = picture.convert("RGB")
            if shown.size != (width, height):
                shown = shown.resize((width, height), Image.Resampling.LANCZOS)
            sheet.paste(shown, (x * (width + _GAP), y * (height + _GAP)))
    return sheet


def _batches(windows: Iterable[EEGWindow], size: int) -> Iterator[list[EEGWindow]]:
    remaining = iter(windows)
    while batch := list(itertools.islice(remaining, size)):
        yield batch


def _sidecar(
    name: str,
    window: EEGWindow,
    sample: int,
    seed: int,
    settings: GenerateSettings,
    pipeline: EEGToImagePipeline,
    facts: dict[str, Any],
) -> dict[str, Any]:
    return {
        "picture": name,
        "window": {"key": window.key, **window.facts},
        "sample": sample,
        "seed": seed,
        "scheduler": settings.scheduler,
        "steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        "prediction_type": pipeline.scheduler.config.prediction_type,
        "model": facts,
        "versions": {
            "ddscale": ddscale.__version__,
            "diffusers": diffusers.__version__,
            "torch": torch.__version__,
        },
    }


def _file_name(key: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", key)


def _write_picture(image: Image.Image, path: Path) -> None:
    with written_whole(path) as temporary:
        image.save(temporary, format="PNG")
