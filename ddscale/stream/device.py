"""From packed int16 windows to the model's input, on the device that trains."""
from __future__ import annotations
import torch
from ddscale.stream.collation import HostBatch
from ddscale.stream.settings import Normalisation

def materialise(batch: HostBatch, device: torch.device | str, step_uv: float, n_channels: int,
                normalisation: Normalisation) -> torch.Tensor:
    """x (B, T, n_channels) float32 on `device`, samples in the order of their positions."""
    raise NotImplementedError
