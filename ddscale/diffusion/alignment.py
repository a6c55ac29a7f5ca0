"""Drawing EEG embeddings to CLIP features: cosine, or contrast with the samples of all ranks.

Shape letters: B this rank's batch, G the batches of all ranks together, D feature width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def cosine_errors(predicted_BD: Tensor, target_BD: Tensor) -> Tensor:
    """1 - cosine similarity of each pair: (B,) float32."""
    return 1 - F.cosine_similarity(predicted_BD.float(), target_BD.float(), dim=1)


def contrastive_errors(
    predicted_BD: Tensor, target_BD: Tensor, identity_B: Tensor, valid_B: Tensor, temperature: float
) -> Tensor:
    """Symmetric InfoNCE with the samples of all ranks as candidates: (B,) float32, 0 where not valid.

    identity_B: int64, what each target stands for (an image's number, a caption's): samples that share it are each
    other's right answer too, in equal parts, since nothing in the EEG could tell them apart.
    Every rank must call it with equally many samples. The sum of all ranks' errors does not depend on how
    samples are dealt out to them, and its gradient reaches every rank's predictions.
    """
    predicted_BD, target_BD = (F.normalize(x.float(), dim=1) for x in (predicted_BD, target_BD))
    everyone_GD, targets_GD = _gather_with_gradient(predicted_BD), _gather_with_gradient(target_BD)
    identity_G, valid_G = _gather(identity_B), _gather(valid_B)

    right_BG = (identity_B[:, None] == identity_G) & valid_G
    share_BG = right_BG / right_BG.sum(dim=1, keepdim=True).clamp(min=1)
    error_B = torch.zeros_like(predicted_BD[:, 0])
    for own_BD, candidates_GD in ((predicted_BD, targets_GD), (target_BD, everyone_GD)):
        logits_BG = (own_BD @ candidates_GD.T) / temperature
        # A finite floor, since 0 * -inf in the product below would be NaN.
        logits_BG = logits_BG.masked_fill(~valid_G, -1e4)
        error_B = error_B - 0.5 * (share_BG * logits_BG.log_softmax(dim=1)).sum(dim=1)
    return torch.where(valid_B, error_B, 0.0)


def _several_ranks() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _gather(x: Tensor) -> Tensor:
    if not _several_ranks():
        return x
    # gloo has no collectives for bool.
    sent = x.to(torch.uint8) if x.dtype == torch.bool else x
    parts = [torch.empty_like(sent) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, sent.contiguous())
    return torch.cat(parts).to(x.dtype)


def _gather_with_gradient(x: Tensor) -> Tensor:
    return _Gather.apply(x) if _several_ranks() else x


class _Gather(torch.autograd.Function):
    """All ranks' rows; a row's gradient is the sum of what all ranks' losses say of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        return _gather(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        start = dist.get_rank() * ctx.rows
        return total[start : start + ctx.rows]
