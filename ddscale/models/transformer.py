"""Pre-norm transformer blocks, initialised as DreamDiffusion's.

Every parameter is initialised by the constructor of the module that holds it and used only in that module's
own forward, so that the model can be built and run when its weights are partitioned over ranks (ZeRO-3).
Shape letters: B batch, N tokens, D width, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class XavierLinear(nn.Linear):
    """nn.Linear with Xavier-uniform weights and zero bias, as MAE initialises its transformers."""

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Attention(nn.Module):
    """Multi-head self-attention with one fused query-key-value product and PyTorch's fused attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = XavierLinear(width, 3 * width)
        self.proj = XavierLinear(width, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        B, N, D = x_BND.shape
        qkv = self.qkv(x_BND).view(B, N, 3, self.heads, D // self.heads)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))  # (B, H, N, D / H), views
        y_BHNd = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y_BHNd.transpose(1, 2).reshape(B, N, D))


class MLP(nn.Module):
    """Linear, GELU (exact, by erf), Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = XavierLinear(width, hidden)
        self.fc2 = XavierLinear(hidden, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        return self.fc2(F.gelu(self.fc1(x_BND)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width, int(width * mlp_ratio))

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        x_BND = x_BND + self.attn(self.norm1(x_BND))
        return x_BND + self.mlp(self.norm2(x_BND))


class Transformer(nn.Module):
    """A stack of blocks and the closing layer norm."""

    def __init__(
        self, width: int, depth: int, heads: int, mlp_ratio: float, activation_checkpointing: bool = False
    ) -> None:
        super().__init__()
        self.activation_checkpointing = activation_checkpointing
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D), normalised."""
        for block in self.blocks:
            if self.activation_checkpointing and torch.is_grad_enabled():
                # Nothing in a block draws random numbers, so there is no generator state to keep.
                x_BND = checkpoint(block, x_BND, use_reentrant=False, preserve_rng_state=False)
            else:
                x_BND = block(x_BND)
        return self.norm(x_BND)
