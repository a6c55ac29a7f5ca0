"""A run's numbers: metrics.jsonl, TensorBoard, Weights & Biases, and what the run was made with.

metrics.jsonl holds one JSON object per line and each step at most once: a run that resumes from step k first
drops the rows after k, which it is about to write again.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import math
import os
import platform
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ddscale import recipes
from ddscale.training.settings import TrainingSettings, Wandb
from ddscale.training.tolerance import Tolerated, append_line

_PACKAGES = ("ddscale", "torch", "deepspeed", "numpy", "grain", "zarr", "safetensors")


class Telemetry:
    """Where rows go. Rank 0 alone has one."""

    def __init__(self, folder: Path, settings: TrainingSettings, resumed_step: int) -> None:
        """Opens the files of a run that continues after `resumed_step` (0: begins)."""
        # Libraries that write for others fail in their own ways, so of those any failure is tolerated.
        self._tolerated = Tolerated()
        self._rows = folder / "metrics.jsonl"
        truncate_rows(self._rows, resumed_step)
        self._events = folder / "tensorboard"
        self._board = _open_board(self._events, purge_step=resumed_step + 1 if resumed_step else None)
        self._wandb = _start_wandb(settings.wandb, folder, settings) if settings.wandb else None

    def write(self, row: dict[str, Any]) -> None:
        """Add one step's row. Numbers keep their full precision. What cannot be written is told once, and left out."""
        with self._tolerated(str(self._rows)):
            append_line(self._rows, json.dumps(row))
        with self._tolerated(str(self._events), Exception):
            # A writer that has failed never writes again, so the next row tries with a new one.
            board, self._board = self._board or _open_board(self._events, purge_step=None), None
            for name, value in _scalars(row):
                board.add_scalar(name, value, row["step"])
            self._board = board
        if self._wandb is not None:
            with self._tolerated("Weights & Biases", Exception):
                self._wandb.log(dict(_scalars(row)), step=row["step"])

    def close(self) -> None:
        if self._board is not None:
            with self._tolerated(str(self._events), Exception):
                self._board.close()
        if self._wandb is not None:
            with self._tolerated("Weights & Biases", Exception):
                self._wandb.finish()

    def __enter__(self) -> Telemetry:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def truncate_rows(path: Path, step: int) -> None:
    """Keep the rows up to `step`; a last line that a crash cut short goes too."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in kept)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_provenance(
    folder: Path, settings: TrainingSettings, facts: dict[str, Any], hosts: list[str]
) -> None:
    """recipe.yaml and environment.json: what the run can be repeated from.

    Raises OSError when the folder cannot be written. A resumed run adds to environment.json's `starts`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    recipes.save(settings, folder / "recipe.yaml")
    path = folder / "environment.json"
    try:
        starts = json.loads(path.read_text(encoding="utf-8"))["starts"]
    except (OSError, ValueError, KeyError):
        starts = []
    start = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "hosts": hosts,
        "git": _git_commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        **facts,
    }
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps({"starts": [*starts, start]}, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def headline(row: dict[str, Any]) -> str:
    """A row in a few words, for a progress line."""
    words = [f"loss {row['loss']:.4f}" if row["loss"] is not None else "loss not finite"]
    words.append(f"{row['samples_per_s']:.0f} samples/s")
    if row.get("mfu") is not None:
        words.append(f"MFU {row['mfu']:.0%}")
    if row["data_wait_fraction"] >= 0.05:
        words.append(f"waiting for data {row['data_wait_fraction']:.0%}")
    return ", ".join(words)


def validation_line(row: dict[str, Any]) -> str:
    """A validation in one line, its baselines beside it."""
    others = [
        f"{key.removeprefix('val_loss_').replace('_', ' ')} {row[key]:.4f}"
        for key in row
        if key.startswith("val_loss_")
    ]
    compared = f" ({', '.join(others)})" if others else ""
    return f"step {row['step']}: held-out loss {row['val_loss']:.4f}{compared}"


def host() -> str:
    """This node's name."""
    return socket.gethostname()


def _open_board(folder: Path, purge_step: int | None) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=purge_step)


def _scalars(row: dict[str, Any]) -> list[tuple[str, float]]:
    found = []
    for key, value in row.items():
        if isinstance(value, dict):
            found += [(f"{key}/{name}", float(v)) for name, v in value.items() if v is not None]
        elif value is not None and key != "step":
            found.append((key, float(value)))
    return found


def finite(value: Any) -> Any:
    """A metric as it is written: what is not finite becomes null, which JSON knows."""
    if isinstance(value, dict):
        return {key: finite(v) for key, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _start_wandb(wanted: Wandb, folder: Path, settings: TrainingSettings) -> Any:
    try:
        wandb = importlib.import_module("wandb")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "wandb is asked for by the recipe and not installed: pip install 'ddscale[wandb]', or remove `wandb:`."
        ) from error
    # The same id on every start: a resumed run continues its curve.
    marker = folder / "wandb-id"
    if not marker.is_file():
        marker.write_text(wandb.util.generate_id(), encoding="utf-8")
    return wandb.init(
        project=wanted.project,
        entity=wanted.entity,
        name=wanted.name or folder.name,
        mode=wanted.mode,
        id=marker.read_text(encoding="utf-8"),
        resume="allow",
        dir=str(folder),
        config=settings.model_dump(mode="json"),
    )


def _git_commit() -> str | None:
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=here, capture_output=True, text=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
