"""No evaluation is lost: neither to one that was made in another way, nor to an interruption."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ddscale.evaluation.keeping import Done, Keeping

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


def test_a_condition_is_there_again_after_an_interruption_and_gone_when_all_is_done(tmp_path: Path):
    values = {"ssim": np.array([0.1, np.nan, 1 / 3])}
    done = Done({"a": 1}, values, ["class_accuracy"], None, {"ranked_by": "ssim"}, _grids("red"))
    Keeping(tmp_path, {"settings": 1}).save("eeg", done)
    again = Keeping(tmp_path, {"settings": 1})
    read = again.done("eeg")
    assert read is not None
    np.testing.assert_array_equal(read.values["ssim"], values["ssim"])
    assert (read.result, read.proportions, read.examples) == (done.result, done.proportions, done.examples)
    assert read.grids["best.png"].getpixel((0, 0)) == (255, 0, 0)
    assert again.done("shuffled_eeg") is None
    # Other settings, weights or another store: nothing of it counts.
    other = Keeping(tmp_path, {"settings": 2})
    assert other.done("eeg") is None
    other.save("eeg", done)
    again.finish(FOUND, read.grids)
    assert again.done("eeg") is None
    assert other.done("eeg") is not None
    other.finish(FOUND, {})
    assert not (tmp_path / "unfinished").exists()


def test_a_condition_that_is_not_whole_is_drawn_again(tmp_path: Path):
    keeping = Keeping(tmp_path, {})
    keeping.save("eeg", Done({}, {}, [], None, {}, _grids("red")))
    (path,) = tmp_path.rglob("best.png")
    path.write_bytes(b"")
    assert keeping.done("eeg") is None


def test_half_precision_is_for_gpus(monkeypatch):
    from ddscale.evaluation.drawing import half_precision_of

    assert half_precision_of(torch.device("cpu")) is None
    for has, wanted in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has)
        assert half_precision_of(torch.device("cuda")) is wanted
