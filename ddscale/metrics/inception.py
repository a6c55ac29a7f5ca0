"""Inception-v3 as FID and Inception Score are defined on it: the TensorFlow network of 2015-12-05.

It differs from torchvision's: 1008 classes, average pools that leave the padding out of the mean, a maximum
pool in the last block, and TensorFlow 1's bilinear resize. Parameter names are those of the converted file
`pt_inception-2015-12-05-6726825d.pth`, which pytorch-fid, torch-fidelity and clean-fid share.

Legend: B pictures, H height, W width, C channels.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = 299
Kernel = int | tuple[int, int]
# A convolution of a branch: its name, output channels, kernel, stride.
Step = tuple[str, int, Kernel, int]
Pool = Literal["mean", "max", "max/2"]


class Convolution(nn.Module):
    """Convolution, batch normalisation, ReLU; with stride 1 the size stays the same unless `valid`."""

    def __init__(
        self, inputs: int, outputs: int, kernel: Kernel, stride: int = 1, valid: bool = False
    ) -> None:
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (0, 0) if valid or stride != 1 else (height // 2, width // 2)
        self.conv = nn.Conv2d(inputs, outputs, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Parallel branches, concatenated over channels, then a pooled branch.

    branches: each a chain of steps; a last element that is a list of steps forks the chain, and all its
        ends are concatenated.
    pool: 3 × 3 "mean" or "max" with stride 1, followed by a 1 × 1 convolution to `pooled` channels, or
        "max/2" with stride 2 and no convolution.
    """

    def __init__(
        self, inputs: int, branches: list[list[Step | list[Step]]], pool: Pool, pooled: int | None = None
    ) -> None:
        super().__init__()
        self.chains: list[tuple[list[str], list[str]]] = []
        for branch in branches:
            chain: list[str] = []
            fork: list[str] = []
            channels = inputs
            for step in branch:
                for name, outputs, kernel, stride in step if isinstance(step, list) else [step]:
                    self.add_module(name, Convolution(channels, outputs, kernel, stride))
                    (fork if isinstance(step, list) else chain).append(name)
                channels = 0 if isinstance(step, list) else step[1]
            self.chains.append((chain, fork))
        self.pool = pool
        self.branch_pool = Convolution(inputs, pooled, 1) if pooled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        parts = []
        for chain, fork in self.chains:
            y = x
            for name in chain:
                y = self.get_submodule(name)(y)
            parts += [self.get_submodule(name)(y) for name in fork] or [y]
        if self.pool == "mean":
            pooled = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        elif self.pool == "max":
            pooled = F.max_pool2d(x, 3, stride=1, padding=1)
        else:
            pooled = F.max_pool2d(x, 3, stride=2)
        return torch.cat([*parts, self.branch_pool(pooled)], dim=1)


def _block_a(inputs: int, pooled: int) -> Mixed:
    return Mixed(
        inputs,
        [
            [("branch1x1", 64, 1, 1)],
            [("branch5x5_1", 48, 1, 1), ("branch5x5_2", 64, 5, 1)],
            [("branch3x3dbl_1", 64, 1, 1), ("branch3x3dbl_2", 96, 3, 1), ("branch3x3dbl_3", 96, 3, 1)],
        ],
        "mean",
        pooled,
    )


def _block_b() -> Mixed:
    return Mixed(
        288,
        [
            [("branch3x3", 384, 3, 2)],
            [("branch3x3dbl_1", 64, 1, 1), ("branch3x3dbl_2", 96, 3, 1), ("branch3x3dbl_3", 96, 3, 2)],
        ],
        "max/2",
    )


def _block_c(width: int) -> Mixed:
    wide, tall = (1, 7), (7, 1)
    return Mixed(
        768,
        [
            [("branch1x1", 192, 1, 1)],
            [("branch7x7_1", width, 1, 1), ("branch7x7_2", width, wide, 1), ("branch7x7_3", 192, tall, 1)],
            [
                ("branch7x7dbl_1", width, 1, 1),
                ("branch7x7dbl_2", width, tall, 1),
                ("branch7x7dbl_3", width, wide, 1),
                ("branch7x7dbl_4", width, tall, 1),
                ("branch7x7dbl_5", 192, wide, 1),
            ],
        ],
        "mean",
        192,
    )


def _block_d() -> Mixed:
    return Mixed(
        768,
        [
            [("branch3x3_1", 192, 1, 1), ("branch3x3_2", 320, 3, 2)],
            [
                ("branch7x7x3_1", 192, 1, 1),
                ("branch7x7x3_2", 192, (1, 7), 1),
                ("branch7x7x3_3", 192, (7, 1), 1),
                ("branch7x7x3_4", 192, 3, 2),
            ],
        ],
        "max/2",
    )


def _block_e(inputs: int, pool: Pool) -> Mixed:
    return Mixed(
        inputs,
        [
            [("branch1x1", 320, 1, 1)],
            [
                ("branch3x3_1", 384, 1, 1),
                [("branch3x3_2a", 384, (1, 3), 1), ("branch3x3_2b", 384, (3, 1), 1)],
            ],
            [
                ("branch3x3dbl_1", 448, 1, 1),
                ("branch3x3dbl_2", 384, 3, 1),
                [("branch3x3dbl_3a", 384, (1, 3), 1), ("branch3x3dbl_3b", 384, (3, 1), 1)],
            ],
        ],
        pool,
        192,
    )


class InceptionV3(nn.Module):
    """FID's network: 2048 pooled features and 1008 class scores of pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3, valid=True)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3, valid=True)
        self.Mixed_5b = _block_a(192, 32)
        self.Mixed_5c = _block_a(256, 64)
        self.Mixed_5d = _block_a(288, 64)
        self.Mixed_6a = _block_b()
        self.Mixed_6b = _block_c(128)
        self.Mixed_6c = _block_c(160)
        self.Mixed_6d = _block_c(160)
        self.Mixed_6e = _block_c(192)
        self.Mixed_7a = _block_d()
        self.Mixed_7b = _block_e(1280, "mean")
        # A maximum where the paper has a mean: an oversight of the 2015 network, and part of what FID is.
        self.Mixed_7c = _block_e(2048, "max")
        self.fc = nn.Linear(2048, 1008)

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """pictures (B, 3, H, W) floats in 0..1; returns "pool" (B, 2048) and "logits" (B, 1008).

        Pictures are first rounded to 256 levels, for FID is defined on 8-bit pictures. "logits" leave the bias
        out, as the original Inception Score does.
        """
        x = (pictures * 255).round().to(self.fc.weight.dtype)
        x = (resize_as_tensorflow_1(x, SIZE) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, 3, stride=2)
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
        pool = x.mean(dim=(2, 3))
        return {"pool": pool, "logits": pool @ self.fc.weight.T}


def resize_as_tensorflow_1(x: Tensor, size: int) -> Tensor:
    """Bilinear resize to (B, C, size, size) as TensorFlow 1 did it.

    Output pixel i samples input position i · scale, not (i + ½) · scale − ½, and nothing is anti-aliased: the
    picture shifts by up to half a pixel, and FID's published values contain that.
    """
    for dim in (2, 3):
        length = x.shape[dim]
        position = torch.arange(size, device=x.device, dtype=torch.float32) * (length / size)
        low = position.long().clamp_max(length - 1)
        high = (low + 1).clamp_max(length - 1)
        weight = (position - low).to(x.dtype).view(-1, *[1] * (3 - dim))
        before = x.index_select(dim, low)
        x = before + (x.index_select(dim, high) - before) * weight
    return x
