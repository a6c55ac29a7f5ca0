"""Published figures of GPUs: what a run's utilisation is measured against, and what a plan reckons with."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """Figures of one kind of GPU, as published."""

    device: str
    """What CUDA's device name has, a regular expression."""
    half_flops: float
    """Dense FLOP/s of bf16 or fp16, accumulated in fp32."""
    fp32_flops: float
    """FLOP/s of float32 as torch multiplies it by default, without TF32."""
    memory_bytes: float
    link_bytes_s: float
    """Between GPUs of a node, both directions together."""
    link: str = "NVLink"
    bf16: bool = True
    """False: it has fp16 alone."""


_PCIE4, _PCIE5 = 64e9, 128e9  # 16 lanes, both directions

GPUS = {
    "a100": Gpu("A100", 312e12, 19.5e12, 80e9, 600e9),
    "h100": Gpu("G?H100", 989e12, 67e12, 80e9, 900e9),
    "h200": Gpu("G?H200", 989e12, 67e12, 141e9, 900e9),
    "b200": Gpu("B200", 2250e12, 75e12, 180e9, 1800e9),
    # From here on the figures were not compared with NVIDIA's own papers.
    # V100: SXM2, 32 GB.
    "v100": Gpu("V100", 125e12, 15.7e12, 32e9, 300e9, bf16=False),
    "gb200": Gpu("GB200", 2500e12, 80e12, 186e9, 1800e9),
    # Bridges, where these have any, join pairs: a node's collectives go over PCIe.
    "h100-pcie": Gpu("H100 PCIe", 756e12, 51e12, 80e9, _PCIE5, "PCIe"),
    "h100-nvl": Gpu("H100 NVL", 835e12, 60e12, 94e9, _PCIE5, "PCIe"),
    "a40": Gpu("A40", 149.7e12, 37.4e12, 48e9, _PCIE4, "PCIe"),
    "a10g": Gpu("A10G", 70e12, 31.2e12, 24e9, _PCIE4, "PCIe"),
    "l40s": Gpu("L40S", 362e12, 91.6e12, 48e9, _PCIE4, "PCIe"),
    "rtx3090": Gpu("RTX 3090", 71e12, 35.6e12, 24e9, _PCIE4, "PCIe"),
    "rtx4090": Gpu("RTX 4090", 165.2e12, 82.6e12, 24e9, _PCIE4, "PCIe"),
    "rtx5090": Gpu("RTX 5090", 209.5e12, 104.8e12, 32e9, _PCIE5, "PCIe"),
    "rtxa6000": Gpu("RTX A6000", 154.8e12, 38.7e12, 48e9, _PCIE4, "PCIe"),
    "rtx6000ada": Gpu("RTX 6000 Ada", 364.2e12, 91.1e12, 48e9, _PCIE4, "PCIe"),
}


def gpu_called(device: str) -> str | None:
    """The key in `GPUS` of what CUDA calls `device`; None for one that is not there."""
    found = {key: at.group() for key, gpu in GPUS.items() if (at := re.search(rf"\b{gpu.device}\b", device))}
    # The longest match decides: an "H100 PCIe" is slower than an "H100".
    return max(found, key=lambda key: len(found[key]), default=None)
