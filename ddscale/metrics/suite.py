"""All image metrics on one set of generated pictures.

Legend: N reference pictures (those that were shown), G generated pictures (one or more for each shown one),
B pictures of one block.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddscale.metrics import pixels, ranks
from ddscale.metrics.controls import estimate, shuffled_pairs
from ddscale.metrics.features import Name, load_extractor
from ddscale.metrics.images import Pictures, Pixels, as_float
from ddscale.metrics.judges import METRICS, Judge, Protocol, metric_names
from ddscale.metrics.lpips import LPIPS
from ddscale.metrics.results import Evaluation, Measure, Result, Skipped
from ddscale.recipes import Settings

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
PairedMetric = Callable[[Pixels, Pixels], Tensor]
# dB; equal pictures have infinitely many, which no mean survives.
_BEST_PSNR = 100.0


class ImageMetrics(Settings):
    """How generated pictures are judged."""

    batch_size: int = 16
    """Pictures judged at once; rounding in the networks may depend on it, so compare results at the same size."""
    n_way: int = 50
    """Classes to choose from in n-way top-k accuracy; the paper has 50."""
    top_k: int = 1
    """The right class must be among so many best of the n."""
    trials: int = 50
    """Draws of random classes per picture; the paper has 50."""
    gallery: int = 1000
    """Pictures to tell apart in two-way identification, at most; their AlexNet features take 1 MB each."""
    seed: int = 0
    """Of drawn classes, shuffled pairs, the gallery and bootstrap draws."""


def evaluate(
    generated: Pictures,
    reference: Pictures,
    shown: Integers,
    settings: ImageMetrics | None = None,
    *,
    folder: Path | None = None,
    device: torch.device | str = "cpu",
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Judge generated pictures by every metric whose weights are there.

    generated (G pictures), reference (N pictures): see `images.Pictures`; read block by block, so they may be
    larger than memory. shown (G,): which reference picture each generated one was made for. folder: weights,
    default DDSCALE_WEIGHTS. on_progress(done, total): called after each of this rank's blocks.

    In an initialised process group every rank calls it with the same arguments, judges its share, and returns
    the same result, bit for bit that of a single process: blocks are the same whoever judges them, and what is
    summed over them is summed without rounding.
    Raises ValueError on pictures that `images.as_float` refuses, and on `shown` out of range.
    """
    settings = settings or ImageMetrics()
    device = torch.device(device)
    shown = np.asarray(shown, np.int64)
    if shown.shape != (len(generated),) or min(len(generated), len(reference)) < 2:
        raise ValueError(
            f"{len(generated)} generated pictures, {len(reference)} reference pictures, `shown` of shape "
            f"{shown.shape}: give two or more of each, and in `shown` the reference of each generated one."
        )
    if shown.min() < 0 or shown.max() >= len(reference):
        raise ValueError(
            f"`shown` names pictures {shown.min()} to {shown.max()}, there are 0 to {len(reference) - 1}."
        )
    protocol = _protocol(len(reference), shown, settings)
    paired, judges, skipped = _load(reference[np.arange(1)], protocol, folder, device)

    my_reference = ranks.blocks(len(reference), settings.batch_size) if judges else []
    my_generated = ranks.blocks(len(generated), settings.batch_size)
    total = len(my_reference) + len(my_generated)
    for done, block in enumerate(my_reference):
        pictures = reference[block]
        for judge in judges:
            judge.see_reference(pictures, block)
        if on_progress is not None:
            on_progress(done + 1, total)
    for judge in judges:
        judge.finish_reference()
    values = {measure: np.zeros((2, len(generated))) for measure, _ in paired}
    for done, block in enumerate(my_generated, start=len(my_reference)):
        pictures = generated[block]
        for row, target in enumerate((shown[block], protocol.wrong[shown[block]])):
            against = reference[target]
            for measure, metric in paired:
                values[measure][row, block] = metric(pictures, against).cpu().numpy()
        for judge in judges:
            judge.see_generated(pictures, block)
        if on_progress is not None:
            on_progress(done + 1, total)

    evaluation = Evaluation(len(reference), len(generated), skipped=skipped)
    for measure, rows in values.items():
        _conclude(
            evaluation, measure, ranks.sum_of_parts(rows, device), np.ones(len(generated), bool), protocol
        )
    for judge in judges:
        for of_picture in judge.of_pictures:
            rows = ranks.sum_of_parts(of_picture.values, device)
            _conclude(evaluation, of_picture.measure, rows, of_picture.judged[shown], protocol)
        evaluation.results += [of_the_set.result() for of_the_set in judge.of_the_set]
    return evaluation


def _protocol(references: int, shown: Integers, settings: ImageMetrics) -> Protocol:
    rng = np.random.default_rng(settings.seed)
    gallery = np.sort(rng.permutation(references)[: max(settings.gallery, 2)])
    wrong = np.empty(references, np.int64)
    wrong[gallery] = gallery[shuffled_pairs(len(gallery), settings.seed)]
    rest = np.setdiff1d(np.arange(references), gallery)
    wrong[rest] = np.resize(gallery, len(rest))
    return Protocol(shown, wrong, gallery, settings.n_way, settings.top_k, settings.trials, settings.seed)


_PAIRED: dict[Measure, Callable[[Path | None], PairedMetric]] = {
    Measure("mse", "lower"): lambda _: pixels.mse,
    Measure("psnr", "higher", note=f"equal pictures count as {_BEST_PSNR:g} dB"): lambda _: (
        lambda a, b: pixels.psnr(a, b).clamp_max(_BEST_PSNR)
    ),
    Measure("ssim", "higher"): lambda _: pixels.ssim,
    Measure("pixcorr", "higher"): lambda _: pixels.pixcorr,
    Measure("lpips_alex", "lower"): lambda folder: LPIPS("alex", folder),
    Measure("lpips_vgg", "lower"): lambda folder: LPIPS("vgg", folder),
}


def _load(
    example: Pixels, protocol: Protocol, folder: Path | None, device: torch.device
) -> tuple[list[tuple[Measure, PairedMetric]], list[Judge], list[Skipped]]:
    """Metrics that can run, each tried on one reference picture, and those that cannot, with the reason."""
    example = as_float(example)
    paired: dict[str, tuple[Measure, PairedMetric]] = {}
    judges: dict[Name, Judge] = {}
    reasons: dict[str, str] = {}
    for measure, load in _PAIRED.items():
        try:
            metric = load(folder)
            if isinstance(metric, torch.nn.Module):
                metric.to(device)
            metric(example, example)
            paired[measure.name] = measure, metric
        except (OSError, ValueError) as error:
            reasons[measure.name] = str(error)
    for network in METRICS:
        try:
            judges[network] = Judge(load_extractor(network, folder, device), protocol)
        except (OSError, ValueError) as error:
            reasons |= dict.fromkeys(metric_names(network, protocol), str(error))
    reasons = ranks.union(reasons)
    names = {network: metric_names(network, protocol) for network in METRICS}
    kept = [judge for network, judge in judges.items() if not reasons.keys() & set(names[network])]
    skipped = [Skipped(name, reason) for name, reason in reasons.items()]
    return [entry for name, entry in paired.items() if name not in reasons], kept, skipped


def _conclude(
    evaluation: Evaluation, measure: Measure, rows: Floats, judged: NDArray[np.bool_], protocol: Protocol
) -> None:
    """Add a metric of single pictures: rows (2, G) against the picture shown and against the wrong one."""
    groups = protocol.shown[judged]
    right, wrong = (
        estimate(row[judged], groups, seed=protocol.seed, proportion=measure.proportion) for row in rows
    )
    if measure.proportion:
        evaluation.proportions.add(measure.name)
    evaluation.per_picture[measure.name] = np.where(judged, rows[0], np.nan)
    evaluation.results.append(
        Result(measure.name, right.value, measure.better, right, measure.chance, wrong, measure.note)
    )
