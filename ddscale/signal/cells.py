"""Cutting a streamed signal into cells of equal duration, wherever its blocks begin and end."""

from __future__ import annotations

import itertools

import numpy as np


class CellCutter:
    """Cuts one continuous span into cells; cell k is samples round(k * length) .. round((k + 1) * length).

    Shapes: C channels, K cells, T samples.
    """

    def __init__(self, samples_per_cell: float) -> None:
        """samples_per_cell: at least 2; not whole where cell duration times sampling rate is not."""
        if samples_per_cell < 2:
            raise ValueError(
                f"A cell of {samples_per_cell:g} samples cannot be judged: raise quality.cell_s."
            )
        self._length = samples_per_cell
        self._done = 0  # cells cut so far
        self._seen = 0  # samples pushed so far
        self._held: np.ndarray | None = None  # (C, .) samples of the unfinished cell

    def push(self, start: int, signal_CT: np.ndarray) -> list[np.ndarray]:
        """Take the next samples; returns finished cells as (C, K, T) arrays, each of cells of one length.

        start: position of the samples in the span. Raises ValueError when it does not follow on.
        """
        if start != self._seen:
            raise ValueError(
                f"Samples from {start} on came where {self._seen} was due: blocks must follow one another."
            )
        self._seen += signal_CT.shape[1]
        first, last = self._done, self._cells_in(self._seen)
        if last == first:
            held = signal_CT if self._held is None else np.concatenate([self._held, signal_CT], axis=1)
            self._held = held.copy()  # not a view: it would keep the whole block alive
            return []
        cells = []
        begin = self._edge(first)
        offset = start
        if self._held is not None and self._held.shape[1]:
            n_missing = self._edge(first + 1) - start
            cells.append(np.concatenate([self._held, signal_CT[:, :n_missing]], axis=1)[:, None])
            first += 1
            begin = self._edge(first)
        edges = [self._edge(k) for k in range(first, last + 1)]
        lengths = [b - a for a, b in itertools.pairwise(edges)]
        for length, group in itertools.groupby(lengths):
            count = len(list(group))
            piece_CT = signal_CT[:, begin - offset : begin - offset + count * length]
            cells.append(piece_CT.reshape(piece_CT.shape[0], count, length))
            begin += count * length
        self._held = signal_CT[:, begin - offset :].copy()
        self._done = last
        return cells

    def rest(self) -> list[np.ndarray]:
        """The unfinished last cell, (C, 1, T); nothing when the span ended with a cell."""
        held, self._held = self._held, None
        if held is None or held.shape[1] == 0:
            return []
        self._done += 1
        return [held[:, None]]

    @property
    def n_cells(self) -> int:
        """Cells cut so far; the unfinished one counts once `rest` has given it out."""
        return self._done

    def edges(self) -> list[int]:
        """Borders of the cells cut so far; the last one ends where the span ends."""
        return [min(self._edge(k), self._seen) for k in range(self._done + 1)]

    def _edge(self, k: int) -> int:
        return int(k * self._length + 0.5)

    def _cells_in(self, n_samples: int) -> int:
        k = int(n_samples / self._length)
        while self._edge(k + 1) <= n_samples:
            k += 1
        while self._edge(k) > n_samples:
            k -= 1
        return k
