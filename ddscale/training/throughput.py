"""How fast a run goes, and how much of the hardware's arithmetic it uses."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch

# Dense peak FLOP/s from the vendors' data sheets: matrix units at bf16/fp16 (no sparsity), and float32 as torch
# multiplies it by default (without TF32). Matched within the device's name, longer names first.
_PEAKS: dict[str, tuple[float, float]] = {
    "GB200": (2500e12, 80e12),
    "B200": (2250e12, 75e12),
    "H200": (989e12, 67e12),
    "H100 PCIe": (756e12, 51e12),
    "H100 NVL": (835e12, 60e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "L40S": (362e12, 91.6e12),
    "A10G": (70e12, 31.2e12),
    "RTX 4090": (165e12, 82.6e12),
    "V100": (125e12, 15.7e12),
}


class Stopwatch:
    """Time since the last row: in steps, waiting for data within them, and pauses that count as neither."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._paused = 0.0
        self._waited = 0.0
        self._pauses: dict[str, float] = {}

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    @contextlib.contextmanager
    def paused(self, by: str) -> Iterator[None]:
        """Of the pauses for each purpose `pauses` knows the seconds until it is asked."""
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - began
            self._paused += seconds
            self._pauses[by] = self._pauses.get(by, 0.0) + seconds

    def pauses(self) -> dict[str, float]:
        """Seconds of each purpose's pauses since this was asked last."""
        pauses, self._pauses = self._pauses, {}
        return pauses

    def lap(self) -> tuple[float, float]:
        """Seconds of stepping and of waiting since the last lap, and start the next."""
        now = time.perf_counter()
        seconds, waited = now - self._began - self._paused, self._waited
        self._began, self._paused, self._waited = now, 0.0, 0.0
        return seconds, waited


def peak_flops(device: torch.device, precision: str) -> tuple[float | None, str]:
    """FLOP/s one rank could reach, and where the number comes from; None for a GPU that is not in the table.

    On a CPU it is what a float32 matrix product reaches now, all ranks measuring at once: call it together.
    """
    if device.type == "cpu":
        return _measured_matmul(), "float32 matmul measured at the start of the run"
    name = torch.cuda.get_device_name(device)
    for known, (half, single) in _PEAKS.items():
        if known in name:
            return (single if precision == "fp32" else half), f"data sheet of {known}"
    return None, f"no entry for {name}"


def _measured_matmul(size: int = 1024, seconds: float = 0.5) -> float:
    a, b = torch.randn(size, size), torch.randn(size, size)
    torch.mm(a, b)
    best, until = 0.0, time.perf_counter() + seconds
    while (began := time.perf_counter()) < until:
        torch.mm(a, b)
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best
