"""Reading windows from a store: both backends, and how long an inner chunk of the Zarr backend should be.

`python tests/benchmarks/bench_store.py` prints a table and writes bench/store.json. One thread, page cache warm.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from ddscale.store import ArrayRecording, Store, open_store, write_store

SFREQ, WINDOW = 256, 512
CHUNKS_S = (1.0, 2.0, 4.0, 10.0, 60.0)


def pink(rng: np.random.Generator, channels: int, samples: int) -> np.ndarray:
    """(C, T) µV: 1/f noise of 20 µV RMS between 0.5 and 100 Hz, half of it shared by all channels."""
    frequency = np.fft.rfftfreq(samples, 1 / SFREQ)
    shape = np.where((frequency > 0.5) & (frequency < 100), 1 / np.maximum(frequency, 0.5) ** 0.5, 0)
    noise = np.fft.irfft(np.fft.rfft(rng.normal(size=(channels + 1, samples))) * shape, samples)
    mixed = noise[:-1] + noise[-1:]
    return 20 * mixed / mixed.std()


def windows_per_s(store: Store, order: np.ndarray) -> float:
    """Windows read per second of CPU time into one buffer; order: (windows, 2) of row and start."""
    out_TC = np.empty((WINDOW, int(store.channels[0])), np.int16)
    pairs = order.tolist()
    begin = time.process_time()
    for row, start in pairs:
        store.read_into(row, start, start + WINDOW, out_TC)
    return len(pairs) / (time.process_time() - begin)


def run(channels: tuple[int, ...] = (20, 128), records: int = 20, repeats: int = 5) -> dict[str, Any]:
    """Windows per CPU-second in order, shuffled, and at odd starts; and bytes per stored value."""
    rng = np.random.default_rng(0)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for count in channels:
            signal = [(index * 60 * SFREQ, pink(rng, count, 60 * SFREQ)) for index in range(records)]
            recording = ArrayRecording("bench", "s1", "r1", [f"E{i + 1}" for i in range(count)], signal)
            stores = {"tar": Path(folder) / f"tar{count}"}
            write_store(stores["tar"], [recording], sfreq=SFREQ)
            for seconds in CHUNKS_S:
                name = f"zarr, {seconds:g} s chunks"
                stores[name] = Path(folder) / f"zarr{count}-{seconds:g}"
                write_store(stores[name], [recording], sfreq=SFREQ, backend="zarr", chunk_s=seconds)
            starts = np.arange(0, 60 * SFREQ, WINDOW)
            ordered = np.stack(np.meshgrid(np.arange(records), starts, indexing="ij"), -1).reshape(-1, 2)
            shuffled = rng.permutation(ordered)
            odd = shuffled[shuffled[:, 1] < 60 * SFREQ - WINDOW] + (0, 200)
            opened = {name: open_store(path) for name, path in stores.items()}
            for store in opened.values():
                windows_per_s(store, ordered)
            measured: dict[str, list[tuple[float, ...]]] = {name: [] for name in opened}
            for _ in range(repeats):  # interleaved, so that a busy moment does not fall on one of them
                for name, store in opened.items():
                    measured[name].append(
                        tuple(windows_per_s(store, order) for order in (ordered, shuffled, odd))
                    )
            for name, path in stores.items():
                speed = [statistics.median(column) for column in zip(*measured[name], strict=True)]
                size = sum(os.path.getsize(path / shard) for shard in opened[name].shard_names)
                values = records * 60 * SFREQ * count
                rows.append(
                    {
                        "channels": count,
                        "store": name,
                        "in_order": round(speed[0]),
                        "shuffled": round(speed[1]),
                        "odd_starts": round(speed[2]),
                        "bytes_per_value": round(size / values, 3),
                    }
                )
    return {"windows_per_cpu_s": rows, "window": WINDOW}


if __name__ == "__main__":
    result = run()
    print(f"{'ch':>4} {'store':<18} {'in order':>9} {'shuffled':>9} {'odd start':>9} {'B/value':>8}")
    for row in result["windows_per_cpu_s"]:
        print(
            f"{row['channels']:>4} {row['store']:<18} {row['in_order']:>9} {row['shuffled']:>9} "
            f"{row['odd_starts']:>9} {row['bytes_per_value']:>8}"
        )
    target = Path("bench/store.json")
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {target}")
