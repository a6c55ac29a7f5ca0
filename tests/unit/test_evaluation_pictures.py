"""From a fine-tuned run's folder to pictures, judged beside controls, and to a report: on random weights."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import mne
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from finetuning import CHANNELS, CLASSES, SAMPLES, SFREQ, tiny_recipe, write_parts

from ddscale import recipes
from ddscale.cli import app
from ddscale.diffusion.finetuning import Finetuning
from ddscale.diffusion.generate import GenerateSettings
from ddscale.diffusion.settings import FinetuneRecipe
from ddscale.evaluation.drawing import RuntimeSettings
from ddscale.evaluation.features import FEATURES, WINDOWS, EncodeSettings, encode
from ddscale.evaluation.generation import generate_from
from ddscale.evaluation.given import given_eeg, needs_of_conditioner
from ddscale.evaluation.pictures import PictureEvaluation, evaluate_run, load_run, read_exported_results
from ddscale.evaluation.trials import Trials
from ddscale.metrics.leakage import LeakageError
from ddscale.reporting.report import write_report
from ddscale.store import ArrayRecording, ImageFile, StagedTrial, open_store, write_store
from ddscale.training.ranks import Ranks
from ddscale.training.runs import Display

FAST = {"steps": 2, "batch_size": 8}


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    return write_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def run(parts, tmp_path_factory) -> Path:
    """A run as launchers/finetune.py leaves it, its weights those of the beginning."""
    folder = tmp_path_factory.mktemp("run") / "run"
    folder.mkdir()
    recipe = FinetuneRecipe.model_validate(tiny_recipe(parts, folder, time_condition=True))
    recipes.save(recipe, folder / "recipe.yaml")
    task = Finetuning(recipe, Ranks(0, 1, 0, 1, torch.device("cpu")), Display())
    torch.manual_seed(0)
    model = task.make_model()
    task.export(model.state_dict(), folder, {"run": str(folder)})
    task.close()
    row = {"step": 8, "loss": 2.0, "lr": 1e-3, "grad_norm": 1.0, "samples_seen": 128, "eeg_hours_seen": 0.1,
           "samples_per_s": 9.0, "eeg_hours_per_s": 0.1, "data_wait_fraction": 0.1,
           "loss_by_part": {"noise": 0.5, "alignment": 1.5}, "val_loss": 2.0, "val_noise": 0.6,
           "val_noise_without_eeg": 0.7, "val_alignment": 1.4}  # fmt: skip
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    start = {"world_size": 1, "device": "cpu", "parameters": 10, "trained_parameters": 5,
             "peak_flops_per_rank": None, "peak_flops_source": ""}  # fmt: skip
    (folder / "environment.json").write_text(json.dumps({"starts": [start]}))
    return folder


@pytest.fixture(scope="module")
def evaluated(run) -> dict:
    settings = PictureEvaluation(generation=GenerateSettings(**FAST, samples=2))
    return evaluate_run(run, None, settings)


def test_trials_are_the_held_out_ones_with_the_picture_that_was_shown(run, parts):
    pipeline, _ = load_run(run)
    trials = Trials(pipeline.conditioner, parts / "store", "test", None)
    found = list(trials)
    assert len(trials) == len(found) == 24  # 12 of 72 pictures, two people
    assert {trial.window.facts["image"] for trial in found} == {
        f"paired/picture{n:03d}" for n in range(72) if n // 4 % 6 == 5
    }
    for trial in found:
        assert trial.window.x_TC.shape == (SAMPLES, CHANNELS)
        number = int(trial.window.facts["image"][-3:])
        assert trial.window.facts["label"] == CLASSES[number % 4]
        assert np.asarray(trial.window.seen)[number % 32].min() == 255
    assert len({trial.window.key for trial in found}) == 24


def test_a_store_filtered_in_another_way_is_refused(run, parts, monkeypatch):
    pipeline, _ = load_run(run)
    pipeline.conditioner.register_to_config(preprocessing={"l_freq": 1.0})
    with pytest.raises(ValueError, match=r"l_freq is None, not 1\.0"):
        Trials(pipeline.conditioner, parts / "store", "test", None)


def test_the_results_hold_every_control_and_count_what_they_rest_on(evaluated):
    assert evaluated["trials"] == 24
    assert evaluated["pictures_shown"] == 12
    assert list(evaluated["conditions"]) == ["eeg", "shuffled_eeg", "random_encoder", "no_eeg", "label_only"]
    for condition in evaluated["conditions"].values():
        assert condition["generated_pictures"] == 48
        accuracy = condition["class_accuracy"]
        assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
        assert accuracy["judged"] == 48
        assert condition["metrics"]["ssim"]["estimate"]["groups"] == 12
        assert len(condition["class_accuracy_by_subject"]) == 2
    assert list(evaluated["eeg_minus"]) == list(evaluated["conditions"])[1:]
    for control, of_metrics in evaluated["eeg_minus"].items():
        for metric, lead in of_metrics.items():
            eeg, other = (
                evaluated["conditions"][given]["class_accuracy"]
                if metric == "class_accuracy"
                else evaluated["conditions"][given]["metrics"][metric]["estimate"]
                for given in ("eeg", control)
            )
            assert lead["value"] == pytest.approx(eeg["value"] - other["value"])
            assert lead["low"] <= lead["value"] <= lead["high"]
            assert lead["groups"] == 12
    assert "class_accuracy" in evaluated["eeg_minus"]["shuffled_eeg"]
    assert evaluated["class_judge"]["chance"] == pytest.approx(0.25)
    assert evaluated["class_judge"]["on_real_held_out_pictures"]["value"] == 1.0
    assert evaluated["retrieval"]["gallery"] == 12
    assert evaluated["retrieval"]["top_1"]["chance"] == pytest.approx(1 / 12)
    averaged = evaluated["retrieval"]["averaged"]
    assert (evaluated["retrieval"]["queries"], averaged["queries"]) == (24, 12)
    assert averaged["trials_per_picture"] == 2
    assert averaged["top_1"]["groups"] == 12


def test_results_and_grids_are_on_disk(evaluated, run):
    assert json.loads((run / "evaluation" / "metrics.json").read_text()) == evaluated
    for name in evaluated["examples"]["grids"].values():
        # Eight rows of the shown picture and two drawn ones.
        assert Image.open(run / "evaluation" / name).size == (3 * 36 - 4, 8 * 36 - 4)


def test_every_control_is_what_it_is_called(run, parts):
    from diffusers import UNet2DConditionModel

    from ddscale.evaluation.conditions import condition_of

    pipeline, recipe = load_run(run)
    trials, training = (
        list(Trials(pipeline.conditioner, parts / "store", split, None)) for split in ("test", "train")
    )
    given = {
        name: condition_of(name, pipeline, trials, training, recipe.stable_diffusion, 0)
        for name in ("eeg", "shuffled_eeg", "random_encoder", "no_eeg", "label_only")
    }
    states = {name: conditions.condition.hidden_states for name, conditions in given.items()}
    assert all(value.shape == states["eeg"].shape for value in states.values())
    assert not torch.allclose(states["eeg"], states["random_encoder"])
    # No EEG: the mean over training trials, the same for all.
    with torch.no_grad():
        x_BTC = torch.stack([trial.window.x_TC for trial in training])
        mean = pipeline.conditioner(x_BTC).hidden_states.mean(dim=0)
    torch.testing.assert_close(states["no_eeg"], mean.expand_as(states["no_eeg"]))
    ours = {tuple(row.flatten()[:8].tolist()) for row in states["eeg"]}
    assert {tuple(row.flatten()[:8].tolist()) for row in states["shuffled_eeg"]} == ours
    assert not (states["eeg"] == states["shuffled_eeg"]).flatten(1).all(dim=1).any()
    # The caption alone: Stable Diffusion as it was before, guided from the empty caption, with no trace of the EEG.
    labels = [trial.window.facts["label"] for trial in trials]
    same = [torch.equal(states["label_only"][0], state) for state in states["label_only"]]
    assert same == [label == labels[0] for label in labels]
    before = UNet2DConditionModel.from_pretrained(parts / "sd" / "unet").state_dict()
    now = given["label_only"].unet.state_dict()
    assert all(torch.equal(now[name], value) for name, value in before.items())
    assert given["label_only"].condition.time is None
    assert given["label_only"].without.hidden_states.shape == (1, *states["eeg"].shape[1:])
    assert all(given[name].unet is None for name in given if name != "label_only")


@pytest.mark.parametrize("renamed", [False, True])
def test_a_picture_that_was_trained_on_cannot_be_judged(parts, tmp_path, renamed):
    """Pictures are known by their bytes: another store, in which they have other names and splits, changes nothing."""
    from ddscale.evaluation.leaks import check_leaks

    ours = open_store(parts / "store")
    shown = next(row for row, split in enumerate(ours.images["split"].to_pylist()) if str(split) == "train")
    data = ours.read_image(shown)
    fresh = ours.read_image(shown)[:-1] + b"\0"
    picture = ImageFile(
        "other", "elsewhere", "png", "elsewhere.png", lambda: data if renamed else fresh, stated="test"
    )
    record = np.random.default_rng(0).normal(size=(CHANNELS - 2, SAMPLES))
    names = [f"E{n}" for n in range(CHANNELS - 2)]
    recording = ArrayRecording(
        "other", "dora", "dora-seen", names, [(0, record)], trials=[StagedTrial(image="elsewhere")]
    )
    write_store(tmp_path / "other", [recording], sfreq=SFREQ, images=[picture])
    theirs = open_store(tmp_path / "other")
    if renamed:
        with pytest.raises(LeakageError, match="picture seen in training"):
            check_leaks(theirs, "test", [ours])
    else:
        check_leaks(theirs, "test", [ours])


def test_pictures_from_a_recording_file(run, tmp_path):
    rng = np.random.default_rng(0)
    info = mne.create_info([f"E{n}" for n in range(CHANNELS - 2)], 256.0, "eeg")
    signal = np.cumsum(rng.normal(size=(CHANNELS - 2, 256 * 20)), axis=1)
    signal = 2e-5 * (signal - signal.mean(axis=1, keepdims=True)) / signal.std(axis=1, keepdims=True)
    path = tmp_path / "mine [1]_raw.fif"
    mne.io.RawArray(signal, info, verbose="error").save(path, verbose="error")
    pipeline, _ = load_run(run)
    # The tiny store was written from arrays, so it says nothing of filters; 128 Hz is what the encoder takes.
    assert pipeline.conditioner.config.preprocessing == {}
    pipeline.conditioner.register_to_config(preprocessing=None)
    changed = tmp_path / "run"
    shutil.copytree(run, changed)
    config = changed / "pipeline" / "conditioner" / "config.json"
    tree = json.loads(config.read_text())
    tree["preprocessing"] = {
        "sfreq": SFREQ,
        "l_freq": 0.5,
        "h_freq": 40.0,
        "notch": None,
        "reference": "as_recorded",
    }
    config.write_text(json.dumps(tree))
    settings = GenerateSettings(**FAST)
    told: list[str] = []
    written, _ = generate_from(changed, path, "test", 3, tmp_path / "out", None, settings, say=told.append)
    assert written == 3
    assert len(list((tmp_path / "out").glob("given-*.png"))) == 3
    for sidecar in (tmp_path / "out").glob("given-*.json"):
        window = json.loads(sidecar.read_text())["window"]
        # No split, and nothing of a store that is gone.
        assert set(window) == {"key", "file", "onset_s", "dataset"}
        assert window["file"] == str(path)
        assert window["onset_s"] % (SAMPLES / SFREQ) == 0
    assert "windows of 0.5 s, one after another" in told[0]
    assert "--at" in told[1]
    assert "recipes/ingest/events.yaml" in told[1]

    # All of a file comes in the order of time, the grid's rows too.
    conditioner = load_run(changed)[0].conditioner
    with given_eeg(path, needs_of_conditioner(conditioner)) as given:
        whole = list(Trials(conditioner, given.address, "train", None, file=path))
        shuffled = Trials(conditioner, given.address, "train", len(whole), file=path)
        by_key = {trial.window.key: trial.window.x_TC for trial in shuffled}
    assert [trial.window.facts["onset_s"] for trial in whole] == [0.5 * number for number in range(40)]
    assert all(torch.equal(trial.window.x_TC, by_key[trial.window.key]) for trial in whole)

    # As long as the trials that were trained on: from each onset half a second.
    told.clear()
    at = [1.25, 7.5, 19.9]
    written, _ = generate_from(
        changed, path, "test", None, tmp_path / "at", None, settings, at=at, say=told.append
    )
    drawn = [json.loads(one.read_text())["window"] for one in sorted((tmp_path / "at").glob("given-*.json"))]
    assert written == 2
    assert [window["onset_s"] for window in drawn] == [1.25, 7.5]
    (warning,) = told
    assert "warning: the EEG from onset 19.9 s: cut_off" in warning
    with pytest.raises(FileNotFoundError, match="is not there"):
        generate_from(changed, tmp_path / "gone.edf", "test", 3, tmp_path / "out", None, settings)


def test_a_store_of_trials_without_pictures_is_drawn_at_its_onsets(run, tmp_path):
    rng = np.random.default_rng(0)
    names = [f"E{number + 1}" for number in range(CHANNELS - 2)]
    onsets = (0, 500, 1000)  # longer than a window, of which others would follow if they slid
    records = [(start, rng.normal(scale=20, size=(CHANNELS - 2, 3 * SAMPLES))) for start in onsets]
    trials = [StagedTrial(label=label) for label in ("left", "right", "left")]
    recording = ArrayRecording("lab", "eva", "eva-moves", names, records, trials=trials)
    write_store(tmp_path / "moves", [recording], sfreq=SFREQ, test_subjects=["lab/eva"])
    told: list[str] = []
    written, _ = generate_from(
        run,
        tmp_path / "moves",
        "test",
        None,
        tmp_path / "out",
        None,
        GenerateSettings(**FAST),
        say=told.append,
    )
    windows = [json.loads(one.read_text())["window"] for one in sorted((tmp_path / "out").glob("*.json"))]
    assert written == 3
    assert [window["onset_s"] for window in windows] == [start / SFREQ for start in onsets]
    assert all(window["split"] == "test" for window in windows)
    assert told == []


def test_a_fine_tuned_runs_encoder_gives_features_of_trials(run, parts, tmp_path):
    done = encode(run, parts / "store", tmp_path / "features", EncodeSettings(split="test"))
    pipeline, _ = load_run(run)
    trials = list(Trials(pipeline.conditioner, parts / "store", "test", None))
    rows = pq.read_table(tmp_path / "features" / WINDOWS)["record"].to_pylist()
    assert done.shape == (len(trials), 32)
    features = np.load(tmp_path / "features" / FEATURES)
    for trial in trials:
        with torch.no_grad():
            pooled = pipeline.conditioner.encoder(trial.window.x_TC[None]).pooled[0]
        row = features[rows.index(trial.window.facts["record"])]
        np.testing.assert_allclose(row, pooled.numpy(), atol=1e-5)


def test_the_commands_say_where_things_are(run, parts, tmp_path):
    from typer.testing import CliRunner

    sets = ["--set", "steps=2", "--set", "batch_size=8"]
    command = [
        "generate",
        str(run),
        "--eeg",
        str(parts / "store"),
        "--windows",
        "4",
        "--out",
        str(tmp_path / "out"),
    ]
    done = CliRunner().invoke(app, [*command, *sets], catch_exceptions=False)
    assert f"4 pictures in {tmp_path / 'out'}" in done.output
    sidecar = json.loads(next((tmp_path / "out").glob("*.json")).read_text())
    assert sidecar["window"]["caption"].startswith("a handwritten")
    with pytest.raises(FileNotFoundError, match="launchers/finetune"):
        CliRunner().invoke(app, ["evaluate", str(parts)], catch_exceptions=False)


def test_the_report_shows_pictures_controls_and_the_other_runs(evaluated, run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    compared = {"exported": "demo/export/fp32", "pictures": 4, "largest_pixel_difference": 1,
                "mean_pixel_difference": 0.01, "tolerance": 3}  # fmt: skip
    (run / "generated").mkdir(exist_ok=True)
    (run / "generated" / "runtime.json").write_text(json.dumps(compared))
    page = write_report(run, [other]).read_text()
    assert "differ by at most 1 of 255" in page
    assert page.count("data:image/png") >= 6
    for shown in (
        "right class",
        "shuffled eeg",
        "label only",
        "worst",
        "Beside other runs",
        "other",
        "EEG − shuffled EEG",
    ):
        assert shown in page
    shutil.rmtree(other / "evaluation")
    assert "Not evaluated yet" in write_report(other).read_text()


@pytest.fixture(scope="module")
def exported(run, parts, tmp_path_factory) -> Path:
    from ddscale.deploy.exporting import export
    from ddscale.deploy.recipe import ExportRecipe

    out = tmp_path_factory.mktemp("exported") / "export"
    recipe = {
        "source": str(run),
        "out": str(out),
        "eeg": {"channels": CHANNELS - 2},
        "tiny_decoder": str(parts / "sd" / "tiny"),
        "precisions": ["fp32"],
        "schedules": [{"name": "dpmsolver++", "steps": 2}],
    }
    return export(ExportRecipe.model_validate(recipe))[0]


def _other_run(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder)
    pipeline, _ = load_run(folder)
    with torch.no_grad():
        bias = pipeline.conditioner.projector.width.bias
        bias.add_(3.0 * torch.randn_like(bias))
    pipeline.save_pretrained(folder / "pipeline")
    return folder


def test_the_exported_runtime_draws_the_same_pictures_from_a_stores_microvolts(
    run, parts, exported, tmp_path
):
    from ddscale.evaluation.generation import RuntimeDiffersError

    settings = GenerateSettings(**FAST, samples=2)
    arguments = (run, parts / "store", "test", 3, tmp_path / "out", None, settings)
    written, compared = generate_from(*arguments, exported=exported)
    assert written == compared["pictures"] == 6
    assert compared["largest_pixel_difference"] <= 1
    # Another generator's graphs are noticed.
    other = _other_run(run, tmp_path / "other")
    with pytest.raises(RuntimeDiffersError, match="Export the run again"):
        generate_from(other, *arguments[1:], exported=exported)


def test_what_an_export_draws_is_judged_as_what_the_run_draws(evaluated, run, exported, tmp_path):
    settings = PictureEvaluation(generation=GenerateSettings(**FAST, samples=2))
    found = evaluate_run(run, None, settings, exported=exported)
    assert list(found["conditions"]) == ["eeg", "shuffled_eeg"]
    assert "EEG and nothing else" in found["skipped_conditions"]["label_only"]
    for given, condition in found["conditions"].items():
        own = evaluated["conditions"][given]
        assert condition["class_accuracy"] == own["class_accuracy"]
        for metric in ("ssim", "psnr"):
            values = [of["metrics"][metric]["estimate"]["value"] for of in (condition, own)]
            assert values[0] == pytest.approx(values[1], rel=1e-3)
    # The evaluation of the run itself is not overwritten.
    assert json.loads((run / "evaluation" / "metrics.json").read_text()) == evaluated

    tiny = settings.model_copy(
        update={"runtime": RuntimeSettings(decoder="tiny"), "controls": ["shuffled_eeg"]}
    )
    by_tiny = evaluate_run(run, None, tiny, exported=exported)
    assert by_tiny["exported"]["decoder"] == "tiny"
    assert by_tiny["conditions"]["eeg"]["metrics"]["ssim"] != found["conditions"]["eeg"]["metrics"]["ssim"]
    assert read_exported_results(run) == [found, by_tiny]

    missing = settings.model_copy(update={"generation": GenerateSettings(steps=9)})
    with pytest.raises(ValueError, match=r"dpmsolver\+\+.*2"):
        evaluate_run(run, None, missing, exported=exported)
    with pytest.raises(ValueError, match=r"export this run \(python export/to_onnx.py"):
        evaluate_run(_other_run(run, tmp_path / "other"), None, settings, exported=exported)


def test_the_report_shows_what_exports_draw_and_how_fast(evaluated, run, exported, tmp_path):
    from ddscale.deploy.benchmark.measuring import Result, Row

    settings = PictureEvaluation(
        generation=GenerateSettings(**FAST), runtime=RuntimeSettings(decoder="tiny"), controls=[]
    )
    evaluate_run(run, None, settings, exported=exported)
    times = {"pictures": 1, "quartiles_ms": (3.0, 5.0), "rounds": 3}
    measured = Result("demo/export", {"gpu": None, "cpu": "a processor", "threads": 2}, {})
    measured.rows = [
        Row(stage="unet", engine="torch eager", median_ms=4.0, to_eager=1.0, **times),
        Row(stage="unet", engine="cpu fp32", median_ms=3.0, to_eager=0.75, **times),
    ]
    measured.left_out = {"cuda fp32": "no GPU"}
    measured.save(tmp_path / "benchmark.json")
    assert Result.load(tmp_path / "benchmark.json") == measured
    page = write_report(run, benchmark=tmp_path / "benchmark.json").read_text()
    for shown in (
        "a processor, 2 threads",
        "0.75x",
        "left out: cuda fp32: no GPU",
        "<td>tiny</td>",
        "<td>cpu, fp32</td>",
    ):
        assert shown in page
    (tmp_path / "benchmark.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match="is not a benchmark's JSON"):
        write_report(run, benchmark=tmp_path / "benchmark.json")


def test_an_evaluation_with_other_settings_leaves_the_earlier_one_where_it_says(evaluated, run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    before = json.loads((copy / "evaluation" / "metrics.json").read_text())
    settings = PictureEvaluation(trials=8, controls=[], generation=GenerateSettings(**FAST))
    found = evaluate_run(copy, None, settings)
    assert json.loads((Path(found["earlier_results_moved_to"]) / "metrics.json").read_text()) == before
    assert json.loads((copy / "evaluation" / "metrics.json").read_text()) == found


def test_an_interrupted_evaluation_continues_with_what_is_missing(run, tmp_path, monkeypatch):
    from ddscale.evaluation.drawing import FromPipeline

    copies = [tmp_path / name for name in ("whole", "interrupted")]
    for copy in copies:
        shutil.copytree(run, copy)
        shutil.rmtree(copy / "evaluation", ignore_errors=True)
    settings = PictureEvaluation(
        trials=8, controls=["shuffled_eeg", "no_eeg"], generation=GenerateSettings(**FAST)
    )
    whole = evaluate_run(copies[0], None, settings)
    drawn, draw = [], FromPipeline.draw

    def until(last):
        def counted(self, given, on_progress):
            if given == last:
                raise KeyboardInterrupt
            drawn.append(given)
            return draw(self, given, on_progress)

        return counted

    monkeypatch.setattr(FromPipeline, "draw", until("no_eeg"))
    with pytest.raises(KeyboardInterrupt):
        evaluate_run(copies[1], None, settings)
    assert not (copies[1] / "evaluation" / "metrics.json").exists()
    assert drawn == ["eeg", "shuffled_eeg"]
    monkeypatch.setattr(FromPipeline, "draw", until(None))
    found = evaluate_run(copies[1], None, settings)
    assert drawn == ["eeg", "shuffled_eeg", "no_eeg"]
    assert found | {"run": ""} == whole | {"run": ""}
    for name in found["examples"]["grids"].values():
        assert (copies[1] / "evaluation" / name).read_bytes() == (
            copies[0] / "evaluation" / name
        ).read_bytes()
    # Trained further, nothing of what the older weights drew is taken over.
    monkeypatch.setattr(FromPipeline, "draw", until("shuffled_eeg"))
    with pytest.raises(KeyboardInterrupt):
        evaluate_run(copies[1], None, settings)
    other = _other_run(copies[1], tmp_path / "further")
    drawn.clear()
    with pytest.raises(KeyboardInterrupt):
        evaluate_run(other, None, settings)
    assert drawn == ["eeg"]


def test_pictures_drawn_in_half_precision_are_nearly_those_of_fp32(run, parts):
    from ddscale.evaluation.drawing import FromPipeline

    pipeline, recipe = load_run(run)
    trials = list(Trials(pipeline.conditioner, parts / "store", "test", 4))
    made_of = (pipeline, trials, [], recipe.stable_diffusion, GenerateSettings(**FAST), 0)
    full, half = (
        FromPipeline(*made_of, precision).draw("eeg", lambda done, of: None).astype(int)
        for precision in (None, torch.bfloat16)
    )
    assert (full != half).any()
    assert np.abs(full - half).mean() < 8


def _copy_with(run: Path, folder: Path, **changes) -> Path:
    shutil.copytree(run, folder)
    recipe = recipes.load(folder / "recipe.yaml", FinetuneRecipe)
    recipes.save(recipe.model_copy(update=changes), folder / "recipe.yaml")
    return folder


def test_people_whom_the_encoder_was_pretrained_on_are_reported(run, parts, tmp_path):
    from ddscale.store import open_store

    settings = PictureEvaluation(trials=4, controls=[], generation=GenerateSettings(**FAST))
    store = open_store(parts / "store")
    encoder = tmp_path / "encoder"
    shutil.copytree(parts / "encoder", encoder)
    (description,) = encoder.glob("*.json")
    tree = json.loads(description.read_text())
    tree["metadata"]["stores"] = [{"path": str(parts / "store"), "fingerprint": store.fingerprint}]
    description.write_text(json.dumps(tree))
    copy = _copy_with(run, tmp_path / "seen", encoder=str(encoder))
    found = evaluate_run(copy, None, settings)
    assert found["pretraining"]["state"] == "seen"
    assert any("pretrained on these subjects too, without labels (" in w for w in found["warnings"])
    # What cannot be found out is said, and is no error; weights drawn afresh have seen nobody.
    copy = _copy_with(run, tmp_path / "gone", encoder=str(tmp_path / "nowhere"))
    found = evaluate_run(copy, None, settings)
    assert found["pretraining"]["state"] == "unknown"
    assert any("its folder cannot be read" in warning for warning in found["warnings"])
    copy = _copy_with(run, tmp_path / "scratch", from_scratch=True)
    assert evaluate_run(copy, None, settings)["pretraining"] is None


def test_a_run_of_several_stores_says_which_one_it_is_judged_on(run, parts, tmp_path):
    second = tmp_path / "second"
    shutil.copytree(parts / "store", second)
    recipe = recipes.load(run / "recipe.yaml", FinetuneRecipe)
    data = recipe.data.model_copy(update={"stores": [str(parts / "store"), str(second)]})
    copy = _copy_with(run, tmp_path / "run", data=data)
    settings = PictureEvaluation(trials=4, controls=[], generation=GenerateSettings(**FAST))
    (said,) = [w for w in evaluate_run(copy, None, settings)["warnings"] if "2 stores" in w]
    assert f"judged on {parts / 'store'} alone" in said
    assert f"for {second} evaluate it again with --eeg" in said


def test_the_gallery_is_the_splits_however_few_trials_are_evaluated(run, parts):
    from ddscale.evaluation.retrieving import gallery_rows, retrieval

    pipeline, recipe = load_run(run)
    held_out = Trials(pipeline.conditioner, parts / "store", "test", None)
    trials = list(held_out)

    def found(trials, largest):
        return retrieval(recipe, pipeline, trials, held_out.pictures, 32, largest, 0)

    assert found(trials[:3], 2000)["gallery"] == found(trials, 2000)["gallery"] == 12
    rows = gallery_rows(held_out.pictures, "test", 5, 0)
    some = found(trials, 5)
    assert (some["gallery"], some["of_split"], some["queries"]) == (5, 12, 10)
    outside = [trial for trial in trials if trial.image not in rows]
    assert "allow a larger `gallery`" in found(outside, 5)["skipped"]


def test_shuffled_eeg_is_never_that_of_another_trial_of_the_same_picture(run, parts):
    from ddscale.evaluation.conditions import shuffled_trials

    pipeline, _ = load_run(run)
    trials = list(Trials(pipeline.conditioner, parts / "store", "test", None))
    pictures = np.array([trial.image for trial in trials])  # two people saw each
    for seed in range(10):
        assert (pictures[shuffled_trials(trials, seed)] != pictures).all()
