"""The part of a report that belongs to a fine-tuned run: pictures beside those shown, metrics beside controls."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddscale.reporting import plots
from ddscale.reporting.evaluations import picture_columns, picture_rows, with_interval

if TYPE_CHECKING:
    from ddscale.diffusion.settings import FinetuneRecipe

_COLUMNS = ("run", "schedule", "trained in the U-Net", "encoder", "aligned with", "right class", "with shuffled EEG",
            "EEG to image, top-1", "SSIM", "held-out noise error, with / without EEG")  # fmt: skip


def facts(recipe: FinetuneRecipe, start: dict[str, Any]) -> list[tuple[str, str]]:
    """What the report's first table says of the model and its training."""
    objective = recipe.objective
    return [
        ("parameters", f"{start['parameters']:,}, of which {start['trained_parameters']:,} are trained"),
        ("Stable Diffusion", f"{recipe.stable_diffusion}{_toy(Path(recipe.stable_diffusion))}"),
        (
            "encoder",
            f"{recipe.encoder}{' (its sizes only, weights drawn afresh)' if recipe.from_scratch else ''}",
        ),
        ("trained in the U-Net", recipe.unet.trained),
        ("schedule", objective.schedule),
        ("alignment", f"{objective.alignment}, with CLIP features of the {objective.alignment_target}"),
        ("averaged weights", f"memory {recipe.ema}" if recipe.ema else "none: those of the last step"),
    ]


def _protocol(found: dict[str, Any] | None) -> str:
    """What has to be equal for two evaluations to be comparable."""
    if found is None:
        return "none"
    settings = {name: value for name, value in found["settings"].items() if name != "controls"}
    return json.dumps([found["store"], found["trials"], settings], sort_keys=True)


def _toy(folder: Path) -> str:
    """Says so where the Stable Diffusion is a toy."""
    description = folder / "toy.json"
    return f": {json.loads(description.read_text(encoding='utf-8'))['what']}" if description.is_file() else ""


def results(
    folder: Path, recipe: FinetuneRecipe, rows: list[dict[str, Any]], beside: Sequence[Path]
) -> dict[str, Any]:
    """What finetune.html shows."""
    from ddscale.evaluation.conditions import MEANING
    from ddscale.evaluation.pictures import read_results

    found = read_results(folder)
    shown: dict[str, Any] = {"grids": [], "conditions": [], "metrics": [], "meanings": [], "judge": "",
                             "retrieval": "", "not_drawn": [], "not_measured": []}  # fmt: skip
    if found is not None:
        conditions = list(found["conditions"])
        shown = {
            "grids": [_grid(folder, name, file) for name, file in found["examples"]["grids"].items()],
            "conditions": picture_columns(found),
            "metrics": picture_rows(found),
            "meanings": [(name, MEANING[name]) for name in conditions],  # type: ignore[index]
            "judge": _judge(found["class_judge"]),
            "retrieval": _retrieval(found["retrieval"]),
            "not_drawn": list(found["skipped_conditions"].items()),
            "not_measured": list(found["conditions"]["eeg"]["skipped"]),
        }
    comparison = None
    if beside:
        same = {_protocol(read_results(run)) for run in (folder, *beside)}
        comparison = {
            "columns": _COLUMNS,
            "rows": [_row(run) for run in (folder, *beside)],
            "note": "Same trials, same starting noise, same judge."
            if len(same) == 1
            else "The runs were not evaluated alike (trials, split, store or sampler differ): compare with care.",
        }
    return {
        **shown,
        "title": f"Fine-tuning run {folder}",
        "run": str(folder),
        "evaluation": found,
        "comparison": comparison,
        "plots": {"loss": plots.noise_curve(rows)},
    }


def _grid(folder: Path, name: str, file: str) -> dict[str, str]:
    from ddscale.evaluation.pictures import FOLDER

    data = base64.b64encode((folder / FOLDER / file).read_bytes()).decode()
    return {"title": name, "image": f"data:image/png;base64,{data}"}


def _judge(judge: dict[str, Any]) -> str:
    if "skipped" in judge:
        return f"The class was not judged: {judge['skipped']}"
    real = judge["on_real_held_out_pictures"]
    return (
        f"The class is judged by a {judge['what']}. It learned from {judge['learned_from']:,} pictures of "
        f"{judge['classes']} classes and is right for {with_interval(real)} of {real['judged']} real held-out ones."
    )


def _retrieval(found: dict[str, Any]) -> str:
    singly = _tops(found)
    if not singly:
        return ""
    text = (
        f"EEG to image, by the alignment head's features among {found['gallery']} pictures of the split: {singly}; "
        f"median rank {found['median_rank']:g}."
    )
    if "averaged" in found:
        averaged = found["averaged"]
        text += f" Averaged over {averaged['trials_per_picture']:.1f} trials of a picture: {_tops(averaged)}."
    return text


def _tops(found: dict[str, Any]) -> str:
    return ", ".join(
        f"{k.replace('_', '-')} {with_interval(found[k])} (chance {found[k]['chance']:.3f})"
        for k in ("top_1", "top_5")
        if k in found
    )


def _row(run: Path) -> list[str]:
    from ddscale import recipes
    from ddscale.diffusion.settings import FinetuneRecipe
    from ddscale.evaluation.pictures import read_results

    recipe, found = recipes.load(run / "recipe.yaml", FinetuneRecipe), read_results(run)
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    last: dict[str, Any] = next((row for row in map(json.loads, reversed(lines)) if "val_noise" in row), {})
    noise = f"{last['val_noise']:.3f} / {last['val_noise_without_eeg']:.3f}" if last else "none"
    setup = [
        run.name,
        recipe.objective.schedule,
        recipe.unet.trained,
        "from scratch" if recipe.from_scratch else "pretrained",
        recipe.objective.alignment_target if recipe.objective.alignment != "none" else "nothing",
    ]
    if found is None:
        return [*setup, *["not evaluated"] * 4, noise]
    conditions = found["conditions"]
    classes = [
        with_interval(conditions[given]["class_accuracy"])
        if "class_accuracy" in conditions.get(given, {})
        else "none"
        for given in ("eeg", "shuffled_eeg")
    ]
    top = found["retrieval"].get("top_1")
    ssim = conditions["eeg"]["metrics"]["ssim"]["estimate"]
    return [*setup, *classes, with_interval(top) if top else "none", with_interval(ssim), noise]
