"""Killed while it takes in pictures and trials, an ingest continues and ends with the bytes of one that was not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from ingesting import contents
from paired import recipe, session, tree
from test_ingest_interrupted import KILLED

from ddscale.ingest import run
from ddscale.store import open_store, verify

MOMENTS = {
    "after a shard of pictures": ("ddscale.store.sealing", "ipc_bytes", 3, "after"),
    "while pictures are read": ("ddscale.store.images", "_packed", 5, "before"),
    "in the middle of a recording": ("ddscale.store.staging", "_encode", 20, "before"),
    "between images.parquet and the manifest": ("ddscale.store.tables", "write", 5, "after"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return session(tmp_path_factory.mktemp("session") / "data", subjects=2)


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory):
    found = {}
    for backend in ("tar", "zarr"):
        out = tmp_path_factory.mktemp("undisturbed") / backend
        run(recipe(folder, out, backend=backend))
        found[backend] = contents(out)
    return found


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_ingest_of_pictures_continues_to_the_same_bytes(folder, undisturbed, tmp_path, moment):
    backend = ("tar", "zarr")[list(MOMENTS).index(moment) % 2]
    module, function, call, when = MOMENTS[moment]
    arguments = json.dumps([tree(folder, tmp_path / "store", backend=backend), module, function, call, when])
    done = subprocess.run(
        [sys.executable, "-c", KILLED, arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    with pytest.raises(FileNotFoundError, match="Run the same `ddscale ingest` again"):
        open_store(tmp_path / "store")
    assert run(recipe(folder, tmp_path / "store", backend=backend)).ok
    assert contents(tmp_path / "store") == undisturbed[backend]
    assert verify(tmp_path / "store").problems == []
