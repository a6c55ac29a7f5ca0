"""A store of the real recordings that pretraining is proven on, built once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from launching import ROOT


@pytest.fixture(scope="session")
def gtec_store(shared, tmp_path_factory) -> Path:
    """The nine gtec8-ssvep recordings through their shipped ingest recipe, two people held out."""
    store = tmp_path_factory.mktemp("gtec") / "store"
    command = [
        sys.executable, "-m", "ddscale.cli", "ingest", str(ROOT / "recipes" / "ingest" / "gtec-ssvep.yaml"),
        "--set", f"out={store}", "--set", f"sources.0.folder={shared / 'eeg'}",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return store
