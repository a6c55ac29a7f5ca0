"""The whole loader against the page cache: windows per second of wall and of CPU time, by threads and backend.

`python tests/benchmarks/bench_stream.py` prints tables and writes bench/stream.json. Page cache warm, shuffled
windows, batches of 64. "Of limit" is windows per CPU-second (all threads together) over those of a plain preadv
loop into one buffer, in the same run. Medians of interleaved repeats.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddscale.store import ArrayRecording, Store, open_store, write_store
from ddscale.stream.device import materialise
from ddscale.stream.loader import Loader
from ddscale.stream.order import Order
from ddscale.stream.settings import Divide, StreamSettings, ZScore
from ddscale.stream.windows import WindowIndex

SFREQ, WINDOW, BATCH = 256, 512, 64
THREADS = (0, 1, 2, 3)


def signal(rng: np.random.Generator, channels: int, samples: int) -> np.ndarray:
    """(C, T) µV with the spectrum of EEG, so that it compresses as EEG does: 1/f noise of 20 µV RMS."""
    frequency = np.fft.rfftfreq(samples, 1 / SFREQ)
    shape = np.where((frequency > 0.5) & (frequency < 100), 1 / np.maximum(frequency, 0.5) ** 0.5, 0)
    noise = np.fft.irfft(np.fft.rfft(rng.normal(size=(channels, samples))) * shape, samples)
    return 20 * noise / noise.std()


def timed(work: Callable[[], int]) -> tuple[float, float]:
    """Windows per second of wall time, and of CPU time, of work that returns how many it did."""
    wall, cpu = time.perf_counter(), time.process_time()
    count = work()
    return count / (time.perf_counter() - wall), count / (time.process_time() - cpu)


def preadv_loop(store: Store, order: Order, windows: int) -> Callable[[], int]:
    """The least that could be done: one positioned read for each window, everything else prepared beforehand."""
    found = order.at(np.arange(windows)).located
    item = store.channels[found.row].astype(np.int64) * 2
    offsets = (store.table(["offset"])["offset"].to_numpy()[found.row] + found.start * item).tolist()
    paths = [store.path / store.shard_names[code] for code in store.shard[found.row]]
    buffer = [bytearray(WINDOW * int(item[0]))]

    def work() -> int:
        files = {path: os.open(path, os.O_RDONLY) for path in set(paths)}
        descriptors = [files[path] for path in paths]
        for descriptor, offset in zip(descriptors, offsets, strict=True):
            os.preadv(descriptor, buffer, offset)
        for descriptor in files.values():
            os.close(descriptor)
        return windows

    return work


def whole_loader(settings: StreamSettings, store: Store, windows: int) -> Callable[[], int]:
    def work() -> int:
        with Loader(settings, global_batch_size=BATCH, micro_batch_size=BATCH, stores=[store]) as loader:
            return sum(len(batch) for step in itertools.islice(loader, windows // BATCH) for batch in step)

    return work


def order_alone(order: Order, windows: int) -> Callable[[], int]:
    def work() -> int:
        for first in range(0, windows, BATCH):
            order.at(np.arange(first, first + BATCH))
        return windows

    return work


def run(channels: tuple[int, ...] = (20, 128), records: int = 40, repeats: int = 5) -> dict[str, Any]:
    """Everything, by channel count."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    device = []
    with tempfile.TemporaryDirectory() as folder:
        for count in channels:
            blocks = [(i * 60 * SFREQ, signal(rng, count, 60 * SFREQ)) for i in range(records)]
            recording = ArrayRecording("bench", "s1", "r1", [f"E{i + 1}" for i in range(count)], blocks)
            works: dict[str, Callable[[], int]] = {}
            for backend in ("tar", "zarr"):
                path = Path(folder) / f"{backend}{count}"
                write_store(path, [recording], sfreq=SFREQ, backend=backend)
                store = open_store(path)
                # Overlap makes the windows as many as grain permutes them; fewer are permuted by the epoch.
                settings = StreamSettings(stores=[str(path)], window_samples=WINDOW, overlap=0.9375)
                order = Order(WindowIndex([store], "train", settings), settings)
                windows = 75 * BATCH
                if backend == "tar":
                    works["preadv loop"] = preadv_loop(store, order, windows)
                    works["order alone"] = order_alone(order, windows)
                for threads in THREADS:
                    given = settings.model_copy(update={"reader_threads": threads})
                    works[f"{backend}, {threads} threads"] = whole_loader(given, store, windows)
            measured: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
            for repeat in range(repeats + 1):
                for name, work in works.items():
                    speed = timed(work)
                    if repeat:  # the first warms the page cache
                        measured[name].append(speed)
            medians = {
                name: tuple(statistics.median(column) for column in zip(*speeds, strict=True))
                for name, speeds in measured.items()
            }
            limit, ordering = medians["preadv loop"][1], medians["order alone"][1]
            rows += [
                {
                    "channels": count,
                    "reader": name,
                    "windows_per_s": round(wall),
                    "windows_per_cpu_s": round(cpu),
                    "of_limit": round(cpu / limit, 3),
                    "order_share": round(cpu / ordering, 3) if "threads" in name else None,
                }
                for name, (wall, cpu) in medians.items()
            ]
            with Loader(settings, global_batch_size=BATCH, micro_batch_size=BATCH, stores=[store]) as loader:
                (batch,) = next(loader)
                for how in (ZScore(), Divide()):
                    speeds = [
                        timed(lambda: len(materialise(batch, "cpu", store.step, 128, how)))[1]  # noqa: B023
                        for _ in range(2 * repeats)
                    ]
                    device.append(
                        {
                            "channels": count,
                            "normalisation": how.kind,
                            "us_per_window": round(1e6 / statistics.median(speeds), 1),
                        }
                    )
    return {"loader": rows, "materialise_one_cpu_thread": device, "window": WINDOW, "batch": BATCH}


if __name__ == "__main__":
    result = run()
    print(f"{'ch':>4} {'reader':<16} {'windows/s':>10} {'/CPU-s':>8} {'of limit':>9} {'order share':>12}")
    for row in result["loader"]:
        share = "" if row["order_share"] is None else f"{row['order_share']:.1%}"
        print(
            f"{row['channels']:>4} {row['reader']:<16} {row['windows_per_s']:>10} {row['windows_per_cpu_s']:>8} "
            f"{row['of_limit']:>9} {share:>12}"
        )
    for row in result["materialise_one_cpu_thread"]:
        print(
            f"{row['channels']:>4} materialise to 128, {row['normalisation']:<8} {row['us_per_window']:>8} µs/window"
        )
    target = Path("bench/stream.json")
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {target}")
