"""An exported folder's golden inputs run again, on the machine and engine that will serve it: NumPy and the engine."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddscale.deploy.manifest import Manifest, ManifestError
from ddscale.deploy.parity import relative_l2
from ddscale.deploy.runtime.graphs import open_graph

# More than one: engines compile kernels in the first runs, and capture them as a CUDA graph in the second.
_WARM_UP = 3


@dataclass(frozen=True)
class Replayed:
    """One output beside the golden one."""

    graph: str
    output: str
    error: float
    """Relative L2, of the worst row."""
    tolerance: float


@dataclass(frozen=True)
class Latency:
    """One graph at one batch."""

    graph: str
    batch: int
    median_ms: float


def replay_golden(folder: str | os.PathLike[str], provider: str = "cpu") -> list[Replayed]:
    """Run every graph on its golden inputs, TensorRT engines in each of their profiles. Returns all comparisons.

    Raises ManifestError when the folder is damaged or an output is further off than the manifest allows.
    """
    root = Path(folder)
    manifest = Manifest.load(root)
    manifest.check_files(root)
    replayed = []
    with np.load(root / manifest.golden.file) as golden:
        for name, info in manifest.graphs.items():
            inputs = {tensor.name: golden[f"{name}/{tensor.name}"] for tensor in info.inputs}
            expected = {tensor.name: golden[f"{name}/{tensor.name}"] for tensor in info.outputs}
            graph = open_graph(root, info, provider)
            errors: dict[str, list[float]] = {tensor: [] for tensor in expected}
            rows = len(next(iter(inputs.values())))
            for number, batch in enumerate(_golden_batches(manifest, name, provider, rows)):
                # Others each time: what runs must be this input's, and small batches come to see all of them.
                taken = np.arange(number, number + batch) % rows
                outputs = graph.run({tensor: value[taken] for tensor, value in inputs.items()})
                for tensor, value in expected.items():
                    errors[tensor].append(relative_l2(outputs[tensor], value[taken]))
            for tensor, of_all in errors.items():
                worst = float(np.max(of_all))  # NaN if any is
                replayed.append(Replayed(name, tensor, worst, manifest.golden.tolerances[name]))
    failed = [one for one in replayed if not one.error <= one.tolerance]
    if failed:
        shown = "; ".join(f"{f.graph}/{f.output} by {f.error:.2g} (limit {f.tolerance:.2g})" for f in failed)
        raise ManifestError(
            f"{root} on {provider} does not give its golden outputs: {shown}. Do not use it here: update driver and "
            "engine, or choose another provider or precision."
        )
    return replayed


def _golden_batches(manifest: Manifest, graph: str, provider: str, rows: int) -> list[int]:
    """Batches to run golden rows in. Every profile of an engine has kernels of its own, so each is run; and three
    times, for what a CUDA graph has captured in the second is launched again in the third."""
    if provider != "tensorrt":
        return [rows]
    batches: list[int] = []
    before: set[int] = set()
    for profile in manifest.profiles:
        least, _, most = manifest.batches(graph, profile)
        # Of batches that several profiles hold, the first takes them.
        own = set(range(least, most + 1)) - before
        batches += [min(own, key=lambda batch: (abs(batch - rows), batch))] * 3 if own else []
        before |= own
    return batches


def measure_latency(folder: str | os.PathLike[str], provider: str, repeats: int = 20) -> list[Latency]:
    """Median time of each graph at the batch that each profile is tuned for, from the host's memory and back.

    The U-Net's batch is that with guidance, two for each picture.
    """
    root = Path(folder)
    manifest = Manifest.load(root)
    measured = []
    with np.load(root / manifest.golden.file) as golden:
        for name, info in manifest.graphs.items():
            graph = open_graph(root, info, provider)
            for batch in dict.fromkeys(manifest.batches(name, profile)[1] for profile in manifest.profiles):
                inputs = {}
                for tensor in info.inputs:
                    rows = golden[f"{name}/{tensor.name}"]
                    inputs[tensor.name] = rows[np.arange(batch) % len(rows)]
                for _ in range(_WARM_UP):
                    graph.run(inputs)
                times = []
                for _ in range(repeats):
                    began = time.perf_counter()
                    graph.run(inputs)
                    times.append(time.perf_counter() - began)
                measured.append(Latency(name, batch, 1000 * statistics.median(times)))
    return measured
