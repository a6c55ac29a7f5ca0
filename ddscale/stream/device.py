"""From packed integers to the model's input, on the device that trains.

B batch, n windows of one channel count, T samples, C channels of a recording.

A window's statistics are sums of whole numbers held in float64, so they are exact: neither the batch a window
is in, nor the order of a device's summation, nor the device itself changes a bit of the result. (float32 stores
are not whole numbers; there the last bits may differ between devices.)
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ddscale.stream.collation import HostBatch
from ddscale.stream.hashing import below
from ddscale.stream.settings import Normalisation, ZScore

# Values normalised at once on a CPU: with its float64 copies this stays within a core's second-level cache.
_CPU_CHUNK = 2**16


class OnDevice(NamedTuple):
    """A micro-batch where it is trained on, samples in the order of their positions."""

    x_BTC: torch.Tensor
    """What `materialise` gives."""
    mask_seeds_B: torch.Tensor
    """int64."""
    datasets_B: torch.Tensor
    """int64; 0 where there is none."""
    valid_B: torch.Tensor
    """bool."""


def materialise(
    batch: HostBatch,
    device: torch.device | str,
    step_uv: float,
    n_channels: int,
    normalisation: Normalisation,
) -> torch.Tensor:
    """Dequantise, normalise and fit to n_channels.

    step_uv: µV of one step of an int16 store; 1.0 for a float32 store.
    Returns (B, T, n_channels) float32 on `device`, samples in the order of their positions. Fewer than n_channels
    channels are tiled (channel k is the recording's k % C); of more, a contiguous run is kept whose start is a hash
    of the sample's mask seed. Invalid windows are 0. Of a trial shorter than a window only what was recorded counts in
    the normalisation; then zeros follow, or it is stretched to T samples, as the batch says.
    """
    return to_device(batch, device, step_uv, n_channels, normalisation).x_BTC


def send(values: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """`values` on the device; to a GPU from pinned memory, so that the host does not wait for what is queued there."""
    if torch.device(device).type != "cuda" or values.is_cuda:
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def to_device(
    batch: HostBatch,
    device: torch.device | str,
    step_uv: float,
    n_channels: int,
    normalisation: Normalisation,
) -> OnDevice:
    """`materialise`, and what else of the batch the device needs.

    Two copies, of the windows and of one table of numbers, both from pinned memory: the host waits for neither. (Where
    trials are shorter than a window there are more, one for each length, and it does.)
    """
    device = torch.device(device)
    B, T = len(batch), batch.window_samples
    first_B = first_channels(batch.mask_seeds, batch.channels, n_channels)
    numbers = torch.stack(
        [batch.rows, first_B, batch.mask_seeds, batch.datasets.clamp(min=0), batch.valid.long()]
    )
    on_cuda = device.type == "cuda"
    rows_B, first_B, seeds_B, datasets_B, valid_B = send(numbers, device).unbind()
    flat = batch.flat.to(device, non_blocking=on_cuda)
    if on_cuda:
        batch.in_flight = torch.cuda.Event()
        batch.in_flight.record(torch.cuda.current_stream(device))
    x_BTC = torch.empty(B, T, n_channels, dtype=torch.float32, device=device)
    for group in batch.groups:
        samples = slice(group.first, group.first + group.count)
        size = group.count * T * group.channels
        windows_nTC = flat[group.offset : group.offset + size].view(group.count, T, group.channels)
        # One montage in the batch is the usual case: its windows are already where they belong.
        together = group.count == B
        out_nTC = x_BTC if together else torch.empty(group.count, T, n_channels, device=device)
        first_n = first_B[rows_B[samples]]
        all_lengths_n = batch.lengths[batch.rows[samples]]
        chunk = max(1, _CPU_CHUNK // (T * group.channels)) if device.type == "cpu" else group.count
        for first in range(0, group.count, chunk):
            part = slice(first, first + chunk)
            kept_nTC = windows_nTC[part]
            if group.channels > n_channels:
                kept_nTC = _crop(kept_nTC, first_n[part], n_channels)
            lengths_n = all_lengths_n[part]
            if bool((lengths_n == T).all()):
                x_nTC = _normalise(kept_nTC, step_uv, normalisation)
            else:
                x_nTC = _normalise_short(kept_nTC, lengths_n, step_uv, normalisation, batch.short_trials)
            _tile(x_nTC, out_nTC[part])
        if not together:
            x_BTC.index_copy_(0, rows_B[samples], out_nTC)
    return OnDevice(x_BTC, seeds_B, datasets_B, valid_B.bool())


def _normalise(windows_nTC: torch.Tensor, step_uv: float, how: Normalisation) -> torch.Tensor:
    """Stored values (n, T, C) to normalised float32."""
    if isinstance(how, ZScore):
        exact = windows_nTC.double()
        T = exact.shape[1]
        mean = exact.sum(dim=1, keepdim=True) / T
        variance = exact.square_().sum(dim=1, keepdim=True) / T - mean.square()
        deviation = variance.clamp_(min=0).sqrt_().clamp_(min=how.eps_uv / step_uv)
        # copy: a float32 store's windows are float already, and are the loader's own buffer
        x = windows_nTC.to(torch.float32, copy=True)
        x.sub_(mean.float()).mul_(deviation.reciprocal_().float())
    else:
        x = windows_nTC.float() * (step_uv / how.by_uv)
    return x if how.clip is None else x.clamp_(-how.clip, how.clip)


def _normalise_short(
    windows_nTC: torch.Tensor, lengths_n: torch.Tensor, step_uv: float, how: Normalisation, short_trials: str
) -> torch.Tensor:
    """`_normalise` for windows of which only the first so many samples were recorded."""
    T = windows_nTC.shape[1]
    x_nTC = torch.zeros(windows_nTC.shape, dtype=torch.float32, device=windows_nTC.device)
    for length in lengths_n.unique().tolist():
        mine = (lengths_n == length).nonzero()[:, 0].to(windows_nTC.device)
        recorded = _normalise(windows_nTC[mine, :length], step_uv, how)
        if short_trials == "stretch" and length < T:
            x_nTC[mine] = stretch(recorded, T)
        else:
            x_nTC[mine, :length] = recorded
    return x_nTC


def stretch(windows_nLC: torch.Tensor, samples: int) -> torch.Tensor:
    """(n, L, C) to (n, samples, C) by linear interpolation, first and last sample kept in their places."""
    length = windows_nLC.shape[1]
    places = torch.arange(samples, dtype=torch.float64) * ((length - 1) / (samples - 1))
    before = places.long().clamp_(max=max(length - 2, 0))
    share = (places - before).float().to(windows_nLC.device)[:, None]
    before = before.to(windows_nLC.device)
    first = windows_nLC.index_select(1, before)
    second = windows_nLC.index_select(1, (before + 1).clamp(max=length - 1))
    return torch.lerp(first, second, share)


def first_channels(mask_seeds_B: torch.Tensor, channels_B: torch.Tensor, n_channels: int) -> torch.Tensor:
    """Which of a recording's channels is the model's first: 0, or where the run kept of more than n_channels begins.

    mask_seeds_B, channels_B: int64 on the CPU, as in a HostBatch. Returns (B,) int64.
    """
    places = (channels_B - n_channels + 1).clamp(min=1)
    return torch.from_numpy(below(mask_seeds_B.numpy(), places.numpy(), "channel crop"))


def _crop(windows_nTC: torch.Tensor, starts_n: torch.Tensor, n_channels: int) -> torch.Tensor:
    kept = starts_n[:, None, None] + torch.arange(n_channels, device=windows_nTC.device)
    return windows_nTC.gather(2, kept.expand(-1, windows_nTC.shape[1], -1))


def _tile(windows_nTC: torch.Tensor, out_nTC: torch.Tensor) -> None:
    """Repeat channels until out's last dimension is full: whole copies first, then the first few again."""
    channels = windows_nTC.shape[-1]
    copies, rest = divmod(out_nTC.shape[-1], channels)
    whole = copies * channels
    out_nTC[..., :whole].unflatten(-1, (copies, channels)).copy_(windows_nTC.unsqueeze(-2))
    out_nTC[..., whole:].copy_(windows_nTC[..., :rest])
