"""The variants of a grid side by side: what each measured, and how far seeds alone move it."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddscale.evaluation.grid_recipe import GridRecipe
from ddscale.evaluation.results import write_json
from ddscale.store.layout import write_bytes

if TYPE_CHECKING:
    from ddscale.evaluation.grid import Run


def last_rows(run: Path) -> dict[str, Any]:
    """The newest value of every key of a run's metrics.jsonl; empty when there are no rows."""
    newest: dict[str, Any] = {}
    path = run / "metrics.jsonl"
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                newest.update(json.loads(line))
            except ValueError:  # a last line that a crash cut short
                continue
    return newest


def measure(run: Path, metrics: Mapping[str, str]) -> tuple[dict[str, float | None], list[str]]:
    """The metrics of one run, by column, and why those are missing that are.

    metrics: column -> a key of metrics.jsonl, or FILE#/KEY/KEY with FILE below the run's folder.
    """
    newest = last_rows(run)
    values: dict[str, float | None] = {}
    missing = []
    for column, place in metrics.items():
        file, pointed, keys = place.partition("#")
        try:
            found = _follow(run / file, keys) if pointed else newest[place]
        except KeyError as error:
            found, known = None, ", ".join(sorted(newest)) or "nothing"
            where = f"{file} has no {error.args[0]}" if pointed else f"metrics.jsonl has {known}"
            missing.append(f"no {column}: {where}")
        except (OSError, ValueError) as error:
            found = None
            missing.append(f"no {column}: {error}")
        if isinstance(found, bool) or not isinstance(found, int | float | None):
            missing.append(f"no {column}: {place} is no number but {type(found).__name__}")
            found = None
        values[column] = found
    return values, missing


def _follow(path: Path, keys: str) -> Any:
    """A value in a JSON file; raises KeyError with the key that is not there and those that are."""
    value = json.loads(path.read_text(encoding="utf-8"))
    for part in keys.removeprefix("/").split("/"):
        key = part.replace("~1", "/").replace("~0", "~")  # as in a JSON Pointer (RFC 6901)
        if isinstance(value, list) and key.isdigit() and int(key) < len(value):
            value = value[int(key)]
        elif isinstance(value, dict) and key in value:
            value = value[key]
        else:
            there = ", ".join(value) if isinstance(value, dict) else type(value).__name__
            raise KeyError(f"{key!r} (there is: {there})")
    return value


def write_comparison(recipe: GridRecipe, runs: Sequence[Run]) -> dict[str, Any]:
    """Write comparison.json and comparison.csv into the grid's folder; what the JSON holds."""
    compared = compare(recipe, runs)
    folder = Path(recipe.out)
    write_json(folder / "comparison.json", compared)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    columns = list(recipe.metrics)
    table.writerow(["variant", "seed", "state", *columns])
    for entry in compared["runs"]:
        measured = [entry["metrics"].get(column) for column in columns]
        table.writerow([entry["variant"], entry["seed"], entry["state"], *measured])
    write_bytes(folder / "comparison.csv", text.getvalue().encode())
    return compared


def compare(recipe: GridRecipe, runs: Sequence[Run]) -> dict[str, Any]:
    """Each run, and over the seeds of each variant mean, standard deviation and number; JSON-able."""
    variants: dict[str, list[Run]] = {}
    for run in runs:
        variants.setdefault(run.variant.name, []).append(run)
    return {
        "grid": recipe.out,
        "base": recipe.base,
        "overrides": recipe.overrides,
        "metrics": recipe.metrics,
        "seeds": recipe.seeds,
        "ok": all(run.ok for run in runs),
        "runs": [
            {
                "variant": run.variant.name,
                "seed": run.variant.seed,
                "run": str(run.folder),
                "overrides": list(run.variant.overrides),
                "state": run.state,
                "detail": run.detail,
                "metrics": run.metrics,
            }
            for run in runs
        ],
        "variants": {
            name: {column: _over_seeds(column, of_variant) for column in recipe.metrics}
            for name, of_variant in variants.items()
        },
    }


def _over_seeds(column: str, runs: Sequence[Run]) -> dict[str, float | int | None]:
    """sd: over seeds, None with fewer than two; n: runs that have the metric, of how many."""
    values = [value for run in runs if (value := run.metrics.get(column)) is not None]
    return {
        "mean": statistics.fmean(values) if values else None,
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "n": len(values),
        "of": len(runs),
    }
