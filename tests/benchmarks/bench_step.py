"""The training step at the original's sizes, as a fraction of what a matrix product reaches here.

`python tests/benchmarks/bench_step.py [batch ...]` prints a table and writes bench/step.json. A step is dequantising
and padding (windows as the loader packs them: int16, time-major, 32, 64 and 128 channels mixed), forward, backward,
clipping and AdamW, float32, two threads. FLOP/s count 41.5 GFLOP per window, the original's; the limit is a 2048³
float32 torch.matmul timed before and after each step. Medians of the steps' own fractions. "plain" is PyTorch with
the optimiser that training uses; "zero N" is the engine that training builds, one rank.
The original's step reached 0.45, 0.66 and 0.76 at batches 8, 32 and 64 on a machine like the one this was made on.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddscale.models import MAEConfig, MaskedAutoencoder
from ddscale.stream.collation import HostBatch, pack
from ddscale.stream.device import materialise
from ddscale.stream.settings import ZScore
from ddscale.training.engine import build_engine
from ddscale.training.optimiser import make_optimiser
from ddscale.training.ranks import start
from ddscale.training.settings import PretrainRecipe

CONFIG = MAEConfig(preset="dreamdiffusion")
GFLOP_PER_WINDOW = 41.5
ORIGINAL = {8: 0.45, 32: 0.66, 64: 0.76}
STEP_UV = 0.1


def windows(batch: int) -> HostBatch:
    """A micro-batch as the loader gives it, of three montages."""
    channels = np.array([(32, 64, 128)[i % 3] for i in range(batch)])
    packing = pack(channels, CONFIG.n_samples)
    generator = torch.Generator().manual_seed(batch)
    return HostBatch(
        flat=(torch.randn(packing.size, generator=generator) * 200).to(torch.int16),
        groups=packing.groups,
        rows=torch.from_numpy(packing.rows),
        window_samples=CONFIG.n_samples,
        channels=torch.from_numpy(channels),
        positions=torch.arange(batch),
        mask_seeds=torch.arange(batch) * 7919 + 1,
        datasets=torch.zeros(batch, dtype=torch.int64),
        valid=torch.ones(batch, dtype=torch.bool),
    )


def recipe(zero_stage: int, batch: int) -> PretrainRecipe:
    return PretrainRecipe.model_validate(
        {
            "stage": "pretrain",
            "run": "unused",
            "model": CONFIG.model_dump(),
            "data": {"stores": ["unused"]},
            "global_batch_size": batch,
            "micro_batch_size": batch,
            "steps": 1,
            "optimiser": {"lr": 2.5e-4, "betas": [0.9, 0.95], "weight_decay": 0.05},
            "schedule": {"warmup_steps": 0},
            "clip": 0.8,
            "zero_stage": zero_stage,
        }
    )


def loss_of(model: Any, batch: HostBatch) -> torch.Tensor:
    x_BTC = materialise(batch, "cpu", STEP_UV, CONFIG.n_channels, ZScore())
    output = model(x_BTC, batch.mask_seeds, batch.valid)
    return output.sum_squared_error / output.masked_values


def plain_step() -> Callable[[HostBatch], None]:
    """Clipping is the optimiser's own at stage 0, in float32."""
    torch.manual_seed(0)
    model = MaskedAutoencoder(CONFIG)
    optimiser = make_optimiser(recipe(0, 8), model)

    def step(batch: HostBatch) -> None:
        loss_of(model, batch).backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def engine_step(zero_stage: int) -> Callable[[HostBatch], None]:
    ranks = start()
    engine = build_engine(recipe(zero_stage, 8), lambda: MaskedAutoencoder(CONFIG), ranks)

    def step(batch: HostBatch) -> None:
        engine.backward(loss_of(engine, batch))
        engine.step()

    return step


def matmul_gflops(a: torch.Tensor, b: torch.Tensor, times: int = 6) -> float:
    begin = time.perf_counter()
    for _ in range(times):
        a @ b
    return times * 2 * 2048**3 / (time.perf_counter() - begin) / 1e9


def run(batches: tuple[int, ...] = (8, 32, 64), repeats: int = 7) -> dict[str, Any]:
    """Rows for each way of stepping and each batch."""
    torch.set_num_threads(2)
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    rows = []
    ways: dict[str, Callable[[], Callable[[HostBatch], None]]] = {
        "plain": plain_step,
        "zero 0": lambda: engine_step(0),
        "zero 2": lambda: engine_step(2),
    }
    for way, make in ways.items():
        step = make()
        torch.set_num_threads(2)
        hosts = {batch: windows(batch) for batch in batches}
        measured: dict[int, list[tuple[float, float]]] = {batch: [] for batch in batches}
        for repeat in range(repeats + 1):
            for batch, host in hosts.items():
                before = matmul_gflops(a, b)
                begin = time.perf_counter()
                step(host)
                seconds = time.perf_counter() - begin
                limit = (before + matmul_gflops(a, b)) / 2
                if repeat:  # the first allocates the optimiser's state
                    measured[batch].append((seconds, limit))
        for batch, times in measured.items():
            seconds = statistics.median(seconds for seconds, _ in times)
            fractions = [GFLOP_PER_WINDOW * batch / seconds / limit for seconds, limit in times]
            rows.append(
                {
                    "way": way,
                    "batch": batch,
                    "windows_per_s": round(batch / seconds, 2),
                    "gflops": round(GFLOP_PER_WINDOW * batch / seconds, 1),
                    "matmul_gflops": round(statistics.median(limit for _, limit in times), 1),
                    "of_matmul": round(statistics.median(fractions), 3),
                    "spread": [round(min(fractions), 3), round(max(fractions), 3)],
                    "original_of_matmul": ORIGINAL.get(batch),
                }
            )
        del step
        gc.collect()
    return {"steps": rows, "gflop_per_window": GFLOP_PER_WINDOW, "threads": torch.get_num_threads()}


if __name__ == "__main__":
    given = tuple(int(argument) for argument in sys.argv[1:])
    result = run(given) if given else run()
    print(
        f"{'':<8} {'batch':>5} {'windows/s':>10} {'GFLOP/s':>8} {'matmul':>7} {'of matmul':>10} {'original':>9}"
    )
    for row in result["steps"]:
        print(
            f"{row['way']:<8} {row['batch']:>5} {row['windows_per_s']:>10} {row['gflops']:>8} "
            f"{row['matmul_gflops']:>7} {row['of_matmul']:>10} {row['original_of_matmul'] or '':>9}"
        )
    target = Path("bench/step.json")
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {target}")
