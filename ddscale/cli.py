"""`ddscale ...`: every job that the deepspeed launcher does not start.

Commands import what they need when they run, so `ddscale --help` does not wait for torch.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="EEG recordings to stores, stores to pretrained encoders. Training is started by the deepspeed "
    "launcher: deepspeed launchers/pretrain.py RECIPE",
)

GPU_NAMES = (
    "a100, h100, h200, b200, v100, gb200, h100-pcie, h100-nvl, a40, a10g, l40s, rtx3090, rtx4090, rtx5090, rtxa6000, "
    "rtx6000ada"
)
STAGES = ("ingest", "pretrain", "finetune", "probe", "grid", "export")

RecipeArgument = Annotated[Path, typer.Argument(help="a recipe, such as recipes/ingest/demo.yaml")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY.PATH=VALUE", help="override one setting; repeatable")
]
StoreArgument = Annotated[str, typer.Argument(help="a store's folder; to inspect it, also a URL")]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON instead of a table")]


@app.command()
def ingest(recipe: RecipeArgument, set_: SetOption = None, json_: JsonOption = False) -> None:
    """Build or continue a store from recordings."""
    from ddscale import recipes
    from ddscale.ingest import IngestRecipe, run
    from ddscale.reporting.progress import Progress
    from ddscale.reporting.tables import ingest_summary

    settings = recipes.load(recipe, IngestRecipe, set_ or ())
    try:
        with Progress("recordings") as progress:
            summary = run(settings, on_progress=progress.update)
    except KeyboardInterrupt:
        print("stopped; what was finished is kept: run the same command again to continue", file=sys.stderr)
        raise typer.Exit(130) from None
    if json_:
        _print_json(summary.as_dict())
    else:
        ingest_summary(summary)
        print(f"store: {settings.out}")
    if not summary.ok:
        raise typer.Exit(1)


@app.command()
def inspect(store: StoreArgument, json_: JsonOption = False) -> None:
    """What is in a store: hours, subjects, channel counts, splits, what was rejected and why."""
    from ddscale.reporting.tables import store_contents
    from ddscale.store import describe

    contents = describe(store)
    _print_json(contents) if json_ else store_contents(contents)


@app.command()
def verify(store: StoreArgument, json_: JsonOption = False) -> None:
    """Checksums, index against data, leakage between splits. Exits 1 and names what is wrong."""
    from ddscale import store as store_room
    from ddscale.reporting.progress import Progress

    with Progress("records") as progress:
        report = store_room.verify(store, on_progress=progress.update)
    if json_:
        _print_json({"problems": report.problems, "checked": report.checked})
    else:
        for problem in report.problems:
            print(f"problem: {problem}")
        print(f"{store}: {report.checked} records checked, {len(report.problems)} problems")
    if report.problems:
        raise typer.Exit(1)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="a run's folder")],
    beside: Annotated[
        list[Path] | None, typer.Option(help="a fine-tuned run to compare a fine-tuned one with; repeatable")
    ] = None,
    benchmark: Annotated[
        Path | None, typer.Option(help="benchmark.json of a fine-tuned run's export, to show its latencies")
    ] = None,
) -> None:
    """Write RUN/report.html: curves, data, throughput, and what the model makes of held-out windows."""
    from ddscale.reporting.report import write_report

    print(f"report: {write_report(run, beside or (), benchmark)}")


@app.command()
def reconstruct(
    run: Annotated[Path, typer.Argument(help="a pretraining run's folder")],
    windows: Annotated[int, typer.Option(min=1, help="held-out windows, drawn by the data's seed")] = 512,
    split: Annotated[Literal["val", "test"], typer.Option(help="whose windows")] = "val",
    mask_ratio: Annotated[
        float | None, typer.Option(help="part of the tokens to hide; default: as the model was trained")
    ] = None,
    channels: Annotated[
        bool, typer.Option("--channels", help="a table by channel instead of by band")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Held-out EEG reconstructed, by data set, band and channel, beside interpolation that learns nothing."""
    from ddscale.evaluation.reconstruction import reconstruct as evaluate
    from ddscale.reporting.evaluations import reconstruction_table
    from ddscale.reporting.progress import Progress

    with Progress("windows") as progress:
        found = evaluate(
            run, windows=windows, split=split, mask_ratio=mask_ratio, on_progress=progress.update
        )
    if json_:
        _print_json(found)
    else:
        reconstruction_table(found, channels)
        print(f"results: {run / 'evaluation' / 'reconstruction.json'}")


@app.command()
def probe(recipe: RecipeArgument, set_: SetOption = None, json_: JsonOption = False) -> None:
    """Labelled trials, one subject left out: pretrained and random encoders, baselines and controls in one table."""
    from ddscale import recipes
    from ddscale.evaluation.probe_recipe import ProbeRecipe
    from ddscale.evaluation.probing import probe as evaluate
    from ddscale.reporting.evaluations import probe_table
    from ddscale.reporting.progress import Progress

    settings = recipes.load(recipe, ProbeRecipe, set_ or ())
    with Progress("fits") as progress:
        found = evaluate(settings, on_progress=progress.update)
    if json_:
        _print_json(found)
    else:
        probe_table(found)
        print(f"results: {settings.out}/probe.json")


@app.command()
def grid(recipe: RecipeArgument, set_: SetOption = None, json_: JsonOption = False) -> None:
    """Train and compare the variants of a recipe, skipping finished ones; exits 1 when any did not finish."""
    from ddscale import recipes
    from ddscale.evaluation.grid import run_grid
    from ddscale.evaluation.grid_recipe import GridRecipe
    from ddscale.reporting.evaluations import grid_table

    settings = recipes.load(recipe, GridRecipe, set_ or ())
    try:
        compared = run_grid(settings, recipe_model, say=_say)
    except KeyboardInterrupt:
        print("stopped; the same command continues where it was", file=sys.stderr)
        raise typer.Exit(130) from None
    if json_:
        _print_json(compared)
    else:
        grid_table(compared)
        print(f"comparison: {settings.out}/comparison.csv, {settings.out}/comparison.json")
    if not compared["ok"]:
        raise typer.Exit(1)


@app.command()
def toy(folder: Annotated[Path, typer.Argument(help="where the toy goes")]) -> None:
    """Train a toy Stable Diffusion on scikit-learn's digits: minutes on a CPU, where no real one is at hand."""
    from ddscale.diffusion.toy_digits import caption_of, load_digits
    from ddscale.diffusion.toy_training import ToyTrainingSettings, train_toy
    from ddscale.reporting.progress import Progress

    settings = ToyTrainingSettings()
    digits = load_digits(settings.sizes.image_size)
    train = ~digits.held_out
    captions = [caption_of(label) for label in digits.labels[train].tolist()]
    with Progress("steps") as progress:

        def show(part: str, step: int, steps: int, loss: float) -> None:
            progress.update(step, steps, f"{part}, loss {loss:.3f}")

        train_toy(folder, digits.images[train], captions, settings, on_progress=show)
    print(f"toy Stable Diffusion: {folder}")


RunArgument = Annotated[Path, typer.Argument(help="a fine-tuned run's folder")]
UnitOption = Annotated[
    str | None, typer.Option(help="unit of a file's numbers, such as mV, where its header is silent or wrong")
]
AtOption = Annotated[
    str | None,
    typer.Option(
        metavar="S,S...|TABLE",
        help="a file's onsets, s: windows there alone; or a CSV or TSV with a column `onset`",
    ),
]
SplitOption = Annotated[str, typer.Option(help="which part of a store: train, val or test")]


@app.command()
def generate(
    run: RunArgument,
    eeg: Annotated[Path, typer.Option(help="a store, or a recording file in any format MNE reads")],
    split: SplitOption = "test",
    windows: Annotated[
        int | None, typer.Option(min=1, help="so many windows, drawn by chance; default all")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="default: RUN/generated")] = None,
    unit: UnitOption = None,
    at: AtOption = None,
    trial_s: Annotated[
        float | None,
        typer.Option(min=0.01, help="EEG from each of those onsets, s; default: as the trials trained on"),
    ] = None,
    exported: Annotated[
        Path | None, typer.Option(help="an export's folder: its runtime draws the same, and is compared")
    ] = None,
    set_: SetOption = None,
) -> None:
    """Pictures from EEG: a PNG and a JSON for each window, and a grid of them.

    A store is drawn at its trials' onsets where it has trials. A recording file is drawn in windows that follow each
    other from its beginning, whatever was presented when: give onsets with --at, or ingest it with its events (ddscale
    ingest recipes/ingest/events.yaml) and give that store. `onset_s` in a JSON is where its window begins, in seconds
    of the recording.
    """
    from ddscale import recipes
    from ddscale.diffusion.generate import GRID, GenerateSettings
    from ddscale.evaluation.generation import generate_from
    from ddscale.evaluation.onsets import read_onsets
    from ddscale.reporting.progress import Progress

    settings = recipes.from_overrides(GenerateSettings, set_ or ())
    target = out or run / "generated"
    onsets = read_onsets(at, eeg) if at else []
    with Progress("windows") as progress:
        pictures, compared = generate_from(
            run, eeg, split, windows, target, unit, settings, progress.update, exported,
            at=onsets, trial_s=trial_s, say=_say,
        )  # fmt: skip
    if compared is not None:
        print(
            f"{exported} draws the same {compared['pictures']} pictures without torch: pixels differ by at most "
            f"{compared['largest_pixel_difference']} of 255 ({compared['tolerance']} allowed)"
        )
    print(f"{pictures} pictures in {target}, the first of them together in {target / GRID}")


@app.command()
def encode(
    model: Annotated[Path, typer.Argument(help="a run's folder, or an encoder's")],
    eeg: Annotated[str, typer.Option(help="a store, or a recording file in any format MNE reads")],
    out: Annotated[Path, typer.Option(help="folder for features.npy and windows.parquet")],
    features: Annotated[
        Literal["mean", "mean_std", "tokens"],
        typer.Option(help="of a window: its tokens' mean, mean and deviation over time, or all of them"),
    ] = "mean",
    split: Annotated[
        Literal["train", "val", "test"] | None, typer.Option(help="part of a store; default: all")
    ] = None,
    cut: Annotated[
        Literal["sliding", "trials"] | None,
        typer.Option(
            help="windows that follow each other, or one a trial; default: trials where there are any"
        ),
    ] = None,
    overlap: Annotated[
        float, typer.Option(min=0, max=0.99, help="part of a sliding window that the next repeats")
    ] = 0.0,
    batch_size: Annotated[int, typer.Option(min=1, help="windows encoded together")] = 64,
    unit: UnitOption = None,
    at: AtOption = None,
    trial_s: Annotated[
        float | None, typer.Option(min=0.01, help="EEG from each of those onsets, s; default: a window")
    ] = None,
) -> None:
    """Features of EEG from a pretrained encoder: filtered, resampled and normalised as in its pretraining.

    OUT/features.npy has a row for each window, OUT/windows.parquet says whose it is and when it began. Of a recording
    file windows follow each other from its beginning, unless --at says where they begin.
    """
    from ddscale.evaluation.features import FEATURES, WINDOWS, EncodeSettings
    from ddscale.evaluation.features import encode as encode_eeg
    from ddscale.evaluation.onsets import read_onsets
    from ddscale.reporting.progress import Progress

    settings = EncodeSettings(features, split, cut, overlap, batch_size)
    onsets = read_onsets(at, eeg) if at else []
    with Progress("windows") as progress:
        done = encode_eeg(
            model, eeg, out, settings, unit=unit, at=onsets, trial_s=trial_s, on_progress=progress.update
        )
    for line in done.left_out:
        _say(line)
    print(f"features: {out / FEATURES} {done.shape}, their windows: {out / WINDOWS}")


@app.command()
def evaluate(
    run: RunArgument,
    eeg: Annotated[
        Path | None, typer.Option(help="a store with pictures; default: the one trained on")
    ] = None,
    exported: Annotated[
        Path | None, typer.Option(help="an export's folder: its runtime draws in the place of PyTorch")
    ] = None,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Judge what a fine-tuned run, or its export, draws for held-out trials, beside controls."""
    from ddscale import recipes
    from ddscale.evaluation.pictures import RESULTS, PictureEvaluation, evaluate_run, results_folder
    from ddscale.reporting.evaluations import picture_tables
    from ddscale.reporting.progress import Progress

    settings = recipes.from_overrides(PictureEvaluation, set_ or ())
    with Progress("trials") as progress:
        found = evaluate_run(
            run,
            eeg,
            settings,
            lambda given, done, of: progress.update(done, of, given.replace("_", " ")),
            exported,
        )
    if json_:
        _print_json(found)
    else:
        picture_tables(found)
        print(f"results: {results_folder(run, settings, exported) / RESULTS}")


@app.command()
def plan(
    recipe: RecipeArgument,
    nodes: Annotated[int, typer.Option(min=1)] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=1)] = 8,
    gpu: Annotated[str, typer.Option(help=f"one of {GPU_NAMES}")] = "h100",
    hours: Annotated[
        float | None,
        typer.Option(help="EEG hours in one pass; default: what the stores hold, where they are at hand"),
    ] = None,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Memory per GPU, bandwidth and time of a pretraining recipe on a cluster: an estimate, not a measurement."""
    from ddscale import recipes
    from ddscale.planning.cost import plan_pretraining
    from ddscale.planning.data import data_at_hand
    from ddscale.reporting.tables import plan_table
    from ddscale.training.settings import PretrainRecipe

    settings = recipes.load(recipe, PretrainRecipe, set_ or ())
    data = data_at_hand(settings.data)
    estimate = plan_pretraining(
        settings, nodes=nodes, gpus_per_node=gpus_per_node, gpu=gpu, hours=hours, data=data
    )
    _print_json(estimate.as_dict()) if json_ else plan_table(estimate)
    if not estimate.fits:
        raise typer.Exit(1)


@app.command()
def doctor(json_: JsonOption = False) -> None:
    """What this machine can and cannot do, and why. Exits 1 when training cannot start here."""
    from ddscale.planning.doctor import examine
    from ddscale.reporting.tables import doctor_table

    findings = examine()
    _print_json([finding.__dict__ for finding in findings]) if json_ else doctor_table(findings)
    if any(finding.state == "broken" for finding in findings):
        raise typer.Exit(1)


@app.command()
def schema(stage: Annotated[str, typer.Argument(help=", ".join(STAGES))]) -> None:
    """Print the JSON Schema of a stage's recipes, for editors that complete and check YAML."""
    from ddscale import recipes

    sys.stdout.write(recipes.json_schema(recipe_model(stage)))


def recipe_model(stage: str) -> type[Any]:
    """The settings model of a stage; ValueError for a stage there is not."""
    if stage == "ingest":
        from ddscale.ingest import IngestRecipe

        return IngestRecipe
    if stage == "pretrain":
        from ddscale.training.settings import PretrainRecipe

        return PretrainRecipe
    if stage == "probe":
        from ddscale.evaluation.probe_recipe import ProbeRecipe

        return ProbeRecipe
    if stage == "grid":
        from ddscale.evaluation.grid_recipe import GridRecipe

        return GridRecipe
    if stage == "finetune":
        from ddscale.diffusion.settings import FinetuneRecipe

        return FinetuneRecipe
    if stage == "export":
        from ddscale.deploy.recipe import ExportRecipe

        return ExportRecipe
    raise ValueError(f"No stage is called {stage!r}: there are {', '.join(STAGES)}.")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def main() -> None:
    """Entry point: what a user can mend is one line on stderr; DDSCALE_TRACEBACK=1 shows where it arose."""
    try:
        app()
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if os.environ.get("DDSCALE_TRACEBACK"):
            raise
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
