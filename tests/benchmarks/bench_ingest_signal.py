"""Ingest's signal processing against the usual MNE steps, at equal output: speed and peak memory.

`python tests/benchmarks/bench_ingest_signal.py` prints a table and writes bench/ingest_signal.json.

One hour of 32 channels at 256 Hz goes to 200 Hz, band-passed 0.5-75 Hz, with a notch at 50 Hz. The recording is
synthetic (1/f noise, mains hum, electrode offsets), stored as EDF. MNE: read_raw_edf, load_data, filter,
notch_filter, resample(method="polyphase"); also with resample's own default, the FFT. Ours: `process`, reading the
same file through MNE piece by piece, and the same with the quality measurement that ingest adds. Also both without
the file, from an array. Everything runs on one thread; rounds are interleaved; ratios are of medians of wall time.
Memory: each way in a process of its own, and four hours of 128 channels that are generated while they are read.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SFREQ, TARGET, BAND, LINE = 256.0, 200.0, (0.5, 75.0), 50.0
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


def synthetic(n_channels: int, n_samples: int) -> Any:
    """(C, T) µV: 1/f noise of 20 µV, 10 µV of hum, offsets of tens of mV."""
    import numpy as np

    rng = np.random.default_rng(0)
    signal = np.empty((n_channels, n_samples))
    shape = 1 / np.sqrt(np.maximum(np.fft.rfftfreq(n_samples, 1 / SFREQ), 0.5))
    hum = 10 * np.sin(2 * np.pi * LINE * np.arange(n_samples) / SFREQ)
    for row in signal:
        noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(n_samples)) * shape, n_samples)
        row[:] = 20 * noise / noise.std() + hum + rng.uniform(-2000, 2000)
    return signal


def write_edf(path: Path, seconds: int, n_channels: int) -> None:
    import edfio

    signals = [
        edfio.EdfSignal(
            row, SFREQ, label=f"EEG {index}", physical_dimension="uV", physical_range=(-3276.8, 3276.7)
        )
        for index, row in enumerate(synthetic(n_channels, int(seconds * SFREQ)))
    ]
    edfio.Edf(signals).write(path)


def mne_steps(raw: Any, method: str) -> Any:
    """(C, T) µV by MNE's methods on a Raw."""
    raw.load_data(verbose="ERROR")
    raw.filter(*BAND, n_jobs=1, verbose="ERROR")
    raw.notch_filter(LINE, n_jobs=1, verbose="ERROR")
    raw.resample(TARGET, method=method, n_jobs=1, verbose="ERROR")
    return raw


def our_steps(
    read: Callable[[int, int], Any], n_samples: int, measured: bool, sfreq: float = SFREQ
) -> list[Any]:
    """Blocks (C, T) float32 µV by the functions that ingest calls; with `measured`, cells are judged on the way."""
    from ddscale.signal.preprocessing import Preprocessing, process
    from ddscale.signal.quality import Meter, Quality

    settings = Preprocessing(sfreq=TARGET, l_freq=BAND[0], h_freq=BAND[1], notch=[LINE])
    meter = Meter(Quality(), sfreq, TARGET, LINE) if measured else None
    blocks = []
    for start, block in process(read, n_samples, sfreq, settings, on_raw=meter.add_raw if meter else None):
        if meter:
            meter.add_processed(start, block)
        blocks.append(block)
    if meter:
        meter.close_span()
        meter.judge()
    return blocks


def open_edf(path: str) -> Any:
    import mne

    return mne.io.read_raw_edf(path, preload=False, verbose="ERROR")


def our_steps_on_edf(path: str, measured: bool) -> list[Any]:
    raw = open_edf(path)
    return our_steps(lambda start, stop: raw.get_data(start=start, stop=stop) * 1e6, raw.n_times, measured)


def compare(path: str, repeats: int) -> dict[str, Any]:
    """In one process: interleaved rounds of all ways, and the largest difference away from the edges."""
    import mne
    import numpy as np

    signal = open_edf(path).get_data() * 1e6
    info = mne.create_info(len(signal), SFREQ, "eeg")
    ways: dict[str, Callable[[], Any]] = {
        "MNE, from EDF": lambda: mne_steps(open_edf(path), "polyphase"),
        "ours, from EDF": lambda: our_steps_on_edf(path, measured=False),
        "ours with quality, from EDF": lambda: our_steps_on_edf(path, measured=True),
        "MNE with FFT resampling, from EDF": lambda: mne_steps(open_edf(path), "fft"),
        "MNE, from an array": lambda: mne_steps(
            mne.io.RawArray(signal, info, copy="both", verbose="ERROR"), "polyphase"
        ),
        "ours, from an array": lambda: our_steps(
            lambda a, b: signal[:, a:b], signal.shape[1], measured=False
        ),
    }
    theirs = ways["MNE, from EDF"]().get_data() * 1e6
    found = np.concatenate(ways["ours, from EDF"](), axis=1)
    assert theirs.shape == found.shape
    edge = int(14 * TARGET)  # the two filters reach 13.2 s together
    difference = np.abs(theirs - found)
    scale = np.abs(theirs).max()
    del theirs, found
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            begin = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - begin)
    return {
        "seconds": seconds,
        "max_relative_difference": float(difference[:, edge:-edge].max() / scale),
        "max_relative_difference_at_edges": float(difference.max() / scale),
    }


def long_recording(hours: float, n_channels: int, sfreq: float) -> int:
    """Process and judge a recording that is never held whole; returns the number of samples written."""
    import numpy as np

    minute = np.random.default_rng(0).standard_normal((n_channels, int(60 * sfreq))) * 20 + 10_000

    def read(start: int, stop: int) -> Any:
        return np.take(minute, np.arange(start, stop) % minute.shape[1], axis=1)

    from ddscale.signal.preprocessing import Preprocessing, process
    from ddscale.signal.quality import Meter, Quality

    settings = Preprocessing(sfreq=TARGET, l_freq=BAND[0], h_freq=BAND[1], notch=[LINE])
    meter = Meter(Quality(), sfreq, TARGET, LINE)
    written = 0
    for start, block in process(read, int(hours * 3600 * sfreq), sfreq, settings, on_raw=meter.add_raw):
        meter.add_processed(start, block)
        written += block.shape[1]
    meter.close_span()
    meter.judge()
    return written


def peak_mib() -> float:
    """Largest resident size of this process, MiB.

    VmHWM rather than getrusage where there is one: after a fork, Linux counts the parent's peak in ru_maxrss.
    """
    import resource

    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def worker(task: str, *arguments: str) -> dict[str, Any]:
    """One task in this process; `run` starts a process for each."""
    begin = time.perf_counter()
    result: dict[str, Any] = {}
    if task == "compare":
        result = compare(arguments[0], int(arguments[1]))
    elif task == "write":
        write_edf(Path(arguments[0]), int(arguments[1]), int(arguments[2]))
    elif task == "imports":
        import mne  # noqa: F401
        import scipy.signal  # noqa: F401
    elif task == "mne":
        mne_steps(open_edf(arguments[0]), "polyphase")
    elif task == "ours":
        our_steps_on_edf(arguments[0], measured=True)
    else:
        long_recording(float(arguments[0]), int(arguments[1]), float(arguments[2]))
    return result | {"peak_mib": round(peak_mib(), 1), "wall_s": round(time.perf_counter() - begin, 2)}


def start(task: str, *arguments: object) -> dict[str, Any]:
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | ONE_THREAD | {"PYTHONPATH": str(root)}
    command = [sys.executable, __file__, "--worker", task, *map(str, arguments)]
    found = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(found.stdout.splitlines()[-1]))


def run(seconds: int = 3600, repeats: int = 7, long_hours: float = 4.0) -> dict[str, Any]:
    """Median seconds and ratios, the output's difference, and peak memory in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hour.edf"
        start("write", path, seconds, 32)
        compared = start("compare", path, repeats)
        memory = {
            "imports alone": start("imports")["peak_mib"],
            "MNE, from EDF": start("mne", path)["peak_mib"],
            "ours with quality, from EDF": start("ours", path)["peak_mib"],
        }
        long = {
            f"{long_hours:g} h, 128 channels, {sfreq:g} Hz": start("long", long_hours, 128, sfreq)
            for sfreq in (256, 1024)
        }
    median = {name: statistics.median(values) for name, values in compared["seconds"].items()}
    return {
        "recording": f"synthetic, {seconds} s, 32 channels, 256 Hz, EDF; to 200 Hz, 0.5-75 Hz, notch 50 Hz; one thread",
        "median_s": {name: round(value, 3) for name, value in median.items()},
        "all_s": {
            name: [round(value, 3) for value in values] for name, values in compared["seconds"].items()
        },
        "speedup_from_edf": round(median["MNE, from EDF"] / median["ours, from EDF"], 2),
        "speedup_from_edf_with_quality": round(
            median["MNE, from EDF"] / median["ours with quality, from EDF"], 2
        ),
        "speedup_from_array": round(median["MNE, from an array"] / median["ours, from an array"], 2),
        "max_relative_difference": compared["max_relative_difference"],
        "max_relative_difference_at_edges": compared["max_relative_difference_at_edges"],
        "peak_mib": memory,
        "long": long,
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(worker(*sys.argv[2:])))
        raise SystemExit
    result = run()
    print(result["recording"])
    for name, value in result["median_s"].items():
        print(f"  {name:<36} {value:>7.2f} s")
    for name in ("from_edf", "from_edf_with_quality", "from_array"):
        print(f"  {'speed-up ' + name.replace('_', ' '):<36} {result['speedup_' + name]:>7.2f}")
    print(f"  largest relative difference away from the edges {result['max_relative_difference']:.1e}")
    print("peak memory")
    for name, value in result["peak_mib"].items():
        print(f"  {name:<36} {value:>7.0f} MiB")
    for name, row in result["long"].items():
        print(f"  {name:<36} {row['peak_mib']:>7.0f} MiB in {row['wall_s']:.0f} s")
    target = Path("bench/ingest_signal.json")
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {target}")
