"""The command line as a person meets it: what it prints, and how it fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ddscale.store import ArrayRecording, open_store, write_store


def ddscale(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ddscale.cli", *map(str, arguments)], capture_output=True, text=True, cwd=cwd
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "store"
    rng = np.random.default_rng(0)
    recordings = [
        ArrayRecording(
            "lab", f"s{n}", f"s{n}-rest", ["Fp1", "Cz"], [(0, rng.normal(scale=20, size=(2, 2560)))]
        )
        for n in range(3)
    ]
    write_store(path, recordings, sfreq=256.0, val_subjects=["lab/s2"])
    return path


def test_inspect_prints_totals_and_json(store):
    shown = ddscale("inspect", store)
    assert shown.returncode == 0
    assert "3 recordings, 3 subjects" in shown.stdout
    contents = json.loads(ddscale("inspect", store, "--json").stdout)
    assert contents["datasets"]["lab"]["subjects_by_split"] == {"train": 2, "val": 1}


def test_verify_passes_then_names_a_flipped_byte(store, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    assert ddscale("verify", copy).returncode == 0
    opened = open_store(copy)
    shard = copy / opened.shard_names[0]
    offset = int(opened.table(["offset"])["offset"][0].as_py())
    with shard.open("r+b") as file:
        file.seek(offset + 100)
        byte = file.read(1)[0]
        file.seek(offset + 100)
        file.write(bytes([byte ^ 0x40]))
    broken = ddscale("verify", copy)
    assert broken.returncode == 1
    assert opened.table(["key"])["key"][0].as_py() in broken.stdout


def test_errors_are_one_line_with_a_remedy_and_no_traceback(tmp_path):
    missing = ddscale("inspect", tmp_path / "nowhere")
    assert missing.returncode == 1
    assert missing.stderr.startswith("error: No store at")
    assert "ddscale ingest" in missing.stderr
    assert "Traceback" not in missing.stderr
    recipe = tmp_path / "bad.yaml"
    recipe.write_text("stage: ingest\nout: x\nsorces: []\nworkers: many\n")
    bad = ddscale("ingest", recipe)
    assert bad.returncode == 1
    assert "3 problems" in bad.stderr
    assert "Did you mean `sources`?" in bad.stderr


def test_ingest_reports_and_exits_by_what_it_found(tmp_path):
    rng = np.random.default_rng(1)
    np.save(tmp_path / "good.npy", rng.normal(scale=20, size=(4, 256 * 20)))
    (tmp_path / "empty.npy").touch()
    recipe = tmp_path / "arrays.yaml"
    recipe.write_text(
        f"""
stage: ingest
out: {tmp_path / "store"}
workers: 0
sources:
  - {{kind: arrays, dataset: lab, folder: {tmp_path}, include: ["*.npy"], axes: CT, sfreq: 256.0,
     channels: [Fp1, Fp2, Cz, Oz], unit: uV, subject: stem}}
"""
    )
    done = ddscale("ingest", recipe)
    assert done.returncode == 1, done.stderr
    assert "quarantined: lab/empty" in done.stdout
    assert f"store: {tmp_path / 'store'}" in done.stdout
    assert open_store(tmp_path / "store").dataset_names == ["lab"]


def test_plan_and_schema_need_no_store_and_no_gpu():
    root = Path(__file__).resolve().parents[2]
    plan = ddscale(
        "plan", root / "recipes/pretrain/dreamdiffusion.yaml", "--nodes", 4, "--gpus-per-node", 8, "--json",
        "--hours", 60000, "--set", "global_batch_size=3200",
    )  # fmt: skip
    assert plan.returncode == 0, plan.stderr
    estimate = json.loads(plan.stdout)
    assert estimate["gpus"] == 32
    assert estimate["assumptions"]
    assert json.loads(ddscale("schema", "pretrain").stdout)["title"] == "PretrainRecipe"
    assert "there are ingest, pretrain" in ddscale("schema", "nonsense").stderr


def test_report_of_something_that_is_no_run(tmp_path):
    done = ddscale("report", tmp_path)
    assert done.returncode == 1
    assert "is not a run's folder" in done.stderr
