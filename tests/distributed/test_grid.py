"""A grid of real runs: the shipped command, DeepSpeed's launcher, reconstruction after each, one table."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from launching import ROOT, tiny_recipe, write_synthetic_store

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]


def grid(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ddscale.cli", "grid", str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_two_mask_ratios_are_trained_evaluated_and_compared(tmp_path):
    base = tiny_recipe(write_synthetic_store(tmp_path / "store"), tmp_path / "unused", steps=4)
    base |= {
        "checkpoint": {"every": 4},
        "validation": {"every": 4, "windows": 16},
        "schedule": {"warmup_steps": 1},
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    recipe = {
        "stage": "grid",
        "out": str(tmp_path / "grid"),
        "base": str(tmp_path / "base.yaml"),
        "world_size": 2,
        "axes": {"model.mask_ratio": [0.25, 0.75]},
        "then": [["reconstruct", "{run}", "--windows", "16", "--mask-ratio", "0.5"]],
        "metrics": {
            "val loss": "val_loss",
            "MSE": "evaluation/reconstruction.json#/overall/bands/all/model/mse/value",
            "MSE of lines": "evaluation/reconstruction.json#/overall/bands/all/linear interpolation/mse/value",
        },
    }
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(recipe))
    done = grid(path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mask_ratio=0.25" in done.stdout
    with (tmp_path / "grid" / "comparison.csv").open() as file:
        quarter, most = csv.DictReader(file)
    assert (quarter["variant"], quarter["state"]) == ("mask_ratio=0.25", "finished")
    assert quarter["val loss"] != most["val loss"]
    # The same windows and masks for both: what learns nothing scores the same.
    assert quarter["MSE of lines"] == most["MSE of lines"]
    for row, ratio in ((quarter, 0.25), (most, 0.75)):
        run = tmp_path / "grid" / row["variant"]
        assert yaml.safe_load((run / "recipe.yaml").read_text())["model"]["mask_ratio"] == ratio
        assert json.loads((run / "environment.json").read_text())["starts"][0]["world_size"] == 2
        assert float(row["MSE"]) > 0
