"""No evaluation is lost: neither to one that was made in another way, nor to an interruption."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from ddscale.evaluation.keeping import Keeping

FOUND = {"split": "test", "trials": 150, "examples": {"grids": {"best": "best.png"}}}


def _grids(colour: str) -> dict[str, Image.Image]:
    return {"best.png": Image.new("RGB", (2, 2), colour)}


def test_results_made_with_other_settings_are_moved_and_not_lost(tmp_path: Path):
    first = Keeping(tmp_path, {"settings": {"trials": 150}}).finish({**FOUND, "is": 1}, _grids("red"))
    assert first["earlier_results_moved_to"] is None
    second = Keeping(tmp_path, {"settings": {"trials": 8}}).finish(
        {**FOUND, "trials": 8, "is": 2}, _grids("blue")
    )
    kept = Path(second["earlier_results_moved_to"])
    assert json.loads((kept / "metrics.json").read_text()) == first
    assert Image.open(kept / "best.png").getpixel((0, 0)) == (255, 0, 0)
    assert json.loads((tmp_path / "metrics.json").read_text()) == second
    assert Image.open(tmp_path / "best.png").getpixel((0, 0)) == (0, 0, 255)
    # Back and forth: the second time the name is taken, and all four are there.
    Keeping(tmp_path, {"settings": {"trials": 150}}).finish({**FOUND, "is": 3}, _grids("red"))
    Keeping(tmp_path, {"settings": {"trials": 8}}).finish({**FOUND, "is": 4}, _grids("red"))
    held = [json.loads(path.read_text())["is"] for path in tmp_path.rglob("metrics.json")]
    assert sorted(held) == [1, 2, 3, 4]


def test_the_same_evaluation_again_takes_the_place_of_the_first(tmp_path: Path):
    for number in (1, 2):
        found = Keeping(tmp_path, {"settings": {}}).finish({**FOUND, "is": number}, {})
    assert found["earlier_results_moved_to"] is None
    assert [json.loads(path.read_text())["is"] for path in tmp_path.rglob("metrics.json")] == [2]


def test_a_file_that_is_not_json_is_kept_too(tmp_path: Path):
    (tmp_path / "metrics.json").write_text('{"half":')
    found = Keeping(tmp_path, {}).finish(FOUND, {})
    assert (Path(found["earlier_results_moved_to"]) / "metrics.json").read_text() == '{"half":'
