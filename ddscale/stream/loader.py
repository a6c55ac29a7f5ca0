"""The loader: what a rank iterates over."""
from __future__ import annotations
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from ddscale.stream.collation import HostBatch
from ddscale.stream.settings import StreamSettings

class Loader:
    """Signatures first; the rest lands shortly.

    with Loader(settings, "train", global_batch_size=64, micro_batch_size=16, rank=0, world_size=2) as loader:
        loader.restore(state)                      # optional, before the first step
        for micro_batches in loader:               # list[HostBatch], endless for training
            x = materialise(batch, device, loader.step_uv, settings.n_channels, settings.normalisation)

    Attributes: settings, datasets (list[str]; HostBatch.datasets indexes it), step_uv, sfreq, windows_per_epoch,
    samples_seen (positions handed out, over all ranks), waited_s (seconds the caller waited for data, total),
    faults (list[Fault(position, dataset, record, cause)], each record once), unreadable_windows (int).
    """
    def __init__(self, settings: StreamSettings, split: str = "train", *, global_batch_size: int,
                 micro_batch_size: int, rank: int = 0, world_size: int = 1, start_position: int = 0,
                 stores: Sequence[Any] | None = None) -> None: ...
    @classmethod
    def fixed(cls, settings: StreamSettings, split: str = "val", *, windows: int, micro_batch_size: int,
              rank: int = 0, world_size: int = 1, stores: Sequence[Any] | None = None) -> Loader: ...
    def __iter__(self) -> Iterator[list[HostBatch]]: ...
    def state(self) -> dict[str, Any]: ...
    def restore(self, state: Mapping[str, Any]) -> None: ...
    def close(self) -> None: ...
