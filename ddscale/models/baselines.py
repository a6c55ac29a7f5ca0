"""What a model has to beat: predictions of masked tokens that learn nothing.

Shape letters: B batch, T samples, C channels, N tokens; a token is T / N consecutive samples of all channels.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor


def channel_mean(x_BTC: Tensor, masked_BN: Tensor) -> Tensor:
    """Masked samples replaced by their channel's mean over the window's visible samples.

    x_BTC: float (B, T, C); masked_BN: bool. Returns (B, T, C); a window without a visible token gives zeros.
    Raises ValueError when T is not a multiple of N.
    """
    masked_BT = _masked_samples(x_BTC, masked_BN)
    visible_BT1 = (~masked_BT)[:, :, None]
    mean_B1C = torch.where(visible_BT1, x_BTC, 0).sum(1, keepdim=True) / visible_BT1.sum(
        1, keepdim=True
    ).clamp(min=1)
    return torch.where(visible_BT1, x_BTC, mean_B1C)


def linear_interpolation(x_BTC: Tensor, masked_BN: Tensor) -> Tensor:
    """Masked samples replaced by the straight line between the visible samples on both sides of the gap.

    A gap at the window's edge continues the one visible neighbour. x_BTC: float (B, T, C); masked_BN: bool.
    Returns (B, T, C); a window without a visible token gives zeros.
    Raises ValueError when T is not a multiple of N.
    """
    masked_BT = _masked_samples(x_BTC, masked_BN)
    B, T, C = x_BTC.shape
    time_T = torch.arange(T, device=x_BTC.device)
    # The nearest visible sample at or before each one, -1 where there is none; and at or after, T where none.
    before_BT = torch.where(masked_BT, -1, time_T).cummax(dim=1).values
    after_BT = torch.where(masked_BT, T, time_T).flip(1).cummin(dim=1).values.flip(1)
    no_before_BT, no_after_BT = before_BT < 0, after_BT >= T
    left_BT = torch.where(no_before_BT, after_BT, before_BT).clamp(0, T - 1)
    right_BT = torch.where(no_after_BT, before_BT, after_BT).clamp(0, T - 1)
    rows_B1 = torch.arange(B, device=x_BTC.device)[:, None]
    weight_BT1 = ((time_T - left_BT) / (right_BT - left_BT).clamp(min=1)).to(x_BTC.dtype)[:, :, None]
    line_BTC = torch.lerp(x_BTC[rows_B1, left_BT], x_BTC[rows_B1, right_BT], weight_BT1.expand(B, T, C))
    line_BTC = torch.where(left_BT[:, :, None] == right_BT[:, :, None], x_BTC[rows_B1, left_BT], line_BTC)
    return torch.where((no_before_BT & no_after_BT)[:, :, None], 0, line_BTC)


def cubic_spline(x_BTC: Tensor, masked_BN: Tensor) -> Tensor:
    """Masked samples replaced by the cubic spline through all visible samples (not-a-knot), computed on the CPU.

    A gap at the window's edge continues the one visible neighbour: a cubic extrapolates to absurd values.
    x_BTC: float (B, T, C); masked_BN: bool. Returns (B, T, C) of x's dtype, on its device; a window without a
    visible token gives zeros, one with fewer than two visible samples their value.
    Raises ValueError when T is not a multiple of N.
    """
    masked_BT = _masked_samples(x_BTC, masked_BN).cpu().numpy()
    filled_BTC = x_BTC.detach().cpu().numpy().astype(np.float64, copy=True)
    for window_TC, masked_T in zip(filled_BTC, masked_BT, strict=True):
        visible = np.flatnonzero(~masked_T)
        if not len(visible):
            window_TC[:] = 0
            continue
        hidden = np.flatnonzero(masked_T)
        if len(visible) == 1:
            window_TC[hidden] = window_TC[visible]
            continue
        inside = np.clip(hidden, visible[0], visible[-1])
        window_TC[hidden] = CubicSpline(visible, window_TC[visible])(inside)
    return torch.from_numpy(filled_BTC).to(x_BTC)


def _masked_samples(x_BTC: Tensor, masked_BN: Tensor) -> Tensor:
    """(B, N) of tokens to (B, T) of samples."""
    samples, tokens = x_BTC.shape[1], masked_BN.shape[1]
    if samples % tokens:
        raise ValueError(
            f"{samples} samples do not divide into {tokens} tokens: mask and windows do not belong together."
        )
    return masked_BN.repeat_interleave(samples // tokens, dim=1)
