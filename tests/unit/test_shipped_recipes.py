"""Every recipe in recipes/ loads and checks; the schemas that editors use are those of the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddscale import recipes
from ddscale.cli import STAGES, recipe_model

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
SHIPPED = sorted(FOLDER.glob("*/*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_shipped_recipe_is_valid_and_belongs_to_its_folder(path):
    stage = recipes.stage_of(recipes.read(path), path)
    assert stage == path.parent.name
    recipes.load(path, recipe_model(stage))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_shipped_recipe_names_its_schema_for_editors(path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first == f"# yaml-language-server: $schema=../schema/{path.parent.name}.json"


@pytest.mark.parametrize("stage", STAGES)
def test_the_schema_on_disk_is_the_codes(stage):
    on_disk = (FOLDER / "schema" / f"{stage}.json").read_text(encoding="utf-8")
    assert on_disk == recipes.json_schema(recipe_model(stage)), (
        f"recipes/schema/{stage}.json is stale: ddscale schema {stage} > recipes/schema/{stage}.json"
    )
