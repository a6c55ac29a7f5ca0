"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest


def pytest_configure() -> None:
    """Take Ctrl-C again where this was started in the background of a script: a shell lets such a process, and all
    that it starts, ignore it, and tests that interrupt what they start would wait in vain."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of full sizes run only when the marker is asked for by name."""
    if "nightly" in config.getoption("markexpr"):
        return
    for item in items:
        if item.get_closest_marker("nightly"):
            item.add_marker(pytest.mark.skip(reason="full size, run it with: python -m pytest -m nightly"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real recordings and weights; only tests use it, the project itself never does."""
    root = Path(__file__).resolve().parent.parent
    folder = Path(os.environ.get("DDSCALE_SHARED", root.parent / "shared")).resolve()
    if not (folder / "eeg" / "MANIFEST.tsv").is_file():
        message = (
            f"no real recordings at {folder} (set DDSCALE_SHARED to the folder that holds eeg/MANIFEST.tsv)"
        )
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return folder
