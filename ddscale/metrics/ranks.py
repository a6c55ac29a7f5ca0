"""Sharing work over ranks so that the result does not show how many there were.

Pictures are judged in blocks of a fixed size at fixed places; ranks take blocks in turn. Whoever judges a block,
the networks see the same batch, and on equal machines and thread counts round the same. Without a process group
there is one rank.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

F = TypeVar("F", bound=np.floating)


def many() -> bool:
    """Whether there are ranks to agree with."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def blocks(n: int, size: int) -> list[NDArray[np.int64]]:
    """This rank's blocks of the positions 0..n−1."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if many() else (0, 1)
    starts = range(rank * size, n, world * size)
    return [np.arange(start, min(start + size, n)) for start in starts]


def sum_of_parts(values: NDArray[F], device: torch.device) -> NDArray[F]:
    """The whole of an array of which each rank has filled its own places and left zero elsewhere."""
    if not many():
        return values
    tensor = torch.from_numpy(values).to(device)
    dist.all_reduce(tensor)
    return tensor.cpu().numpy()


def union(reasons: dict[str, str]) -> dict[str, str]:
    """What any rank cannot do, with its reason: all must leave it out, or the others wait for ever."""
    if not many():
        return reasons
    all_reasons: list[dict[str, str]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(all_reasons, reasons)
    merged = dict(reasons)
    for rank, theirs in enumerate(all_reasons):
        for name, reason in theirs.items():
            merged.setdefault(name, f"rank {rank}: {reason}")
    return merged
