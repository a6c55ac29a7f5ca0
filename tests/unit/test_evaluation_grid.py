"""Grids: which runs there are, what happens to those that fail, stop or are finished, and what is compared."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from ddscale import recipes
from ddscale.cli import recipe_model
from ddscale.evaluation import grid
from ddscale.evaluation.comparison import measure
from ddscale.evaluation.grid import run_grid
from ddscale.evaluation.grid_recipe import GridRecipe
from ddscale.recipes import Settings

ROOT = Path(__file__).resolve().parents[2]
METRICS = {"loss": "loss", "score": "evaluation/found.json#/by/a~1b/0"}


class Trained(Settings):
    """Stands for a stage's settings."""

    stage: str
    run: str
    steps: int = 3
    lr: float = 1.0
    seed: int = 0
    fail: bool = False


# Does what training leaves behind: a row per step, and a result.
TRAINING = """
import json, pathlib, sys, yaml
recipe = yaml.safe_load(open(sys.argv[1]))
print("trained", recipe["lr"], recipe.get("seed"))
if recipe.get("fail"):
    sys.exit("error: the loss went through the roof")
run = pathlib.Path(recipe["run"])
with open(run / "metrics.jsonl", "a") as rows:
    for step in range(1, recipe["steps"] + 1 - recipe.get("stops_early", 0)):
        rows.write(json.dumps({"step": step, "loss": recipe["lr"] + recipe.get("seed", 0)}) + chr(10))
(run / "evaluation").mkdir(exist_ok=True)
(run / "evaluation" / "found.json").write_text(json.dumps({"by": {"a/b": [recipe["lr"] * 2]}}))
"""


# 130: the grid ended by KeyboardInterrupt and left the handler of SIGTERM as it was.
STOPPED = """
import signal, sys
sys.path.insert(0, sys.argv[1])
import test_evaluation_grid as tests
tests.grid.launch_command = lambda recipe, script, tree: [sys.executable, str(script), str(tree)]
before = signal.getsignal(signal.SIGTERM)
try:
    tests.run(tests.grid_of(variants={"a": [], "b": []}))
except KeyboardInterrupt:
    sys.exit(130 if signal.getsignal(signal.SIGTERM) is before else 1)
"""


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with a base recipe, where training is a script of a few lines that needs no launcher."""
    (tmp_path / "launchers").mkdir()
    (tmp_path / "launchers" / "pretrain.py").write_text(TRAINING)
    (tmp_path / "base.yaml").write_text("stage: pretrain\nrun: nowhere\nlr: 1.0\nsteps: 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        grid, "launch_command", lambda recipe, script, tree: [sys.executable, str(script), str(tree)]
    )
    return tmp_path


def grid_of(**given) -> GridRecipe:
    tree = {"stage": "grid", "out": "grid", "base": "base.yaml", "metrics": METRICS, **given}
    return recipes.check(tree, GridRecipe, "grid.yaml")


def run(recipe: GridRecipe, said: list[str] | None = None) -> dict:
    return run_grid(recipe, lambda stage: Trained, [].append if said is None else said.append)


def test_runs_are_variants_times_axes_times_seeds_with_their_overrides_in_order():
    recipe = grid_of(
        variants={"small": ["width=2"], "large": []},
        axes={"a.mask_ratio": [0.1, 0.5], "kind": ["x/y"]},
        seeds=[3, 4],
        seed_keys=["seed", "data.seed"],
        overrides=["steps=5"],
    )
    runs = recipe.runs()
    assert [r.run_name for r in runs][:3] == [
        "small,mask_ratio=0.1,kind=x-y-seed3",
        "small,mask_ratio=0.1,kind=x-y-seed4",
        "small,mask_ratio=0.5,kind=x-y-seed3",
    ]
    assert len(runs) == 8
    assert runs[0].overrides == (
        "steps=5", "width=2", "a.mask_ratio=0.1", 'kind="x/y"', "seed=3", "data.seed=3",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "nothing varies"),
        ({"variants": {"a/b": []}}, "becomes a folder"),
        ({"variants": {"a": ["steps"]}}, "key.path=value"),
        ({"variants": {"a": ["run=here"]}}, "its folder"),
        ({"axes": {"lr": []}}, "no values"),
        ({"axes": {"seed": [1]}, "seeds": [1]}, "varied by `seeds` already"),
        ({"axes": {"k": ["x/y", "x y"]}}, "two runs would be called 'k=x-y'"),
    ],
)
def test_grids_that_cannot_be_meant_are_refused(given, said):
    with pytest.raises(recipes.RecipeError, match=said):
        grid_of(**given)


def test_every_variants_recipe_is_checked_before_anything_starts(place):
    recipe = grid_of(variants={"good": [], "bad": ["lr=fast"], "worse": ["speed=1"]})
    with pytest.raises(recipes.RecipeError) as caught:
        run(recipe)
    assert "variant bad" in str(caught.value)
    assert "variant worse" in str(caught.value)
    assert not (place / "grid").exists()


def test_a_failure_is_reported_and_the_others_go_on_and_finished_runs_are_not_repeated(place):
    recipe = grid_of(variants={"broken": ["fail=true"], "fine": ["lr=2.0"]}, seeds=[0, 10])
    found = run(recipe)
    assert not found["ok"]
    assert [(r["variant"], r["seed"], r["state"]) for r in found["runs"]] == [
        ("broken", 0, "failed"),
        ("broken", 10, "failed"),
        ("fine", 0, "finished"),
        ("fine", 10, "finished"),
    ]
    assert "exit code 1: error: the loss went through the roof" in found["runs"][0]["detail"]
    assert found["variants"]["fine"]["loss"] == {"mean": 7.0, "sd": pytest.approx(50**0.5), "n": 2, "of": 2}
    assert found["variants"]["broken"]["loss"] == {"mean": None, "sd": None, "n": 0, "of": 2}

    assert json.loads((place / "grid" / "comparison.json").read_text()) == found
    with (place / "grid" / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["loss"] for row in rows] == ["", "", "2.0", "12.0"]
    assert [row["score"] for row in rows] == ["", "", "4.0", "4.0"]

    again = run(recipe)
    assert [r["state"] for r in again["runs"]] == ["failed", "failed", "finished before", "finished before"]
    assert again["variants"] == found["variants"]
    assert (place / "grid" / "fine-seed0.log").read_text().count("trained") == 1
    assert (place / "grid" / "broken-seed0.log").read_text().count("trained") == 2


def test_a_run_that_was_stopped_early_is_not_finished_and_one_with_other_settings_not_taken_for_this_one(
    place,
):
    (place / "base.yaml").write_text("stage: pretrain\nrun: nowhere\nlr: 1.0\nsteps: 3\n")
    recipe = grid_of(variants={"a": []})
    script = place / "launchers" / "pretrain.py"
    script.write_text(TRAINING.replace('recipe.get("stops_early", 0)', "1"))
    found = run(recipe)
    assert found["runs"][0]["state"] == "stopped"
    assert "after 2 of 3 steps" in found["runs"][0]["detail"]
    assert not found["ok"]
    script.write_text(TRAINING)
    assert run(recipe)["runs"][0]["state"] == "finished"
    changed = run(grid_of(variants={"a": ["lr=5.0"]}))
    assert changed["runs"][0]["state"] == "failed"
    assert "trained with other settings" in changed["runs"][0]["detail"]


def test_a_stopped_grid_stops_its_run_first_and_waits_for_its_checkpoint(place):
    (place / "launchers" / "pretrain.py").write_text("""
import pathlib, time
try:
    pathlib.Path("started").touch()
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(0.3)
    pathlib.Path("checkpoint").touch()
""")

    # In a process of its own, as a grid is: see test_training_faults.py on signals after other tests.
    stopped = subprocess.Popen([sys.executable, "-c", STOPPED, str(Path(__file__).parent)], cwd=place)
    deadline = time.monotonic() + 60
    while not (place / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.1)
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait(60) == 130
    assert (place / "checkpoint").exists()
    assert not (place / "grid" / "b").exists()


def test_commands_follow_once_and_their_failure_does_not_train_again(place):
    recipe = grid_of(variants={"a": []}, then=[["inspect", "{run}"]])  # a run is no store: the command fails
    found = run(recipe)
    assert found["runs"][0]["state"] == "failed"
    assert "ddscale inspect ended with exit code 1: error: " in found["runs"][0]["detail"]
    misspelt = run(grid_of(variants={"a": []}, then=[["reconstruckt", "{run}"]]))
    assert "exit code 2: No such command 'reconstruckt'." in misspelt["runs"][0]["detail"]
    repaired = run(grid_of(variants={"a": []}, then=[["schema", "grid"]]))
    assert repaired["runs"][0]["state"] == "finished"
    log = (place / "grid" / "a.log").read_text()
    assert log.count("trained") == 1
    assert (
        run(grid_of(variants={"a": []}, then=[["schema", "grid"]]))["runs"][0]["state"] == "finished before"
    )


def test_a_stage_without_a_launcher_is_refused(place):
    (place / "base.yaml").write_text("stage: ingest\nout: nowhere\n")
    with pytest.raises(FileNotFoundError, match=r"launchers/ingest\.py"):
        run(grid_of(variants={"a": []}))


def test_missing_metrics_say_what_there_is(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "val_loss": 2.5}\n{"step": 2, "loss": 1.0}\n{"step": 3, "lo'
    )
    (tmp_path / "found.json").write_text('{"a": {"b": 1}, "name": "x"}')
    places = {
        "v": "val_loss",
        "w": "accuracy",
        "x": "found.json#/a/c",
        "y": "other.json#/a",
        "z": "found.json#/name",
    }
    values, missing = measure(tmp_path, places)
    assert values == {"v": 2.5, "w": None, "x": None, "y": None, "z": None}
    assert "no w: metrics.jsonl has loss, step, val_loss" in missing
    assert "no x: found.json has no 'c' (there is: b)" in missing
    assert any("other.json" in line for line in missing)
    assert "no z: found.json#/name is no number but str" in missing


def test_the_variants_recipe_is_written_where_it_can_be_repeated_from(place):
    run(grid_of(variants={"a": ["lr=2.5"]}))
    assert yaml.safe_load((place / "grid" / "a.yaml").read_text()) == {
        "stage": "pretrain", "run": "grid/a", "lr": 2.5, "steps": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    "path", sorted((ROOT / "recipes" / "grid").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_variant_of_a_shipped_grid_is_a_valid_recipe_and_its_stage_can_be_launched(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    shipped = recipes.load(path, GridRecipe)
    stage = recipes.stage_of(recipes.read(shipped.base), shipped.base)
    assert grid.launcher_of(stage).is_file()
    model = recipe_model(stage)
    resolved = {
        json.dumps(
            recipes.check(recipes.read(shipped.base, run.overrides), model, run.run_name).model_dump(
                mode="json"
            )
        )
        for run in shipped.runs()
    }
    assert len(resolved) == len(
        shipped.runs()
    )  # an override that changes nothing would compare a recipe with itself
