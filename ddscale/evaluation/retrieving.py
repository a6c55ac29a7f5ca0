"""EEG to image: is the shown picture among those whose CLIP features are nearest to the EEG's?

Shape letters: n trials, N gallery pictures, Q queries, D embedding width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddscale.diffusion.clip import Clip
from ddscale.diffusion.pictures import as_tensor, decode
from ddscale.diffusion.pipeline import EEGToImagePipeline
from ddscale.diffusion.settings import FinetuneRecipe
from ddscale.evaluation.results import number
from ddscale.evaluation.trials import Trial
from ddscale.metrics.retrieval import Retrieval, retrieve
from ddscale.stream.pictures import StorePictures

_AT_ONCE = 64


def retrieval(
    recipe: FinetuneRecipe,
    pipeline: EEGToImagePipeline,
    trials: Sequence[Trial],
    pictures: StorePictures,
    size: int,
    largest: int,
    seed: int,
) -> dict[str, Any]:
    """Single trials and, where pictures were shown several times, their averages; for the results file.

    The gallery is all pictures of the trials' split, or `largest` of them drawn by chance, whichever trials there
    are: else the numbers would rise when fewer trials are evaluated. Trials whose picture was not drawn are left out.
    """
    conditioner = pipeline.conditioner
    if conditioner.alignment is None:
        return {"skipped": "the run was trained without alignment."}
    if recipe.objective.alignment_target != "image":
        return {"skipped": "the EEG was aligned with captions, which pictures share."}
    split = trials[0].window.facts["split"]
    rows = gallery_rows(pictures, split, largest, seed)
    asked = [trial for trial in trials if trial.image in set(rows.tolist())]
    if not asked or len(rows) < 2:
        return {
            "skipped": f"none of the {len(trials)} trials' pictures is among the {len(rows)} of the gallery: "
            "evaluate more trials, or allow a larger `gallery`."
        }
    clip = Clip(recipe.clip_folder)
    clip.model.to(pipeline.device)
    with torch.no_grad():
        x_BTC = torch.stack([trial.window.x_TC for trial in asked])
        parts = [conditioner(part.to(conditioner.device)).clip for part in x_BTC.split(_AT_ONCE)]
        queries = torch.cat([part for part in parts if part is not None]).float().cpu().numpy()
        features = [clip.of_images(part.to(pipeline.device)).cpu() for part in _decoded(pictures, rows, size)]
    gallery_ND = torch.cat(features).numpy()
    right = np.searchsorted(rows, [trial.image for trial in asked])
    singly = retrieve(queries, gallery_ND, right)
    found = {"gallery": len(rows), "of_split": pictures.splits.count(split), **_numbers(singly, right)}
    shown, of_query = np.unique(right, return_inverse=True)
    if len(shown) < len(right):
        units = queries / np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-12)
        sums = np.zeros((len(shown), units.shape[1]))
        np.add.at(sums, of_query, units)
        found["averaged"] = {
            "trials_per_picture": len(right) / len(shown),
            **_numbers(retrieve(sums, gallery_ND, shown), shown),
        }
    return found


def gallery_rows(pictures: StorePictures, split: str, largest: int, seed: int) -> NDArray[np.int64]:
    """Rows of the pictures to tell apart, in rising order; they depend on the split alone."""
    rows = np.array([row for row, of in enumerate(pictures.splits) if of == split], np.int64)
    return np.sort(np.random.default_rng(seed).permutation(rows)[:largest])


def _decoded(pictures: StorePictures, rows: NDArray[np.int64], size: int) -> Iterator[torch.Tensor]:
    for start in range(0, len(rows), _AT_ONCE):
        part = rows[start : start + _AT_ONCE].tolist()
        yield torch.stack([as_tensor(decode(pictures.read(row), pictures.names[row]), size) for row in part])


def _numbers(found: Retrieval, right: NDArray[np.int64]) -> dict[str, Any]:
    numbers: dict[str, Any] = {"queries": len(right), "median_rank": found.median_rank}
    for k in (1, 5):
        if k <= found.gallery:
            of = asdict(found.accuracy(k, right))
            bounds = {side: number(of[side]) for side in ("low", "high")}
            numbers[f"top_{k}"] = {"chance": found.chance(k), **of, **bounds}
    return numbers
