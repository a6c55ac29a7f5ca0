"""Quality (signatures first; bodies follow)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict

from ddscale.signal.survey import Survey

REASONS = ("nan", "flat", "clipped", "amplitude", "line_noise", "spectral_outlier")


class Quality(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)
    cell_s: float = 2.0


@dataclass(frozen=True)
class Cell:
    """One judged cell of a span: output samples [start, stop) counted from the span's start."""

    start: int
    stop: int
    reasons: tuple[str, ...]  # empty: keep


def bad_channels(survey: Survey, settings: Quality) -> dict[int, str]:
    """Channel index -> reason, for channels to drop from the whole recording (before process: pass the rest as picks)."""
    raise NotImplementedError


class Meter:
    """Measures a recording while it streams by, then judges its cells.

    for span in spans:
        for start, block in process(..., on_raw=meter.add_raw): meter.add_processed(start, block)
        meter.close_span()
    verdicts = meter.judge()      # per span a list of Cell
    """

    def __init__(
        self,
        settings: Quality,
        sfreq_raw: float,
        sfreq: float,
        line_freq: float | None = None,
        eeg_C: np.ndarray | None = None,  # mask over processed channels: those that count; default all
    ) -> None: ...

    def add_raw(self, start: int, raw_CT: np.ndarray) -> None: ...
    def add_processed(self, start: int, block_CT: np.ndarray) -> None: ...
    def close_span(self) -> None: ...
    def judge(self) -> list[list[Cell]]:
        raise NotImplementedError


def runs(cells: Sequence[Cell]) -> list[tuple[int, int, tuple[str, ...]]]:
    """Neighbouring cells with the same verdict joined: (start, stop, reasons)."""
    raise NotImplementedError
