"""`ddscale evaluate`: what a fine-tuned run draws for held-out trials, judged, with every control beside it.

Shape letters: n trials, G pictures (n times the samples of a trial), N shown pictures, H height, W width.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers.utils import logging as diffusers_logging
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from ddscale import recipes
from ddscale.diffusion.finetuning import PIPELINE
from ddscale.diffusion.generate import GenerateSettings, grid_of
from ddscale.diffusion.pictures import as_tensor, decode
from ddscale.diffusion.pipeline import EEGToImagePipeline
from ddscale.diffusion.settings import FinetuneRecipe
from ddscale.evaluation.conditions import CONTROLS, MEANING, Control, Given
from ddscale.evaluation.drawing import FromPipeline, FromRuntime, Pixels, RuntimeSettings, half_precision_of
from ddscale.evaluation.exposure import Exposure, StoredTrials, exposure_of_folder
from ddscale.evaluation.keeping import RESULTS, Done, Keeping, protocol_of
from ddscale.evaluation.leads import leads
from ddscale.evaluation.leaks import check_leaks
from ddscale.evaluation.results import number
from ddscale.evaluation.retrieving import retrieval
from ddscale.evaluation.trials import Trial, Trials
from ddscale.metrics.class_judge import LARGEST, Accuracy, ClassJudge
from ddscale.metrics.controls import estimate
from ddscale.metrics.results import Evaluation
from ddscale.metrics.suite import ImageMetrics
from ddscale.metrics.suite import evaluate as judge_pictures
from ddscale.recipes import Settings
from ddscale.store import Store, open_store
from ddscale.stream.pictures import StorePictures

FOLDER = "evaluation"
EXPORTED = "exported"
_ROWS = 8
_FOR_MEAN = 256


class PictureEvaluation(Settings):
    """How a fine-tuned run is evaluated."""

    split: Literal["val", "test"] = "test"
    """Held-out pictures: `test` was never looked at in training, `val` was watched."""
    trials: int | None = Field(default=1000, ge=2)
    """How many trials, drawn by chance; null: all of the split. All pictures drawn are held in memory."""
    controls: list[Control] = list(CONTROLS)
    """What else is drawn and judged in the same way; each costs as much as the EEG itself."""
    generation: GenerateSettings = GenerateSettings()
    """How pictures are drawn."""
    half_precision: bool = True
    """On a GPU, draw in bf16, or in fp16 where the GPU has no bf16; on the CPU always in fp32."""
    runtime: RuntimeSettings = RuntimeSettings()
    """How an export is run, when one is evaluated."""
    gallery: int = Field(default=2000, ge=2)
    """Pictures of the split to find the shown one among, by CLIP features of the EEG; of more, so many by chance."""
    metrics: ImageMetrics = ImageMetrics()
    """How they are judged."""
    seed: int = 0
    """Of shuffled EEG and of random weights."""


@dataclass(frozen=True)
class _Subject:
    """What is evaluated: the run's parts and the held-out trials."""

    recipe: FinetuneRecipe
    pipeline: EEGToImagePipeline
    trials: list[Trial]
    pictures: StorePictures
    reference: Pixels
    """(N, 3, H, W) the shown pictures, at the size that is generated."""
    shown: NDArray[np.int64]
    """(n,) which of them each trial saw."""
    rows: NDArray[np.int64]
    """(N,) their rows in `pictures`."""


def evaluate_run(
    run: str | Path,
    store: str | Path | None,
    settings: PictureEvaluation,
    on_progress: Callable[[str, int, int], None] = lambda what, done, of: None,
    exported: str | Path | None = None,
) -> dict[str, Any]:
    """Draw and judge; writes metrics.json and the grids in `results_folder`, and returns what the file holds.

    Each condition is saved as soon as it is judged; interrupted, the same call continues with those that are missing.
    Results of an earlier evaluation with other settings, weights or another store are moved below that folder.

    store: trials with pictures; None: the run's first. exported: a folder of this run's graphs, whose runtime draws
    in the place of PyTorch. Raises LeakageError when what it judges on was trained on, ValueError or
    FileNotFoundError when there is nothing to judge.
    """
    folder = Path(run)
    target = results_folder(folder, settings, exported)
    pipeline, recipe = load_run(folder)
    path = store or recipe.data.stores[0]
    subject = _subject(recipe, pipeline, path, settings)
    store_read = open_store(path)
    keeping = Keeping(target, protocol_of(folder, store_read, settings.model_dump(mode="json"), exported))
    warnings = check_leaks(store_read, settings.split, [open_store(other) for other in recipe.data.stores])
    pretraining = _exposure(subject, store_read)
    if pretraining is not None and pretraining.state != "unseen":
        warnings.append(f"encoder {recipe.encoder}: {pretraining.note}.")
    if len(recipe.data.stores) > 1:
        others = [str(other) for other in recipe.data.stores if str(other) != str(path)]
        warnings.append(
            f"the run was trained on {len(recipe.data.stores)} stores and is judged on {path} alone; for "
            f"{', '.join(others)} evaluate it again with --eeg."
        )
    precision = half_precision_of(pipeline.device) if settings.half_precision else None
    painter: FromPipeline | FromRuntime
    if exported is None:
        training = list(_training(subject, settings))
        painter = FromPipeline(
            pipeline,
            subject.trials,
            training,
            recipe.stable_diffusion,
            settings.generation,
            settings.seed,
            precision,
        )
    else:
        painter = FromRuntime(
            exported, folder, subject.trials, settings.generation, settings.runtime, settings.seed
        )
    judge, judged_real = _class_judge(subject, path)
    shown = np.repeat(subject.shown, settings.generation.samples)
    given: tuple[Given, ...] = ("eeg", *settings.controls)
    found: dict[str, Done] = {}
    skipped: dict[str, str] = {}
    for condition in given:
        if (before := keeping.done(condition)) is not None:
            found[condition] = before
            continue
        try:
            drawn = painter.draw(condition, partial(on_progress, condition))
        except (ValueError, FileNotFoundError) as error:
            if condition == "eeg":
                raise
            skipped[condition] = str(error)
            continue
        evaluation = judge_pictures(drawn, subject.reference, shown, settings.metrics, device=pipeline.device)
        result = {"given": MEANING[condition], **evaluation.to_json()}
        values, proportions = dict(evaluation.per_picture), sorted(evaluation.proportions)
        if judge is not None:
            labels = [subject.pictures.labels[row] for row in subject.rows[shown]]
            right = judge.right(drawn, labels)
            result |= _class_accuracy(subject, right)
            values["class_accuracy"] = right.astype(np.float64)
            proportions.append("class_accuracy")
        examples, grids = _examples(subject, drawn, evaluation, settings) if condition == "eeg" else ({}, {})
        found[condition] = Done(result, values, proportions, painter.facts(), examples, grids)
        keeping.save(condition, found[condition])
    outcome = {
        "run": str(folder),
        # The last one's time is over all that were drawn without an interruption.
        "exported": list(found.values())[-1].exported,
        "store": str(path),
        "split": settings.split,
        "trials": len(subject.trials),
        "pictures_shown": len(subject.rows),
        "samples_per_trial": settings.generation.samples,
        "half_precision": None if precision is None or exported else str(precision).removeprefix("torch."),
        "simulated": _simulated(store_read),
        "warnings": warnings,
        "pretraining": None
        if pretraining is None
        else {"state": pretraining.state, "note": pretraining.note},
        "settings": settings.model_dump(mode="json"),
        "class_judge": judged_real,
        "retrieval": retrieval(
            recipe,
            pipeline,
            subject.trials,
            subject.pictures,
            subject.reference.shape[-1],
            settings.gallery,
            settings.seed,
        )
        if exported is None
        else {"skipped": "an export has no alignment head: evaluate the run itself."},
        "conditions": {condition: done.result for condition, done in found.items()},
        "eeg_minus": leads(
            {condition: done.values for condition, done in found.items()},
            {name for done in found.values() for name in done.proportions},
            shown,
        ),
        "skipped_conditions": skipped,
        "examples": found["eeg"].examples,
    }
    return keeping.finish(outcome, found["eeg"].grids)


def results_folder(run: Path, settings: PictureEvaluation, exported: str | Path | None) -> Path:
    """RUN/evaluation, or for an export a folder below, named for how it draws."""
    if exported is None:
        return run / FOLDER
    how = settings.generation
    guidance = f"guidance{how.guidance_scale:g}"
    runtime = (settings.runtime.provider, settings.runtime.decoder)
    name = "-".join([Path(exported).name, how.scheduler, str(how.steps), guidance, *runtime])
    return run / FOLDER / EXPORTED / name


def load_run(run: Path) -> tuple[EEGToImagePipeline, FinetuneRecipe]:
    """The generator of a fine-tuned run and the recipe it was trained by.

    Raises FileNotFoundError when the run has none, ValueError when its recipe is of another stage.
    """
    if not (run / PIPELINE / "model_index.json").is_file():
        raise FileNotFoundError(
            f"{run} holds no {PIPELINE}/: give the `run:` of a recipe that deepspeed launchers/finetune.py has trained "
            "to its end."
        )
    diffusers_logging.disable_progress_bar()
    pipeline = EEGToImagePipeline.from_pretrained(run / PIPELINE)
    pipeline.set_progress_bar_config(disable=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return pipeline.to(device), recipes.load(run / "recipe.yaml", FinetuneRecipe)


def _subject(
    recipe: FinetuneRecipe, pipeline: EEGToImagePipeline, store: str | Path, settings: PictureEvaluation
) -> _Subject:
    held_out = Trials(
        pipeline.conditioner,
        store,
        settings.split,
        settings.trials,
        recipe.data.blocklist,
        with_pictures=False,
    )
    if held_out.pictures is None:
        raise ValueError(
            f"{store} holds no pictures: what is generated cannot be held against what was shown."
        )
    trials = [trial for trial in held_out if trial.image >= 0]
    rows, shown = np.unique([trial.image for trial in trials], return_inverse=True)
    if len(rows) < 2:
        raise ValueError(
            f"{store} has {len(rows)} pictures in its {settings.split} split: at least 2 are needed."
        )
    size = pipeline.unet.config.sample_size * pipeline.codec.downsampling
    reference = np.stack([_pixels(held_out.pictures, row, size) for row in rows.tolist()])
    return _Subject(recipe, pipeline, trials, held_out.pictures, reference, shown.astype(np.int64), rows)


def _exposure(subject: _Subject, store: Store) -> Exposure | None:
    """Whom of the people judged the encoder's pretraining had; None: it was not pretrained."""
    if subject.recipe.from_scratch:
        return None
    keys = {str(trial.window.facts["record"]) for trial in subject.trials}
    return exposure_of_folder(subject.recipe.encoder, StoredTrials(store, keys))


def _training(subject: _Subject, settings: PictureEvaluation) -> Iterator[Trial]:
    """Trials that were trained on, for what the mean of their EEG is turned into."""
    if "no_eeg" in settings.controls:
        recipe = subject.recipe
        for store in recipe.data.stores:
            yield from Trials(
                subject.pipeline.conditioner,
                store,
                "train",
                _FOR_MEAN,
                recipe.data.blocklist,
                with_pictures=False,
            )


def _pixels(pictures: StorePictures, row: int, size: int) -> Pixels:
    tensor = as_tensor(decode(pictures.read(row), pictures.names[row]), size)
    return ((tensor + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()


def _class_judge(subject: _Subject, store: str | Path) -> tuple[ClassJudge | None, dict[str, Any]]:
    """A judge that has learned from the store's other pictures, and how well it knows the real held-out ones."""
    pictures, held_out = subject.pictures, set(subject.rows.tolist())
    rows = [row for row in range(len(pictures)) if pictures.splits[row] == "train" and row not in held_out]
    labels = [pictures.labels[row] for row in rows]
    size = subject.reference.shape[-1]
    if size > LARGEST or not all(labels):
        return None, {"skipped": f"it judges labelled pictures of up to {LARGEST} pixels; these have {size}."}
    try:
        judge = ClassJudge(np.stack([_pixels(pictures, row, size) for row in rows]), labels)
    except ValueError as error:
        return None, {"skipped": str(error)}
    right = judge.right(subject.reference, [pictures.labels[row] for row in subject.rows])
    shown = [pictures.labels[row] for row in subject.rows[subject.shown]]
    return judge, {
        "what": "support vector machine on 8 x 8 grey values of real pictures; shares nothing with the generator",
        "learned_from": judge.learned_from,
        "classes": len(set(labels)),
        "chance": 1 / len(set(labels)),
        "always_the_most_frequent": max(Counter(shown).values()) / len(shown),
        "on_real_held_out_pictures": Accuracy.of(right).as_dict(),
    }


def _class_accuracy(subject: _Subject, right: NDArray[np.bool_]) -> dict[str, Any]:
    """Part of the pictures that are of the right class, over all and by subject.

    The interval is over the pictures shown: several people who saw the same, and several samples of a trial, are not
    independent.
    """
    samples = len(right) // len(subject.trials)
    shown = np.repeat(subject.shown, samples)
    people = np.repeat(
        [f"{t.window.facts['dataset']}/{t.window.facts['subject']}" for t in subject.trials], samples
    )

    def of(chosen: NDArray[np.bool_]) -> dict[str, Any]:
        found = estimate(right[chosen].astype(np.float64), shown[chosen], proportion=True)
        return {
            "value": found.value,
            "low": number(found.low),
            "high": number(found.high),
            "judged": found.values,
        }

    everyone = np.ones(len(right), dtype=bool)
    return {
        "class_accuracy": of(everyone),
        "class_accuracy_by_subject": {str(person): of(people == person) for person in np.unique(people)},
    }


def _simulated(store: Store) -> bool:
    """Whether a data set's provenance says so, as the simulated sources' always does."""
    return any((entry.url or "").startswith("simulated") for entry in store.manifest.datasets.values())


def _examples(
    subject: _Subject, drawn: Pixels, evaluation: Evaluation, settings: PictureEvaluation
) -> tuple[dict[str, Any], dict[str, Image.Image]]:
    """Grids of the best, the median and the worst trials by one metric: the shown picture first in each row."""
    metric = "lpips_alex" if "lpips_alex" in evaluation.per_picture else "ssim"
    sign = 1 if evaluation[metric].better == "higher" else -1
    samples = settings.generation.samples
    of_trial = np.nanmean(evaluation.per_picture[metric].reshape(-1, samples), axis=1)
    order = np.argsort(-sign * of_trial, kind="stable")
    middle = max(0, (len(order) - _ROWS) // 2)
    picked = {"best": order[:_ROWS], "median": order[middle : middle + _ROWS], "worst": order[-_ROWS:]}
    grids = {
        f"{name}.png": grid_of(_rows(subject, drawn, trials.tolist(), samples))
        for name, trials in picked.items()
    }
    return {"ranked_by": metric, "grids": {name: f"{name}.png" for name in picked}}, grids


def _rows(subject: _Subject, drawn: Pixels, trials: Sequence[int], samples: int) -> list[list[Image.Image]]:
    rows = []
    for trial in trials:
        pixels = [subject.reference[subject.shown[trial]], *drawn[trial * samples : (trial + 1) * samples]]
        rows.append([Image.fromarray(picture.transpose(1, 2, 0)) for picture in pixels])
    return rows


def read_results(run: str | Path) -> dict[str, Any] | None:
    """What an earlier evaluation of the run found; None when there was none."""
    path = Path(run) / FOLDER / RESULTS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def read_exported_results(run: str | Path) -> list[dict[str, Any]]:
    """What evaluations of the run's exports found."""
    found = sorted((Path(run) / FOLDER / EXPORTED).glob(f"*/{RESULTS}"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in found]
