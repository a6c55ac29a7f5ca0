"""Starting training the way a user does, for tests: the deepspeed launcher, a free port, a tiny recipe."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[1]
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
    recipe: dict[str, Any],
    *sets: str,
    ranks: int = 2,
    inject: str = "",
    launcher: bool = False,
    timeout: float = 400,
) -> Finished:
    """Train to the end and return the exit code and what was said.

    launcher: by DeepSpeed's launcher, as users do; otherwise the ranks are started directly, with the environment
    the launcher would give them, which saves the time of two processes that each import torch.
    """
    with launched(recipe, *sets, ranks=ranks, inject=inject, launcher=launcher) as processes:
        deadline = time.monotonic() + timeout
        codes = [process.wait(max(1.0, deadline - time.monotonic())) for process in processes]
        return Finished(next((code for code in codes if code), 0), output_of(recipe))


@contextmanager
def launched(
    recipe: dict[str, Any], *sets: str, ranks: int = 2, inject: str = "", launcher: bool = False
) -> Iterator[list[subprocess.Popen[str]]]:
    """Running processes, in a process group of their own that is killed at the end, come what may."""
    run = Path(recipe["run"])
    run.parent.mkdir(parents=True, exist_ok=True)
    path = run.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(recipe))
    script = [
        str(ROOT / "launchers" / f"{recipe['stage']}.py"),
        str(path),
        *(part for setting in sets for part in ("--set", setting)),
    ]
    port = str(free_port())
    common = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // ranks)),
        "DDSCALE_INJECT": inject,
    }
    starts: list[tuple[list[str], dict[str, str]]]
    if launcher:
        deepspeed = str(Path(sys.executable).parent / "deepspeed")
        starts = [([deepspeed, "--num_accelerators", str(ranks), "--master_port", port, *script], {})]
    else:
        shared = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        starts = [
            ([sys.executable, *script], {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(ranks)
        ]
    processes: list[subprocess.Popen[str]] = []
    with _output(recipe).open("w") as output:
        try:
            for command, environment in starts:
                processes.append(
                    subprocess.Popen(
                        command,
                        cwd=ROOT,
                        env={**common, **environment},
                        text=True,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
            yield processes
        finally:
            for process in processes:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            # DeepSpeed leaves its buffers in shared memory, named by the port: some 140 MB for each start.
            for buffer in Path("/dev/shm").glob(f"deepspeed_*_{port}_*"):
                buffer.unlink(missing_ok=True)


def output_of(recipe: dict[str, Any]) -> str:
    """What the latest start of this recipe printed, all ranks together."""
    return _output(recipe).read_text()


def _output(recipe: dict[str, Any]) -> Path:
    return Path(recipe["run"]).with_suffix(".out")


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
