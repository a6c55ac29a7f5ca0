"""Stable Diffusion 1.5's size, random weights, through both export commands as a user gives them.

    python -m pytest -m nightly tests/test_full_size_export.py -s

Each command is a process of its own, whose time and peak memory are printed and written to bench/full_size_export.json.
It needs 25 GB of disk and 16 GB of memory.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from ddscale.deploy.engines import FOLDER, EngineRecord
from ddscale.deploy.manifest import DECODER, ENCODER, UNET, Manifest

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(4 * 3600)]

ROOT = Path(__file__).resolve().parents[1]
RECIPE = "recipes/export/sd15.yaml"


@pytest.fixture
def folder(tmp_path):
    yield tmp_path
    shutil.rmtree(tmp_path)  # pytest would keep the last three


def _run(*arguments: str) -> dict[str, float]:
    """Seconds and peak memory of one command, files that it maps included."""
    began = time.monotonic()
    process = os.posix_spawn(
        sys.executable, [sys.executable, *arguments], {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    )
    _, status, usage = os.wait4(process, 0)
    assert os.waitstatus_to_exitcode(status) == 0, f"{arguments} failed, see its output above"
    return {"seconds": round(time.monotonic() - began), "peak_gib": round(usage.ru_maxrss / 2**20, 2)}


def test_sd15_exports_in_fp32_and_fp16_holds_parity_and_builds_engines(folder, monkeypatch):
    monkeypatch.chdir(ROOT)
    source, out = folder / "pipeline", folder / "export"
    measured = {}
    measured["random weights"] = _run(
        "-c",
        "import sys; from pathlib import Path; from deploying import save_sd15_pipeline; "
        "save_sd15_pipeline(Path(sys.argv[1]))",
        str(source),
    )
    measured["to_onnx, fp32 and fp16"] = _run(
        "export/to_onnx.py", RECIPE, "--set", f"source={source}", "--set", f"out={out}"
    )
    for precision in ("fp16", "fp32"):
        measured[f"to_tensorrt, {precision}"] = _run(
            "export/to_tensorrt.py", str(out / precision), "--target", "ada"
        )

    worst = {}
    for precision in ("fp32", "fp16"):
        manifest = Manifest.load(out / precision)
        manifest.check_files(out / precision)
        assert list(manifest.graphs) == [ENCODER, UNET, DECODER]
        assert manifest.graph(UNET).parameters == pytest.approx(860e6, rel=0.01)
        assert all(check.value <= check.limit for check in manifest.parity)
        for check in manifest.parity:
            name = f"{precision} {check.graph or 'end to end'}: {check.name}"
            worst[name] = {"value": check.value, "limit": check.limit}
        record = EngineRecord.load(out / precision / FOLDER / "rtx-sm89")
        assert list(record.engines) == [ENCODER, UNET, DECODER]
        for name, engine in record.engines.items():
            measured[f"engine {name}, {precision}"] = {"seconds": engine.seconds}
    results = {"measured": measured, "parity": worst}
    (ROOT / "bench").mkdir(exist_ok=True)
    (ROOT / "bench" / "full_size_export.json").write_text(json.dumps(results, indent=2) + "\n")
    print()
    for name, figures in measured.items():
        print(f"{name:40} {figures['seconds']:7.0f} s {figures.get('peak_gib', ''):>7} GiB")
    assert max(figures.get("peak_gib", 0) for figures in measured.values()) < 16
