"""Cells are the same wherever the blocks are cut."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddscale.signal.cells import CellCutter


@settings(max_examples=150, deadline=None)
@given(length=st.floats(2.0, 50.0), n_samples=st.integers(0, 400), data=st.data())
def test_cells_do_not_depend_on_blocks(length: float, n_samples: int, data: st.DataObject) -> None:
    signal = np.arange(2 * n_samples, dtype=float).reshape(2, n_samples)
    edges = [0, *sorted(data.draw(st.lists(st.integers(0, n_samples), max_size=8))), n_samples]
    cutter = CellCutter(length)
    cells: list[np.ndarray] = []
    for start, stop in itertools.pairwise(edges):
        for stack in cutter.push(start, signal[:, start:stop]):
            cells += [stack[:, k] for k in range(stack.shape[1])]
    whole = len(cells)
    cells += [stack[:, 0] for stack in cutter.rest()]
    borders = cutter.edges()
    assert cutter.n_cells == len(cells)
    assert borders[0] == 0
    assert borders[-1] == n_samples
    assert borders[: whole + 1] == [int(k * length + 0.5) for k in range(whole + 1)]
    assert len(cells) - whole <= 1
    for k, cell in enumerate(cells):
        np.testing.assert_array_equal(cell, signal[:, borders[k] : borders[k + 1]])


def test_blocks_must_follow_one_another() -> None:
    cutter = CellCutter(10)
    cutter.push(0, np.zeros((1, 15)))
    with pytest.raises(ValueError, match="15 was due"):
        cutter.push(16, np.zeros((1, 5)))


def test_an_unfinished_cell_does_not_keep_its_block_in_memory() -> None:
    cutter = CellCutter(1000)
    block = np.zeros((1, 1_000_100))
    cutter.push(0, block)
    (rest,) = cutter.rest()
    assert rest.shape == (1, 1, 100)
    assert rest.base is None or rest.base.nbytes < 10_000


def test_a_cell_needs_samples() -> None:
    with pytest.raises(ValueError, match=r"quality\.cell_s"):
        CellCutter(1.5)
