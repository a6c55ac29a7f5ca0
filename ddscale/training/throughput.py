"""How fast a run goes, and how much of the hardware's arithmetic it uses."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch

from ddscale.models.gpus import GPUS, gpu_called


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
    key = gpu_called(name)
    if key is None:
        return None, f"no entry for {name}"
    return GPUS[key].fp32_flops if precision == "fp32" else GPUS[key].half_flops, f"published figure of {key}"


def _measured_matmul(size: int = 1024, seconds: float = 0.5) -> float:
    a, b = torch.randn(size, size), torch.randn(size, size)
    torch.mm(a, b)
    best, until = 0.0, time.perf_counter() + seconds
    while (began := time.perf_counter()) < until:
        torch.mm(a, b)
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best
