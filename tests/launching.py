"""Starting training the way a user does, for tests: the deepspeed launcher, a free port, a tiny recipe."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[1]
LAUNCHER = ROOT / "launchers" / "pretrain.py"
TINY = {"width": 32, "depth": 2, "heads": 2, "mlp_ratio": 2.0,
        "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2, "n_channels": 16, "n_samples": 128}  # fmt: skip


def tiny_recipe(store: Path | str, run: Path, **changes: Any) -> dict[str, Any]:
    """A recipe of a model that does a step in milliseconds; `changes` replace top-level keys."""
    return {
        "stage": "pretrain",
        "run": str(run),
        "model": TINY,
        "data": {"stores": [str(store)], "window_samples": 128, "n_channels": 16, "reader_threads": 1},
        "global_batch_size": 16,
        "micro_batch_size": 4,
        "steps": 12,
        "schedule": {"warmup_steps": 4},
        "optimiser": {"lr": 1e-3},
        "log_every": 1,
        "checkpoint": {"every": 6, "keep": 2},
        "validation": {"every": 6, "windows": 21},
        **changes,
    }


def write_synthetic_store(
    path: Path,
    subjects: tuple[str, ...] = ("anna", "ben", "carl"),
    held_out: tuple[str, ...] = ("four/carl", "twenty/carl"),
) -> Path:
    """Two datasets of 4 and 20 channels, three subjects each, one of each held out: oscillations in 1/f noise."""
    from ddscale.store import ArrayRecording, write_store

    rng = np.random.default_rng(5)
    seconds = np.arange(40 * 128) / 128
    recordings = []
    for dataset, channels in (("four", 4), ("twenty", 20)):
        for subject in subjects:
            noise = np.cumsum(rng.normal(size=(channels, len(seconds))), axis=1)
            noise -= noise.mean(axis=1, keepdims=True)
            waves = 30 * np.sin(2 * np.pi * 10 * seconds + rng.uniform(0, 6, size=(channels, 1)))
            names = [f"E{number + 1}" for number in range(channels)]
            recordings.append(
                ArrayRecording(dataset, subject, f"{subject}-rest", names, [(0, noise + waves)])
            )
    write_store(path, recordings, sfreq=128.0, val_subjects=held_out)
    return path


@dataclass
class Finished:
    """A launched run that has ended."""

    code: int
    output: str

    def succeeded(self) -> Finished:
        assert self.code == 0, self.output
        return self


def launch(
    recipe: dict[str, Any] | Path,
    *sets: str,
    ranks: int = 2,
    inject: str = "",
    environment: dict[str, str] | None = None,
    timeout: float = 240,
) -> Finished:
    """Run the pretraining launcher to its end and return its exit code and what it said."""
    with launched(recipe, *sets, ranks=ranks, inject=inject, environment=environment) as process:
        output, _ = process.communicate(timeout=timeout)
    return Finished(process.returncode, output)


@contextmanager
def launched(
    recipe: dict[str, Any] | Path,
    *sets: str,
    ranks: int = 2,
    inject: str = "",
    environment: dict[str, str] | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """A running launcher, in a process group of its own that is killed at the end, come what may."""
    if isinstance(recipe, dict):
        path = Path(recipe["run"]).with_suffix(".yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(recipe))
    else:
        path = recipe
    command = [
        str(Path(sys.executable).parent / "deepspeed"), "--num_accelerators", str(ranks),
        "--master_port", str(free_port()), str(LAUNCHER), str(path),
    ]  # fmt: skip
    for setting in sets:
        command += ["--set", setting]
    cores = len(os.sched_getaffinity(0))
    variables = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": str(max(1, cores // ranks)),
        "DDSCALE_INJECT": inject,
        **(environment or {}),
    }
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=variables,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rows(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl of a run."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def curve(run: Path) -> list[tuple[int, float, float, float]]:
    """What must not depend on when a run was interrupted: step, loss, gradient norm, learning rate."""
    return [(row["step"], row["loss"], row["grad_norm"], row["lr"]) for row in rows(run)]
