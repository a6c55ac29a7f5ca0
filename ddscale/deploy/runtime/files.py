"""Pictures from a .npy of EEG windows as files: a PNG each, a grid, and a JSON that says how to get them again.

Shape letters: B windows, C channels, T samples.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddscale.deploy.manifest import ENCODER, Manifest
from ddscale.deploy.runtime.generation import EEGToImage
from ddscale.deploy.runtime.png import grid, png

GRID, FACTS = "grid.png", "pictures.json"
_GRID_ROWS = 16


@dataclass(frozen=True)
class Settings:
    """How pictures are drawn; as EEGToImage.generate takes them."""

    steps: int | None = None
    scheduler: str | None = None
    guidance: float = 3.0
    seed: int = 0
    samples: int = 1
    sfreq: float | None = None
    unit: str = "uV"


def read_eeg(path: str | os.PathLike[str]) -> np.ndarray:
    """Windows (B, C, T), or one (C, T) as (1, C, T), of a .npy file; left on disk until they are used.

    Raises FileNotFoundError or ValueError naming the file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"no EEG in {path}: give a .npy file of windows (windows, channels, samples)."
        )
    try:
        windows: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a .npy file ({error}): write it with np.save.") from None
    if not isinstance(windows, np.ndarray):
        raise ValueError(f"{path} is an archive of several arrays: give a .npy file of windows.")
    return windows[None] if windows.ndim == 2 else windows


def golden_eeg(folder: str | os.PathLike[str]) -> np.ndarray:
    """The made-up EEG that an export was checked on, for whoever wants to see the folder work."""
    manifest = Manifest.load(folder)
    with np.load(Path(folder) / manifest.golden.file, allow_pickle=False) as file:
        windows: np.ndarray = file[f"{ENCODER}/eeg"]
    return windows


def draw(
    model: EEGToImage,
    windows_BCT: np.ndarray,
    out: str | os.PathLike[str],
    settings: Settings,
    facts: dict[str, Any],
    on_progress: Callable[[int], None] = lambda windows_done: None,
    at_once: int = 16,
) -> list[Path]:
    """Write `<window>-<sample>.png` for all, grid.png and pictures.json. Returns the pictures' paths.

    facts: of EEG and model, for the JSON. Memory is bounded by `at_once` windows.
    Raises EEGError when EEG must not be drawn; pictures of earlier windows are then there.
    """
    target = Path(out)
    target.mkdir(parents=True, exist_ok=True)
    _forget_earlier(target)
    paths, rows = [], []
    for first in range(0, max(len(windows_BCT), 1), at_once):
        pictures = model.generate(
            windows_BCT[first : first + at_once],
            steps=settings.steps,
            scheduler=settings.scheduler,
            guidance=settings.guidance,
            seed=settings.seed,
            samples=settings.samples,
            sfreq=settings.sfreq,
            unit=settings.unit,
            first_window=first,
        )
        for number, picture in enumerate(pictures):
            window, sample = first + number // settings.samples, number % settings.samples
            paths.append(_write(target / f"{window}-{sample}.png", png(picture)))
        if first < _GRID_ROWS:
            rows.append(pictures[: (_GRID_ROWS - first) * settings.samples])
        on_progress(min(first + at_once, len(windows_BCT)))
    _write(target / GRID, png(grid(np.concatenate(rows), settings.samples)))
    table = model.table(settings.scheduler, settings.steps)
    drawn = {
        "pictures": [path.name for path in paths],
        "scheduler": table.scheduler,
        "steps": table.steps,
        "guidance": settings.guidance,
        "seed": settings.seed,
        "samples": settings.samples,
        "provider": model.provider,
        "precision": model.manifest.precision,
        "source": model.manifest.source.sha256,
        **facts,
    }
    _write(target / FACTS, json.dumps(drawn, indent=2, ensure_ascii=False).encode())
    return paths


def _forget_earlier(target: Path) -> None:
    """Remove the pictures of an earlier call, by its own list: beside new ones they would be taken for new."""
    try:
        earlier = list(map(str, json.loads((target / FACTS).read_bytes())["pictures"]))
    except (OSError, ValueError, KeyError, TypeError):
        return
    for name in [*earlier, GRID, FACTS]:
        if Path(name).name == name:
            (target / name).unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> Path:
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return path
