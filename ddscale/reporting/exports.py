"""The part of a fine-tuned run's report that belongs to its exports: what they draw, how well and how fast."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddscale.reporting.evaluations import with_interval

_COLUMNS = ("drawn by", "sampler", "steps", "guidance", "decoder", "right class", "with shuffled EEG", "LPIPS", "SSIM",
            "seconds a picture")  # fmt: skip


def shown(run: Path, benchmark: str | os.PathLike[str] | None) -> dict[str, Any]:
    """What finetune.html shows under "Exported".

    Raises ValueError or FileNotFoundError for a benchmark that is none.
    """
    from ddscale.evaluation.pictures import read_exported_results, read_results

    evaluations = read_exported_results(run)
    own = read_results(run)
    quality = None
    if evaluations:
        quality = {
            "columns": _COLUMNS,
            "rows": [_row(found) for found in ([own] if own else []) + evaluations],
        }
    return {"exported": {"same": _same(run), "quality": quality, "latency": _latency(benchmark)}}


def _same(run: Path) -> str:
    """How far the runtime without torch was from the run's own pictures, when they were compared."""
    from ddscale.evaluation.generation import COMPARISON

    path = run / "generated" / COMPARISON
    if not path.is_file():
        return ""
    found = json.loads(path.read_text(encoding="utf-8"))
    return (
        f"The runtime without torch, from {found['exported']}, draws the same {found['pictures']} pictures: pixels "
        f"differ by at most {found['largest_pixel_difference']} of 255 ({found['tolerance']} allowed), "
        f"{found['mean_pixel_difference']:.4f} on average."
    )


def _row(found: Mapping[str, Any]) -> list[str]:
    how, exported, conditions = found["settings"]["generation"], found.get("exported"), found["conditions"]
    by = "PyTorch" if exported is None else f"{exported['provider']}, {exported['precision']}"
    classes = [
        with_interval(conditions[given]["class_accuracy"])
        if "class_accuracy" in conditions.get(given, {})
        else "not judged"
        for given in ("eeg", "shuffled_eeg")
    ]
    metrics = conditions["eeg"]["metrics"]
    judged = [
        with_interval(metrics[name]["estimate"]) if name in metrics else "not measured"
        for name in ("lpips_alex", "ssim")
    ]
    return [
        by,
        how["scheduler"],
        str(how["steps"]),
        f"{how['guidance_scale']:g}" if how["guidance_scale"] > 1 else "none",
        "full" if exported is None else exported["decoder"],
        *classes,
        *judged,
        "" if exported is None else f"{exported['seconds_per_picture']:.3g}",
    ]


def _latency(benchmark: str | os.PathLike[str] | None) -> dict[str, Any] | None:
    if benchmark is None:
        return None
    from ddscale.deploy.benchmark.measuring import Result
    from ddscale.deploy.benchmark.showing import COLUMNS, as_rows, conclusions, plot, title

    result, picture = Result.load(benchmark), io.BytesIO()
    plot(result, picture)
    return {
        "title": title(result),
        "image": f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}",
        "columns": COLUMNS,
        "rows": as_rows(result),
        "notes": conclusions(result),
    }
