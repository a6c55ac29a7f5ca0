"""What the tests of paired data share: recordings with pictures shown at known times."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ingesting import SFREQ, eeg, write_edf
from PIL import Image

from ddscale import recipes
from ddscale.ingest import IngestRecipe

TRIAL_S = 1.0


def picture(seed: int, kind: str = "PNG", size: tuple[int, int] = (12, 9)) -> bytes:
    """A small picture unlike any other."""
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(values).save(content, kind)
    return content.getvalue()


def session(folder: Path, subjects: int = 3, pictures: int = 8, times: int = 2) -> Path:
    """folder/sub1/run1.edf..., folder/pictures/*.png and .jpg, folder/trials.csv: every picture `times` per subject."""
    (folder / "pictures").mkdir(parents=True)
    names = [f"pictures/cat.{i}.{'png' if i % 2 else 'JPG'}" for i in range(pictures)]
    for i, name in enumerate(names):
        (folder / name).write_bytes(picture(i, "PNG" if i % 2 else "JPEG"))
    rows = []
    for subject in range(1, subjects + 1):
        shown = np.random.default_rng(subject).permutation(np.repeat(np.arange(pictures), times))
        seconds = int(len(shown) * 1.5 + 4)
        write_edf(folder / f"sub{subject}" / "run1.edf", eeg(seconds, subject))
        for place, i in enumerate(shown.tolist()):
            onset = 2 + 1.5 * place
            rows.append(
                [f"sub{subject}/run1.edf", onset, TRIAL_S, names[i], f"class{i % 4}", f"cat, number {i}"]
            )
    write_table(folder / "trials.csv", rows)
    return folder


def write_table(
    path: Path,
    rows: Sequence[Sequence[object]],
    header: Sequence[str] = ("recording", "onset", "duration", "image", "label", "caption"),
) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def tree(folder: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """A recipe for a session, as YAML would give it; quick, in this process."""
    source = {
        "kind": "events",
        "dataset": "cats",
        "folder": str(folder),
        "include": ["sub*/*.edf"],
        "csv": str(folder / "trials.csv"),
    }
    return {
        "stage": "ingest",
        "out": str(out),
        "sources": [source | changes.pop("source", {})],
        "preprocessing": {"sfreq": 64.0, "l_freq": 1.0, "h_freq": 25.0},
        "splits": {"val_images": 0.3, "test_images": 0.3},
        "storage": {"record_s": 2.0, "min_record_s": 1.0, "shard_mb": 0.01, "chunk_s": 1.0},
        "workers": 0,
        "salt": "paired",
    } | changes


def recipe(folder: Path, out: Path, **changes: Any) -> IngestRecipe:
    return recipes.check(tree(folder, out, **changes), IngestRecipe, "test recipe")


__all__ = ["SFREQ", "TRIAL_S", "picture", "read_rows", "recipe", "session", "tree", "write_table"]
