"""The benchmark measures what it says: same weights, engines in turn, honest ratios."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from ddscale.deploy.benchmark.engines import check_same_weights, load_weights, torch_engines
from ddscale.deploy.benchmark.measuring import Result, Row, Settings, benchmark
from ddscale.deploy.benchmark.showing import as_table, conclusions, plot
from ddscale.deploy.benchmark.timing import interleaved
from ddscale.deploy.manifest import Manifest, SourceInfo
from ddscale.deploy.source import hash_source


def test_ways_are_called_in_turn():
    called = []
    ticks = itertools.count()
    costs = {"slow": 3, "quick": 1}

    def way(name):
        def call():
            called.append(name)
            for _ in range(costs[name] - 1):
                next(ticks)

        return call

    timed = interleaved({name: way(name) for name in costs}, rounds=5, clock=lambda: next(ticks))
    rounds = [called[2 * i : 2 * i + 2] for i in range(5)]
    assert all(sorted(names) == ["quick", "slow"] for names in rounds)
    assert len({tuple(names) for names in rounds}) == 2
    assert (timed["slow"].median_ms, timed["quick"].median_ms) == (3000, 1000)
    assert timed["slow"].rounds == 5


def test_no_round_begins_after_the_budget():
    ticks = itertools.count()
    timed = interleaved({"one": lambda: None}, rounds=50, budget_s=10, clock=lambda: next(ticks))
    assert 3 <= timed["one"].rounds < 8


@pytest.fixture(scope="module")
def result(toy_export):
    before = torch.get_num_threads()
    measured = benchmark(
        toy_export / "export", Settings(batches=(1, 2), rounds=2, threads=1, compiled=False, budget_s=0)
    )
    assert torch.get_num_threads() == before
    return measured


def test_every_engine_on_every_stage_and_picture(result):
    engines = {row.engine for row in result.rows}
    assert {"torch eager", "cpu fp32"} <= engines
    assert result.machine["threads"] == 1
    for engine in engines:
        for stage in ("eeg_encoder", "unet", "vae_decoder"):
            assert [row.pictures for row in result.find(stage, engine)] == [1, 2]
        pictures = result.find("picture", engine, pictures=1)
        assert {(row.scheduler, row.steps, row.decoder) for row in pictures} == {
            ("dpmsolver++", 4, "full"),
            ("ddim", 4, "full"),
            ("lcm", 3, "full"),
        }
    for row in result.rows:
        (eager,) = [
            other
            for other in result.find(row.stage, "torch eager", pictures=row.pictures)
            if (other.scheduler, other.steps, other.decoder) == (row.scheduler, row.steps, row.decoder)
        ]
        assert row.to_eager == pytest.approx(row.median_ms / eager.median_ms)
        assert row.quartiles_ms[0] <= row.median_ms <= row.quartiles_ms[1]
        assert row.rounds == 2


def test_engines_that_are_not_there_are_named_with_the_reason(result):
    if not torch.cuda.is_available():
        assert "CUDAExecutionProvider" in result.left_out["cuda fp32"]
    assert all(f"left out: {name}" in " ".join(conclusions(result)) for name in result.left_out)


def test_table_json_and_picture(result, tmp_path):
    console = Console(width=160, record=True, file=(tmp_path / "out").open("w"))
    console.print(as_table(result))
    text = console.export_text()
    assert text.count("torch eager") == len([row for row in result.rows if row.engine == "torch eager"])
    result.save(tmp_path / "benchmark.json")
    assert len(json.loads((tmp_path / "benchmark.json").read_text())["rows"]) == len(result.rows)
    plot(result, tmp_path / "benchmark.png")
    pixels = np.asarray(Image.open(tmp_path / "benchmark.png").convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


def test_the_speedup_is_that_of_the_fastest_single_picture():
    def row(stage, engine, ms, pictures=1):
        return Row(stage, engine, pictures, ms, (ms, ms), 3, None, "lcm", 4, "tiny")

    rows = [
        row("picture", "torch eager", 50.0),
        row("picture", "cpu fp32", 20.0),
        row("picture", "cpu fp32", 10.0, pictures=8),
        row("original", "torch eager", 1000.0),
    ]
    best, times = Result("x", {}, {}, rows).speedup_over_original()
    assert (best, times) == (rows[1], 50)
    assert Result("x", {}, {}, rows[:3]).speedup_over_original() is None


def test_other_weights_than_were_exported_are_not_compared(toy_export, tmp_path):
    export = shutil.copytree(toy_export / "export" / "fp32", tmp_path / "fp32")
    other = shutil.copytree(toy_export / "pipeline", tmp_path / "pipeline")
    manifest = json.loads((export / "manifest.json").read_text())
    manifest["source"]["path"] = str(other)
    (export / "manifest.json").write_text(json.dumps(manifest))
    from ddscale.diffusion.conditioning import EEGConditioner

    conditioner = EEGConditioner.from_pretrained(other / "conditioner")
    torch.nn.init.normal_(conditioner.projector.width.weight)
    conditioner.save_pretrained(other / "conditioner")
    settings = Settings(rounds=1, threads=1, compiled=False)
    with pytest.raises(ValueError, match="is not what eeg_encoder was exported from"):
        benchmark(export, settings)
    shutil.rmtree(other)
    with pytest.raises(FileNotFoundError, match="is not there"):
        benchmark(export, settings)
    with pytest.raises(FileNotFoundError, match=r"to_onnx\.py"):
        benchmark(tmp_path / "pipeline", settings)


def test_a_conditioner_from_another_folder_is_given_and_checked(toy_export, tmp_path):
    """As a diffusers folder that has none is exported."""
    pipeline = shutil.copytree(toy_export / "pipeline", tmp_path / "pipeline")
    conditioner = Path(shutil.move(pipeline / "conditioner", tmp_path / "conditioner"))
    manifest = Manifest.load(toy_export / "export" / "fp32")
    source = SourceInfo(str(pipeline), hash_source(pipeline), {"conditioner": hash_source(conditioner)})
    manifest = dataclasses.replace(manifest, source=source)
    with pytest.raises(ValueError, match="a conditioner from another folder: give it with --conditioner"):
        load_weights(manifest)
    weights = load_weights(manifest, str(conditioner))
    (eager,) = torch_engines(toy_export / "export" / "fp32", weights, compiled=False)
    golden = np.load(toy_export / "export" / "fp32" / "golden.npz")
    check_same_weights(eager, manifest, golden)

    other = shutil.copytree(conditioner, tmp_path / "other")
    (other / "config.json").write_text((other / "config.json").read_text() + " ")
    with pytest.raises(ValueError, match=r"--conditioner .*other is not what was exported"):
        load_weights(manifest, str(other))
    with pytest.raises(FileNotFoundError, match=r"--conditioner .*none is not there"):
        load_weights(manifest, str(tmp_path / "none"))
    with pytest.raises(ValueError, match="--tiny-decoder: nothing was exported from one"):
        load_weights(manifest, str(conditioner), str(other))


def test_the_script_takes_the_folders_that_a_recipe_names(toy_export, tmp_path):
    script = Path(__file__).resolve().parents[2] / "export" / "benchmark.py"
    options = ["--conditioner", str(tmp_path / "none"), "--no-compile"]
    done = subprocess.run(
        [sys.executable, str(script), str(toy_export / "export" / "fp32"), *options],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(script.parents[1])},
    )
    assert done.returncode == 1
    assert "error: --conditioner" in done.stderr.splitlines()[-1]
