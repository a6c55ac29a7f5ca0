"""RUN/report.html: one self-contained file that says what a run learned, on what, how fast, and how well."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from ddscale import __version__, recipes
from ddscale.metrics.reconstruction import ReconstructionScore
from ddscale.reporting import exports, finetuned, plots
from ddscale.reporting.reconstructions import MODEL, HeldOut, reconstruct_held_out
from ddscale.reporting.tables import channel_range, duration
from ddscale.store import describe
from ddscale.store.layout import written_whole
from ddscale.training.settings import PretrainRecipe, TrainingSettings

if TYPE_CHECKING:
    from ddscale.diffusion.settings import FinetuneRecipe


def write_report(
    run: str | os.PathLike[str],
    beside: Sequence[str | os.PathLike[str]] = (),
    benchmark: str | os.PathLike[str] | None = None,
) -> Path:
    """Write the report of a run's folder, of whichever stage it is, and return its path.

    beside: fine-tuned runs to compare a fine-tuned one with; benchmark: latencies of its export, as
    export/benchmark.py writes them. A pretraining run's reconstructions are computed here,
    from RUN/mae and the run's stores; what has not been finished or evaluated yet is said to be missing.
    Raises FileNotFoundError when the folder holds no run.
    """
    folder = Path(run)
    if not (folder / "metrics.jsonl").is_file() or not (folder / "recipe.yaml").is_file():
        raise FileNotFoundError(
            f"{folder} is not a run's folder: it has no recipe.yaml and metrics.jsonl. Give the `run:` of a recipe "
            "that one of the scripts in launchers/ has trained."
        )
    rows = _json_lines(folder / "metrics.jsonl")
    starts = json.loads((folder / "environment.json").read_text(encoding="utf-8"))["starts"]
    path = folder / "recipe.yaml"
    stage = recipes.stage_of(recipes.read(path), path)
    recipe: PretrainRecipe | FinetuneRecipe
    if stage == "finetune":
        from ddscale.diffusion.settings import FinetuneRecipe

        recipe = recipes.load(path, FinetuneRecipe)
        own = finetuned.results(folder, recipe, rows, [Path(other) for other in beside])
        own |= exports.shown(folder, benchmark)
        facts = finetuned.facts(recipe, starts[-1])
    else:
        recipe = recipes.load(path, PretrainRecipe)
        own = _pretrained(folder, recipe, rows)
        facts = _facts(recipe, rows, starts[-1])
    stores = [describe(store) for store in recipe.data.stores]
    shared_plots = {
        "lr": plots.learning_rate_and_gradient(rows),
        "throughput": plots.throughput(rows),
        "hours": plots.hours_by_dataset(_hours(stores)),
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ddscale", "reporting"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template(f"{stage}.html").render(
        **{**own, "plots": {**shared_plots, **own["plots"]}},
        subtitle=f"written by ddscale {__version__}",
        simulated=_simulated(stores),
        facts=[*_progress(recipe, rows), *facts, *_machine(recipe, starts[-1])],
        composition=_composition(stores),
        rejected=_rejected(stores),
        speed=_speed(rows, starts[-1]),
        faults=[json.dumps(fault, ensure_ascii=False) for fault in _json_lines(folder / "faults.jsonl")],
        recipe=path.read_text(encoding="utf-8"),
        environment=json.dumps(starts, indent=2, ensure_ascii=False),
    )
    report = folder / "report.html"
    with written_whole(report) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return report


def _pretrained(folder: Path, recipe: PretrainRecipe, rows: list[dict[str, Any]]) -> dict[str, Any]:
    held_out = None
    if (folder / "mae").is_dir() and recipe.validation.every:
        held_out = reconstruct_held_out(folder, recipe, recipe.validation.windows)
    several = any(len(row.get("loss_by_dataset", {})) > 1 for row in rows)
    return {
        "title": f"Pretraining run {folder}",
        "plots": {
            "loss": plots.loss_curve(rows),
            "by_dataset": plots.loss_by_dataset(rows) if several else None,
        },
        "scores": _score_rows(held_out),
        "scores_note": _scores_note(held_out, recipe),
        "reconstructions": _pictures(held_out),
    }


def _json_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _progress(recipe: TrainingSettings, rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    last = rows[-1] if rows else {}
    return [
        ("steps", f"{last.get('step', 0):,} of {recipe.steps:,}"),
        ("EEG seen", f"{last.get('eeg_hours_seen', 0):,.2f} h in {last.get('samples_seen', 0):,} windows"),
    ]


def _machine(recipe: TrainingSettings, start: dict[str, Any]) -> list[tuple[str, str]]:
    ranks = f"{start['world_size']} ({start['device']}), ZeRO {recipe.zero_stage}, {recipe.precision}"
    return [("ranks", ranks)]


def _facts(
    recipe: PretrainRecipe, rows: list[dict[str, Any]], start: dict[str, Any]
) -> list[tuple[str, str]]:
    model = recipe.model
    facts = [
        ("model", f"{start['parameters']:,} parameters ({model.preset or 'sizes in the recipe'})"),
        ("hidden from the encoder", f"{model.n_masked} of {model.n_tokens} tokens of {model.patch} samples"),
        ("normalisation", json.dumps(recipe.data.normalisation.model_dump(mode="json"))),
    ]
    validated = [row for row in rows if "val_loss" in row]
    if validated:
        final = validated[-1]
        facts.append(
            (
                "validation loss",
                f"{final['val_loss']:.4f} (linear interpolation {final['val_loss_interpolation']:.4f}, "
                f"channel mean {final['val_loss_channel_mean']:.4f})",
            )
        )
    return facts


def _hours(stores: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    return {
        name: {"hours": entry["hours"], "hours_rejected": sum(entry["rejected_hours"].values())}
        for name, entry in _datasets(stores)
    }


def _datasets(stores: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    return [(name, entry) for store in stores for name, entry in store["datasets"].items()]


def _simulated(stores: list[dict[str, Any]]) -> list[str]:
    """Data sets whose provenance says so, as the simulated source's always does."""
    return [name for name, entry in _datasets(stores) if (entry["url"] or "").startswith("simulated")]


def _composition(stores: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "hours": entry["hours"],
            "recordings": entry["recordings"],
            "subjects": entry["subjects"],
            "channels": channel_range(entry["hours_by_channels"]),
            "splits": " / ".join(
                f"{entry['hours_by_split'].get(s, 0):.3g}" for s in ("train", "val", "test")
            ),
            "licence": entry["licence"] or "not stated",
            "provenance": entry["url"] or "not stated",
        }
        for name, entry in _datasets(stores)
    ]


def _rejected(stores: list[dict[str, Any]]) -> list[tuple[str, float]]:
    hours: dict[str, float] = {}
    for _, entry in _datasets(stores):
        for reason, value in entry["rejected_hours"].items():
            hours[reason] = hours.get(reason, 0.0) + value
    return sorted(hours.items(), key=lambda item: -item[1])


def _score_rows(held_out: HeldOut | None) -> dict[str, list[dict[str, Any]]]:
    if held_out is None:
        return {}
    return {
        dataset: [_score_row(name, score) for name, score in scores.items()]
        for dataset, scores in held_out.scores.items()
    }


def _score_row(name: str, score: ReconstructionScore) -> dict[str, Any]:
    return {
        "name": name,
        "model": name == MODEL,
        "windows": score.windows,
        "correlation": score.correlation,
        "r_squared": score.r_squared,
        "mean_squared_error": score.mean_squared_error,
    }


def _scores_note(held_out: HeldOut | None, recipe: PretrainRecipe) -> str:
    if held_out is None:
        return (
            "None yet: the run has not finished, so it has no model to reconstruct with."
            if recipe.validation.every
            else "None: the recipe validates on nothing (validation.every is 0)."
        )
    return (
        f"{held_out.windows} windows of subjects that were not trained on. Masked samples only, each recording's own "
        "channels. R² is 0 for whoever knows each channel's mean over the masked samples, 1 for a perfect prediction."
    )


def _pictures(held_out: HeldOut | None) -> list[dict[str, str]]:
    if held_out is None:
        return []
    return [
        {
            "title": f"{rank} of {held_out.windows} windows: {window.dataset}, {window.original_TC.shape[1]} channels, "
            f"mean squared error {window.mean_squared_error:.3f}",
            "image": plots.reconstruction(window),
        }
        for rank, window in held_out.examples
    ]


def _speed(rows: list[dict[str, Any]], start: dict[str, Any]) -> list[tuple[str, str]]:
    if not rows:
        return []
    rates = sorted(row["samples_per_s"] for row in rows)
    waits = sorted(row["data_wait_fraction"] for row in rows)
    median = len(rows) // 2
    speed = [
        ("windows / s, median", f"{rates[median]:,.1f}"),
        ("EEG hours / s, median", f"{sorted(row['eeg_hours_per_s'] for row in rows)[median]:.3f}"),
        ("waiting for data, median", f"{waits[median]:.1%}"),
        ("training time, about", duration(rows[-1]["samples_seen"] / rates[median])),
    ]
    utilisation = sorted(row["mfu"] for row in rows if row.get("mfu") is not None)
    if utilisation:
        speed.append(
            (
                "model FLOPs utilisation, median",
                f"{utilisation[len(utilisation) // 2]:.1%} of {start['peak_flops_per_rank'] / 1e12:.3g} TFLOP/s a rank "
                f"({start['peak_flops_source']})",
            )
        )
    return speed
