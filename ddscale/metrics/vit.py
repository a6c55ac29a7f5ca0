"""Vision transformer that classifies ImageNet: the judge of DreamDiffusion's 50-way top-1 is its ViT-H/14.

Parameter names are those of torchvision's files, the older MLP names included.

Legend: B pictures, N tokens, D width.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from ddscale.metrics.images import resize

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=1e-6)
        self.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_width), nn.GELU(), nn.Identity(), nn.Linear(mlp_width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.self_attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class VisionTransformer(nn.Module):
    """Classifier of pictures; the defaults are ViT-H/14 at 518 pixels, as DreamDiffusion used it."""

    def __init__(
        self,
        size: int = 518,
        patch: int = 14,
        width: int = 1280,
        depth: int = 32,
        heads: int = 16,
        mlp_width: int = 5120,
        classes: int = 1000,
    ) -> None:
        super().__init__()
        self.size = size
        self.conv_proj = nn.Conv2d(3, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        layers = {f"encoder_layer_{i}": _Layer(width, heads, mlp_width) for i in range(depth)}
        self.encoder = nn.ModuleDict({"layers": nn.ModuleDict(layers), "ln": nn.LayerNorm(width, eps=1e-6)})
        self.encoder.register_parameter(
            "pos_embedding", nn.Parameter(torch.zeros(1, (size // patch) ** 2 + 1, width))
        )
        self.heads = nn.ModuleDict({"head": nn.Linear(width, classes)})

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """pictures (B, 3, H, W) floats in 0..1; returns "pool" (B, D), the class token, and "logits" (B, classes)."""
        x = resize(pictures, self.size, "bicubic").to(self.class_token)
        x = (x - x.new_tensor(_MEAN).view(1, 3, 1, 1)) / x.new_tensor(_STD).view(1, 3, 1, 1)
        tokens = self.conv_proj(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), tokens], dim=1)
        tokens = tokens + self.encoder.get_parameter("pos_embedding")
        for layer in self.encoder.get_submodule("layers").children():
            tokens = layer(tokens)
        pool = self.encoder.get_submodule("ln")(tokens[:, 0])
        return {"pool": pool, "logits": self.heads.get_submodule("head")(pool)}


def current_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's files of 2022 name the MLP's layers linear_1 and linear_2; its code since, 0 and 3."""
    new = {"1": "0", "2": "3"}
    return {
        re.sub(r"mlp\.linear_([12])\.", lambda found: f"mlp.{new[found[1]]}.", name): value
        for name, value in state.items()
    }
