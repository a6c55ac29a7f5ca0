"""The one all-reduce of three numbers by which all ranks agree on a step, without the host waiting for it."""

from __future__ import annotations

import torch

from ddscale.training.ranks import Ranks


class Agreement:
    """What all ranks have to know of a step: the loss's denominator, whether to stop, whether data was unreadable."""

    def __init__(self, ranks: Ranks, weight: float, stop: bool, faults: int) -> None:
        on_cuda = ranks.device.type == "cuda"
        mine = torch.tensor([weight, float(stop), float(faults)], dtype=torch.float64, pin_memory=on_cuda)
        values = ranks.sum_(mine.to(ranks.device, non_blocking=on_cuda))
        self.weight = values[0]
        """Scalar float64 on the device."""
        self._copied = None
        if values.is_cuda:
            self._host = torch.empty(3, dtype=torch.float64, pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()
        else:
            self._host = values

    def read(self) -> tuple[bool, bool]:
        """(stop, faults) on the host."""
        if self._copied is not None:
            self._copied.synchronize()
        _, stop, faults = self._host.tolist()
        return stop > 0, faults > 0
