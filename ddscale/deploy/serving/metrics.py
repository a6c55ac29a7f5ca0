"""Counts and times of the service, as Prometheus' text format."""

from __future__ import annotations

import dataclasses
from collections import Counter

from ddscale.deploy.runtime import Timings

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_STAGES = ("encoder", "unet", "sampler", "decoder")


class Metrics:
    """Used from one event loop."""

    def __init__(self) -> None:
        self._answers: Counter[int] = Counter()
        self._seconds: Counter[float] = Counter()
        self._seconds_sum = 0.0
        self._stages: Counter[str] = Counter()
        self._pictures = 0
        self._unet_calls = 0

    def answered(self, status: int, seconds: float) -> None:
        """Count one request to /generate; 499: the client had gone."""
        self._answers[status] += 1
        if status == 200:
            self._seconds[next((limit for limit in _BUCKETS_S if seconds <= limit), float("inf"))] += 1
            self._seconds_sum += seconds

    def drew(self, timings: Timings) -> None:
        """Count what one call of `generate` did."""
        self._pictures += timings.pictures
        self._unet_calls += timings.unet_calls
        times = dataclasses.asdict(timings)
        for stage in _STAGES:
            self._stages[stage] += times[stage]

    def text(self, ready: bool, taken: int, places: int) -> str:
        """Everything counted so far, and the state now."""
        name = "ddscale_requests_total"
        lines = [
            f"# HELP {name} Requests to /generate by HTTP status; 499: client gone.",
            f"# TYPE {name} counter",
        ]
        lines += [f'{name}{{status="{status}"}} {count}' for status, count in sorted(self._answers.items())]
        name = "ddscale_request_seconds"
        lines += [
            f"# HELP {name} Seconds from a request's arrival to its pictures.",
            f"# TYPE {name} histogram",
        ]
        below = 0
        for limit in (*_BUCKETS_S, float("inf")):
            below += self._seconds[limit]
            lines.append(f'{name}_bucket{{le="{"+Inf" if limit == float("inf") else f"{limit:g}"}"}} {below}')
        lines += [f"{name}_sum {self._seconds_sum:.6f}", f"{name}_count {below}"]
        name = "ddscale_stage_seconds_total"
        lines += [f"# HELP {name} Seconds of drawing by stage.", f"# TYPE {name} counter"]
        lines += [f'{name}{{stage="{stage}"}} {self._stages[stage]:.6f}' for stage in _STAGES]
        for name, kind, help_, value in (
            ("ddscale_pictures_total", "counter", "Pictures drawn.", self._pictures),
            ("ddscale_unet_calls_total", "counter", "Calls of the U-Net.", self._unet_calls),
            ("ddscale_queue_taken", "gauge", "Places of the queue in use.", taken),
            ("ddscale_queue_places", "gauge", "Places of the queue.", places),
            ("ddscale_ready", "gauge", "1 when pictures can be drawn.", int(ready)),
        ):
            lines += [f"# HELP {name} {help_}", f"# TYPE {name} {kind}", f"{name} {value}"]
        return "\n".join(lines) + "\n"
