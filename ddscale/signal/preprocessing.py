"""Preprocessing (signatures first; bodies follow)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from ddscale.signal.channels import Channel

Read = Callable[[int, int], np.ndarray]


class Preprocessing(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)
    sfreq: float = 256.0
    l_freq: float | None = 0.5
    h_freq: float | None = 100.0
    notch: Literal["auto"] | list[float] | None = "auto"
    reference: Literal["as_recorded", "average"] | list[str] = "as_recorded"


class NonFinite(ValueError):
    """process met a NaN or infinity: call split_at_nonfinite and process the spans it keeps. `.sample`: where."""


class Plan:
    """What will be done to a recording of one rate: .kernel .up .down .notches .description() -> JSON-able dict."""

    def description(self) -> dict[str, Any]:
        raise NotImplementedError


def plan(settings: Preprocessing, sfreq: float, line_freq: float | None = None) -> Plan:
    """ValueError (cause + remedy) when the settings cannot serve a recording at this rate."""
    raise NotImplementedError


def process(
    read: Read,
    n_samples: int,
    sfreq: float,
    settings: Preprocessing,
    line_freq: float | None = None,
    *,
    span: tuple[int, int] | None = None,  # continuous finite stretch to process; default (0, n_samples)
    channels: Sequence[Channel]
    | None = None,  # of read's rows; needed for a reference other than as_recorded
    picks: Sequence[int] | None = None,  # rows to keep (good channels); default all
    on_raw: Callable[[int, np.ndarray], None]
    | None = None,  # called once per raw stretch (start in span, (C, T) µV)
    chunk_samples: int | None = None,  # raw samples per step; default by filter length and memory
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (start_out, block (C, T) float32 µV at settings.sfreq), start_out counted from the span's start, in order, without gaps."""
    raise NotImplementedError


def output_samples(n_samples: int, sfreq: float, settings: Preprocessing) -> int:
    """How many samples process yields for a span of n_samples."""
    raise NotImplementedError


def split_at_nonfinite(
    read: Read, span: tuple[int, int], min_samples: int, picks: Sequence[int] | None = None
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(kept, rejected) spans: kept ones are finite in all picked channels and at least min_samples long."""
    raise NotImplementedError
