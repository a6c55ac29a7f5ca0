"""What the evaluating commands print: reconstruction by band, probes beside their controls, grids of variants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from ddscale.reporting.tables import wide_console


def reconstruction_table(found: Mapping[str, Any], by_channel: bool = False) -> None:
    """What `ddscale.evaluation.reconstruction.reconstruct` found: a table per data set, by band or by channel."""
    screen = wide_console()
    screen.print(
        f"{found['run']}: {found['windows']} {found['split']} windows of {found['window_s']:g} s, "
        f"{found['mask_ratio']:.0%} of the tokens ({found['patch_samples']} samples each) hidden",
        markup=False,
    )
    for dataset, entry in found["datasets"].items():
        people = "1 person" if entry["subjects"] == 1 else f"{entry['subjects']} people"
        table = Table(
            title=f"{dataset}: {entry['windows']} windows of {people}",
            title_justify="left",
            box=None,
            pad_edge=False,
        )
        table.add_column("channel" if by_channel else "band")
        table.add_column("")
        for heading in ("correlation", "R²", "MSE", "correlation, model's lead"):
            table.add_column(heading, justify="right")
        for name, methods in entry["channels" if by_channel else "bands"].items():
            edges = found["bands_hz"].get(name)
            label = f"{name} {edges[0]:g}-{edges[1]:g} Hz" if edges and not by_channel else name
            for method, of in methods.items():
                lead = _with_interval(of["models_lead"]["correlation"]) if "models_lead" in of else ""
                measures = [_with_interval(of["correlation"]), _with_interval(of["r_squared"])]
                table.add_row(label, method, *measures, _figure(of["mse"]["value"]), lead)
                label = ""
        screen.print(table)
        screen.print(f"intervals: {entry['intervals']}", markup=False, soft_wrap=True)
    for note in found["notes"]:
        screen.print(f"note: {note}", markup=False, soft_wrap=True)


def _with_interval(estimate: Mapping[str, float | None]) -> str:
    """For rich, which takes an opening bracket for a style."""
    return with_interval(estimate).replace("[", "\\[")


def with_interval(estimate: Mapping[str, float | None], signed: bool = False) -> str:
    """A value with its interval in brackets, where it has one."""
    shown = _figure(estimate["value"], signed)
    if estimate["low"] is None:
        return shown
    return f"{shown} [{_figure(estimate['low'], signed)}, {_figure(estimate['high'], signed)}]"


def _figure(value: float | None, signed: bool = False) -> str:
    if value is None:
        return "none"
    sign = "+" if signed else ""
    return f"{value:{sign}.2f}" if abs(value) < 99.5 else f"{value:{sign}.3g}"


def probe_table(found: Mapping[str, Any]) -> None:
    """What `ddscale.evaluation.probing.probe` found: a row per method, a column per held-out subject."""
    screen = wide_console()
    classes = ", ".join(f"{name} {count}" for name, count in found["classes"].items())
    screen.print(
        f"{found['store']}: {found['trials']} trials of {found['trial_s']:g} s, {len(found['subjects'])} subjects, "
        f"{len(found['channels'])} channels; {classes}",
        markup=False,
        soft_wrap=True,
    )
    table = Table(
        title="accuracy, %, each subject left out in turn", title_justify="left", box=None, pad_edge=False
    )
    table.add_column("method", overflow="fold")
    for heading in ("all [95 %]", "shuffled labels", "over seeds"):
        table.add_column(heading, justify="right")
    for subject in found["subjects"]:
        table.add_column(subject["short"], justify="right")
    chance = found["chance"]
    for name in ("uniform", "majority"):
        table.add_row(f"chance, {name}", _percent(chance[name]), *[""] * (2 + len(found["subjects"])))
    for method in found["methods"]:
        seeds = method["by_repetition"]
        table.add_row(
            method["name"],
            escape(_percents(method["accuracy"])),
            escape(_percents(method["shuffled"])),
            f"{_percent(min(seeds))} to {_percent(max(seeds))}" if len(seeds) > 1 else "",
            *(_percent(one["accuracy"]) for one in method["by_subject"]),
        )
    screen.print(table)
    for gain in found["pretraining_gains"]:
        screen.print(
            f"{gain['method']}: {_percents(gain['accuracy'], signed=True)} points over {gain['over']}",
            markup=False,
            soft_wrap=True,
        )
    for name, note in {
        method["name"].partition(",")[0]: _note(method) for method in found["methods"]
    }.items():
        if note:
            screen.print(f"{name}: {note}", markup=False, soft_wrap=True)
    for subject in found["subjects"]:
        recordings = ", ".join(subject["recordings"])
        screen.print(
            f"{subject['short']}: {subject['trials']} trials of {recordings}", markup=False, soft_wrap=True
        )
    for note in found["notes"]:
        screen.print(f"note: {note}", markup=False, soft_wrap=True)


def _note(method: Mapping[str, Any]) -> str:
    return str(method["pretraining"]["note"] if method["pretraining"] else method["note"])


def _percents(estimate: Mapping[str, float | None], signed: bool = False) -> str:
    shown = [_percent(estimate[key], signed) for key in ("value", "low", "high")]
    return shown[0] if estimate["low"] is None else f"{shown[0]} [{shown[1]}, {shown[2]}]"


def _percent(value: float | None, signed: bool = False) -> str:
    if value is None:
        return "none"
    return f"{100 * value:+.1f}" if signed else f"{100 * value:.1f}"


def grid_table(compared: Mapping[str, Any]) -> None:
    """What `ddscale.evaluation.grid.run_grid` found: a row per variant; with seeds, mean ± their standard deviation."""
    screen = wide_console()
    seeds = compared["seeds"]
    heading = f"{compared['grid']}: variants of {compared['base']}"
    if seeds:
        heading += f", mean ± standard deviation over seeds {', '.join(map(str, seeds))}"
    table = Table(title=heading, title_justify="left", box=None, pad_edge=False)
    table.add_column("variant", overflow="fold")
    table.add_column("runs finished", justify="right")
    for column in compared["metrics"]:
        table.add_column(column, justify="right")
    for name, columns in compared["variants"].items():
        of_variant = [run for run in compared["runs"] if run["variant"] == name]
        finished = sum(run["state"] in ("finished", "finished before") for run in of_variant)
        table.add_row(name, f"{finished}/{len(of_variant)}", *(_spread(found) for found in columns.values()))
    screen.print(table)
    for run in compared["runs"]:
        if run["detail"]:
            seed = "" if run["seed"] is None else f", seed {run['seed']}"
            screen.print(
                f"{run['state']}: {run['variant']}{seed}: {run['detail']}", markup=False, soft_wrap=True
            )
    if not seeds:
        screen.print(
            "note: one seed each, so how far the seed alone moves these numbers is not known: give the grid `seeds`.",
            markup=False,
            soft_wrap=True,
        )


def _spread(found: Mapping[str, Any]) -> str:
    if found["mean"] is None:
        return "none"
    shown = f"{found['mean']:.4g}"
    if found["sd"] is not None:
        shown += f" ± {found['sd']:.2g}"
    return shown if found["n"] == found["of"] else f"{shown} ({found['n']} of {found['of']})"


def picture_tables(found: Mapping[str, Any]) -> None:
    """What `ddscale.evaluation.pictures.evaluate_run` found: a row per metric, a column per condition."""
    screen = wide_console()
    kind = "simulated EEG, " if found["simulated"] else ""
    screen.print(
        f"{found['run']}: {kind}{found['trials']} {found['split']} trials of {found['pictures_shown']} pictures, "
        f"{found['samples_per_trial']} drawn for each",
        markup=False,
    )
    if found["earlier_results_moved_to"]:
        screen.print(
            f"earlier results, of other settings, weights or another store, are now in "
            f"{found['earlier_results_moved_to']}",
            markup=False,
            soft_wrap=True,
        )
    for warning in found["warnings"]:
        screen.print(f"warning: {warning}", markup=False)
    conditions = found["conditions"]
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in picture_columns(found):
        table.add_column(name.replace("_", " "), justify="right")
    table.add_column("chance", justify="right")
    for label, values, chance in picture_rows(found):
        table.add_row(label, *(value.replace("[", "\\[") for value in values), chance)
    screen.print(table)
    judge = found["class_judge"]
    if "on_real_held_out_pictures" in judge:
        known = with_interval(judge["on_real_held_out_pictures"])
        screen.print(
            f"class judged by a {judge['what']}; right for real held-out pictures: {known}", markup=False
        )
    retrieval = found["retrieval"]
    for how, of in (("single trials", retrieval), ("averaged by picture", retrieval.get("averaged", {}))):
        for k in ("top_1", "top_5"):
            if k in of:
                screen.print(
                    f"EEG to image, {how}, {k.replace('_', '-')} of {retrieval['gallery']}: "
                    f"{with_interval(of[k])}, chance {_figure(of[k]['chance'])}",
                    markup=False,
                )
    for name, reason in found["skipped_conditions"].items():
        screen.print(f"not drawn: {name}: {reason}", markup=False, style="dim")
    of_metrics: dict[str, str] = next(iter(conditions.values()))["skipped"]
    if of_metrics:
        screen.print(
            f"not measured: {', '.join(of_metrics)}; the results say which file each needs, and DDSCALE_WEIGHTS names "
            "the folder where they are looked for",
            markup=False,
            style="dim",
        )


LEAD = "EEG − shuffled EEG"


def picture_columns(found: Mapping[str, Any]) -> list[str]:
    """What the values of `picture_rows` are: the conditions, and the lead over shuffled EEG where both were drawn."""
    return [*found["conditions"], *([LEAD] if "shuffled_eeg" in found.get("eeg_minus", {}) else [])]


def picture_rows(found: Mapping[str, Any]) -> list[tuple[str, list[str], str]]:
    """(metric, its value in each of `picture_columns`, chance) for tables and reports."""
    conditions = list(found["conditions"].values())
    leads = found.get("eeg_minus", {}).get("shuffled_eeg")

    def lead(metric: str) -> list[str]:
        if leads is None:
            return []
        return [with_interval(leads[metric], signed=True) if metric in leads else ""]

    rows = []
    if all("class_accuracy" in of for of in conditions):
        values = [with_interval(of["class_accuracy"]) for of in conditions]
        rows.append(("right class", values + lead("class_accuracy"), _figure(found["class_judge"]["chance"])))
    for name, first in conditions[0]["metrics"].items():
        results = [of["metrics"].get(name) for of in conditions]
        values = [
            ""
            if result is None
            else with_interval(result["estimate"] or {"value": result["value"], "low": None})
            for result in results
        ]
        arrow = {"higher": "↑", "lower": "↓"}[first["better"]]
        chance = first["chance"]
        rows.append((f"{name} {arrow}", values + lead(name), "" if chance is None else _figure(chance)))
    return rows
