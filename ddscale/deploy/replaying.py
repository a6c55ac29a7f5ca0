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
    """Run every graph on its golden inputs. Returns all comparisons.

    Raises ManifestError when the folder is damaged or an output is further off than the manifest allows.
    """
    root = Path(folder)
    manifest = Manifest.load(root)
    manifest.check_files(root)
    replayed = []
    with np.load(root / manifest.golden.file) as golden:
        for name, info in manifest.graphs.items():
            inputs = {tensor.name: golden[f"{name}/{tensor.name}"] for tensor in info.inputs}
            outputs = open_graph(root, info, provider).run(inputs)
            for tensor in info.outputs:
                error = relative_l2(outputs[tensor.name], golden[f"{name}/{tensor.name}"])
                replayed.append(Replayed(name, tensor.name, error, manifest.golden.tolerances[name]))
    failed = [one for one in replayed if not one.error <= one.tolerance]
    if failed:
        shown = "; ".join(f"{f.graph}/{f.output} by {f.error:.2g} (limit {f.tolerance:.2g})" for f in failed)
        raise ManifestError(
            f"{root} on {provider} does not give its golden outputs: {shown}. Do not use it here: update driver and "
            "engine, or choose another provider or precision."
        )
    return replayed


def measure_latency(
    folder: str | os.PathLike[str], provider: str, batches: tuple[int, ...], repeats: int = 20
) -> list[Latency]:
    """Median time of each graph at each batch, from the host's memory and back."""
    root = Path(folder)
    manifest = Manifest.load(root)
    measured = []
    with np.load(root / manifest.golden.file) as golden:
        for name, info in manifest.graphs.items():
            graph = open_graph(root, info, provider)
            for batch in batches:
                inputs = {
                    tensor.name: _repeated(golden[f"{name}/{tensor.name}"], batch) for tensor in info.inputs
                }
                graph.run(inputs)
                times = []
                for _ in range(repeats):
                    began = time.perf_counter()
                    graph.run(inputs)
                    times.append(time.perf_counter() - began)
                measured.append(Latency(name, batch, 1000 * statistics.median(times)))
    return measured


def _repeated(rows: np.ndarray, batch: int) -> np.ndarray:
    return rows[np.arange(batch) % len(rows)]
