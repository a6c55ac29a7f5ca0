"""Who may import whom, and what importing costs: the rules of the house, read from the code itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "ddscale"

# room -> the rooms it may import; `recipes` is open to all but signal and store.
MAY_IMPORT = {
    "signal": set(),
    "store": set(),
    "sources": {"signal", "recipes"},
    "ingest": {"sources", "signal", "store", "recipes"},
    "stream": {"store", "signal", "recipes"},
    "models": {"recipes"},
    "training": {"stream", "models", "recipes"},
    "diffusion": {"models", "store", "stream", "training", "recipes"},
    "metrics": {"recipes"},
    "deploy": {"models", "diffusion", "signal", "recipes"},
    "evaluation": {
        "deploy",
        "diffusion",
        "ingest",
        "metrics",
        "models",
        "recipes",
        "store",
        "stream",
        "training",
    },
    "recipes": set(),
}
ENTRY_POINTS_ONLY = {"reporting", "planning"}


def _imports(path: Path) -> set[str]:
    """Rooms of ddscale that a file imports, at the top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the full name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("ddscale.")}
    return found - {"__version__"}


def _files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _room(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


@pytest.mark.parametrize("path", _files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_import_only_what_the_design_allows(path):
    room = _room(path)
    others = _imports(path) - {room}
    if room in MAY_IMPORT:
        assert others <= MAY_IMPORT[room], f"{room} must not import {sorted(others - MAY_IMPORT[room])}"
    if room not in ENTRY_POINTS_ONLY | {"cli", "launching"}:
        assert not others & ENTRY_POINTS_ONLY, f"{room} must not import {sorted(others & ENTRY_POINTS_ONLY)}"


@pytest.mark.parametrize(
    "module",
    [
        "ddscale",
        "ddscale.recipes",
        "ddscale.cli",
        "ddscale.signal",
        "ddscale.sources",
        "ddscale.store",
        "ddscale.ingest",
        "ddscale.training.settings",
        "ddscale.deploy.recipe",
        "ddscale.deploy.manifest",
        "ddscale.deploy.engines",
        "ddscale.deploy.replaying",
        "ddscale.deploy.runtime",
    ],
)
def test_importing_what_needs_no_torch_does_not_load_it(module):
    code = f"import sys, {module}; print(sorted({{'torch', 'deepspeed', 'diffusers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("folder", ["launchers", "export"])
def test_launchers_and_export_scripts_stay_thin(folder):
    for script in (PACKAGE.parent / folder).glob("*.py"):
        lines = len(script.read_text().splitlines())
        assert lines < 60, f"{script.name} has {lines} lines: move the logic into the package"
