"""Recipes: reading, extending, overriding, and errors that name everything at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, model_validator

from ddscale import recipes
from ddscale.cli import STAGES


class Filter(recipes.Settings):
    low_hz: float = 0.5
    """High-pass edge, Hz."""


class FileSource(recipes.Settings):
    kind: Literal["files"]
    root: str


class ArraySource(recipes.Settings):
    kind: Literal["arrays"]
    sfreq: float


class Stage(recipes.Settings):
    stage: Literal["toy"]
    batch: int
    filter: Filter = Filter()
    sources: list[Annotated[FileSource | ArraySource, Field(discriminator="kind")]] = []
    betas: list[float] = [0.9, 0.95]

    @model_validator(mode="after")
    def _positive(self) -> Stage:
        if self.batch <= 0:
            raise ValueError(f"batch is {self.batch}: give a positive number of windows")
        return self


@pytest.fixture
def write(tmp_path: Path):
    def _write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return _write


def test_defaults_overrides_and_scientific_numbers(write):
    path = write("a.yaml", "stage: toy\nbatch: 4\nfilter: {low_hz: 1e-1}\n")
    loaded = recipes.load(path, Stage, ["batch=8", "betas=[0.5, 0.6]", "filter.low_hz=2"])
    assert loaded.batch == 8
    assert loaded.betas == [0.5, 0.6]
    assert loaded.filter.low_hz == 2.0
    assert recipes.load(path, Stage).filter.low_hz == 0.1


def test_overrides_reach_into_lists_and_new_sections(write):
    path = write("a.yaml", "stage: toy\nbatch: 4\nsources:\n- {kind: files, root: here}\n")
    loaded = recipes.load(path, Stage, ["sources.0.root=there", "filter.low_hz=3.0"])
    assert loaded.sources[0].root == "there"
    assert loaded.filter.low_hz == 3.0
    with pytest.raises(recipes.RecipeError, match="not a position in a list of 1"):
        recipes.load(path, Stage, ["sources.5.root=there"])


def test_extends_merges_in_order_and_relative_to_the_file(write, tmp_path):
    (tmp_path / "sub").mkdir()
    write("base.yaml", "stage: toy\nbatch: 4\nfilter: {low_hz: 1.0}\n")
    write("other.yaml", "batch: 5\n")
    child = write("sub/child.yaml", "extends: [../base.yaml, ../other.yaml]\nfilter: {low_hz: 7.0}\n")
    loaded = recipes.load(child, Stage)
    assert (loaded.batch, loaded.filter.low_hz) == (5, 7.0)


def test_extends_in_a_circle_is_named(write):
    write("a.yaml", "extends: b.yaml\n")
    path = write("b.yaml", "extends: a.yaml\n")
    with pytest.raises(recipes.RecipeError, match="circle.*b.yaml.*a.yaml"):
        recipes.load(path, Stage)


def test_three_mistakes_are_reported_together(write):
    path = write("bad.yaml", "stage: toy\nbatch: many\nfilter: {low_hx: 1}\nbetaz: [1]\n")
    with pytest.raises(recipes.RecipeError) as caught:
        recipes.load(path, Stage)
    message = str(caught.value)
    assert "3 problems" in message
    assert "batch: Input should be a valid integer (found 'many')" in message
    assert "filter.low_hx: unknown key. Did you mean `low_hz`?" in message
    assert "betaz: unknown key. Did you mean `betas`?" in message


def test_unknown_key_inside_a_tagged_union_is_placed_and_suggested(write):
    path = write("bad.yaml", "stage: toy\nbatch: 1\nsources:\n- {kind: arrays, sfrec: 100.0}\n")
    with pytest.raises(recipes.RecipeError) as caught:
        recipes.load(path, Stage)
    assert "sources.0.sfrec: unknown key. Did you mean `sfreq`?" in str(caught.value)
    assert "sources.0.sfreq: required" in str(caught.value)


def test_a_models_own_check_is_passed_on_in_its_words(write):
    path = write("bad.yaml", "stage: toy\nbatch: -1\n")
    with pytest.raises(recipes.RecipeError, match="batch is -1: give a positive number"):
        recipes.load(path, Stage)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- 1\n", "a recipe is a mapping"),
        ("batch: [1\n", "not valid YAML"),
        ("batch: 1\nbatch: 2\n", "key written twice: batch"),
        ("batch: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
    ],
)
def test_files_that_are_not_recipes(write, text, expected):
    with pytest.raises(recipes.RecipeError, match=expected):
        recipes.load(write("x.yaml", text), Stage)


@pytest.mark.parametrize("override", ["batch", "=3", "batch=[1", "batch.x=1"])
def test_malformed_overrides_are_refused(write, override):
    path = write("a.yaml", "stage: toy\nbatch: 4\n")
    with pytest.raises(recipes.RecipeError):
        recipes.load(path, Stage, [override])


def test_a_pattern_without_its_own_quotes_gets_them_shown(write):
    path = write("a.yaml", "stage: toy\nbatch: 4\n")
    with pytest.raises(recipes.RecipeError, match=r"""--set "optimiser\.name='\*\.edf'\""""):
        recipes.load(path, Stage, ["optimiser.name=*.edf"])


def test_home_is_home_wherever_a_path_is_written(write, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write("a.yaml", "out: ~/stores/a\nsources: [{folder: ~/eeg, name: a~/b}]\n")
    assert recipes.read(path, ["run=~/runs/a"]) == {
        "out": f"{tmp_path}/stores/a",
        "sources": [{"folder": f"{tmp_path}/eeg", "name": "a~/b"}],
        "run": f"{tmp_path}/runs/a",
    }


def test_missing_file_names_the_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        recipes.load(tmp_path / "nowhere.yaml", Stage)


def test_a_saved_recipe_loads_to_the_same_settings(write, tmp_path):
    path = write("a.yaml", "stage: toy\nbatch: 4\nsources:\n- {kind: files, root: here}\n")
    first = recipes.load(path, Stage)
    recipes.save(first, tmp_path / "resolved.yaml")
    assert recipes.load(tmp_path / "resolved.yaml", Stage) == first
    assert not list(tmp_path.glob(".*.tmp"))


def test_schema_describes_fields_and_allows_extends():
    schema = json.loads(recipes.json_schema(Stage))
    assert schema["$defs"]["Filter"]["properties"]["low_hz"]["description"] == "High-pass edge, Hz."
    assert "extends" in schema["properties"]
    assert schema["additionalProperties"] is False


def test_a_recipe_of_another_stage_is_told_as_that_alone(write):
    path = write("a.yaml", "stage: ingest\nout: stores/a\nsources: []\n")
    with pytest.raises(recipes.RecipeError) as told:
        recipes.load(path, Stage)
    assert str(told.value) == (
        f"{path} is a recipe of stage `ingest`, for `ddscale ingest`; here one of stage `toy` is needed."
    )
    mistyped = write("b.yaml", "stage: tou\nbatsh: 3\n")
    with pytest.raises(
        recipes.RecipeError, match=r"(?s)3 problems.*stage: Input should be 'toy'.*batsh: unknown"
    ):
        recipes.load(mistyped, Stage)


def test_every_stage_names_the_command_it_is_for():
    assert tuple(recipes._USED_BY) == STAGES
