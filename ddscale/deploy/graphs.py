"""What each ONNX graph computes, as a module of PyTorch with float32 inputs and outputs whatever is inside.

Shape letters: B batch, C channels of a recording, T samples, L and W a condition's length and width, N and D an
encoder's tokens and width, c, h, w a latent's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ddscale.deploy.manifest import DECODER, ENCODER, TINY_DECODER, UNET
from ddscale.deploy.source import Source, WindowFacts
from ddscale.diffusion.codec import LatentCodec
from ddscale.diffusion.conditioning import EEGConditioner
from ddscale.diffusion.pipeline import EEGToImagePipeline
from ddscale.models import EEGEncoder

# Native attention (23) builds in TensorRT-RTX for half precision and heads of 40 to 256 alone; everywhere else it
# has to be written out, as in opsets up to 22.
_WRITTEN_OUT, _NATIVE_ATTENTION = 20, 23


@dataclass(frozen=True)
class Part:
    """One graph to be: its module, what goes in and comes out, and how exact it has to be."""

    name: str
    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    draw: Callable[[int, torch.Generator], dict[str, Tensor]]
    """Inputs for a batch, as they occur in use."""
    tolerance: float
    """Relative L2 that ONNX Runtime may differ by from PyTorch, both in fp32."""
    native_attention: bool
    """Whether its heads are of a width that native attention can be built for."""

    def opset(self, half: bool) -> int:
        """ONNX opset to export with."""
        return _NATIVE_ATTENTION if half and self.native_attention else _WRITTEN_OUT


class Normaliser(nn.Module):
    """µV (B, C, T) to what encoders are trained on (B, T, channels): scaled as the stream does, channels repeated."""

    channel: Tensor

    def __init__(self, windows: WindowFacts, n_channels: int) -> None:
        """Raises ValueError for a normalisation that is not known."""
        super().__init__()
        how = windows.normalisation or {"kind": "none"}
        self.kind, self.clip = how.get("kind"), how.get("clip")
        if self.kind not in ("zscore", "divide", "none"):
            raise ValueError(f"normalisation {how!r} is not known: `kind` must be zscore or divide.")
        self.smallest, self.by = float(how.get("eps_uv", 0.1)), float(how.get("by_uv", 10.0))
        self.repeated = windows.channels != n_channels
        # Channel k of the encoder's is the recording's k % C.
        self.register_buffer("channel", torch.arange(n_channels) % windows.channels, persistent=False)

    def forward(self, eeg_BCT: Tensor) -> Tensor:
        x = eeg_BCT
        if self.kind == "zscore":
            x = x - x.mean(dim=2, keepdim=True)
            deviation = x.square().mean(dim=2, keepdim=True).sqrt()
            x = x / deviation.clamp(min=self.smallest)
        elif self.kind == "divide":
            x = x / self.by
        if self.clip is not None:
            x = x.clamp(-self.clip, self.clip)
        if self.repeated:
            x = x.index_select(1, self.channel)
        return x.transpose(1, 2)


class ConditionGraph(nn.Module):
    """EEG to what the U-Net is conditioned on. Normalisation stays in fp32: µV squared overflow fp16."""

    def __init__(self, conditioner: EEGConditioner, normaliser: Normaliser) -> None:
        super().__init__()
        self.conditioner, self.normaliser = conditioner, normaliser

    def forward(self, eeg: Tensor) -> tuple[Tensor, ...]:
        conditioner = self.conditioner
        x_BTC = self.normaliser(eeg).to(conditioner.dtype)
        # Not the conditioner's own forward: alignment with CLIP is for training.
        hidden_BLW = conditioner.projector(conditioner.encoder(x_BTC).tokens)
        if conditioner.time_pooling is None:
            return (hidden_BLW.float(),)
        return hidden_BLW.float(), conditioner.time_pooling(hidden_BLW).float()


class EncoderGraph(nn.Module):
    """EEG to tokens and their mean, for an encoder alone."""

    def __init__(self, encoder: EEGEncoder, normaliser: Normaliser) -> None:
        super().__init__()
        self.encoder, self.normaliser = encoder, normaliser

    def forward(self, eeg: Tensor) -> tuple[Tensor, Tensor]:
        output = self.encoder(self.normaliser(eeg).to(self.encoder.projection.weight.dtype))
        return output.tokens.float(), output.pooled.float()


class UNetGraph(nn.Module):
    """One prediction of the U-Net."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        class_labels: Tensor | None = None,
    ) -> Tensor:
        unet: Any = self.unet
        predicted: Tensor = unet(
            sample.to(unet.dtype),
            timestep,  # its sines are of fp32 numbers in any precision
            encoder_hidden_states.to(unet.dtype),
            class_labels=None if class_labels is None else class_labels.to(unet.dtype),
            return_dict=False,
        )[0]
        return predicted.float()


class DecoderGraph(nn.Module):
    """Scaled latents to a picture."""

    def __init__(self, codec: LatentCodec) -> None:
        super().__init__()
        self.vae = codec.vae  # a codec is no module; its weights have to be seen
        self.codec = codec

    def forward(self, latent: Tensor) -> Tensor:
        return self.codec.decode(latent.to(self.vae.dtype)).float()


def parts_of(source: Source) -> list[Part]:
    """The graphs that a source becomes, in the order in which a picture passes them."""
    normaliser = Normaliser(source.windows, source.sizes.n_channels)
    if source.encoder is not None:
        head = source.sizes.width // source.sizes.heads
        return [
            Part(
                ENCODER,
                EncoderGraph(source.encoder, normaliser),
                ("eeg",),
                ("tokens", "pooled"),
                lambda batch, generator: {"eeg": _eeg(batch, source.windows, generator)},
                1e-5,
                _native(head),
            )
        ]
    pipeline = source.pipeline
    assert pipeline is not None, "a source has an encoder or a pipeline"
    timed = pipeline.conditioner.time_pooling is not None
    conditioned = ConditionGraph(pipeline.conditioner, normaliser)
    shape = latent_shape(pipeline)
    beside = ("class_labels",) if timed else ()

    def unet_inputs(batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        outputs = conditioned(_eeg(batch, source.windows, generator))
        times = torch.tensor([981.0, 501.0, 1.0])[torch.arange(batch) % 3]
        drawn = {"sample": torch.randn(batch, *shape, generator=generator), "timestep": times}
        given = dict(zip(("encoder_hidden_states", *beside), outputs, strict=True))
        return {**drawn, **given}

    def latents(batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {"latent": torch.randn(batch, *shape, generator=generator)}

    parts = [
        Part(
            ENCODER,
            conditioned,
            ("eeg",),
            ("encoder_hidden_states", "time") if timed else ("encoder_hidden_states",),
            lambda batch, generator: {"eeg": _eeg(batch, source.windows, generator)},
            1e-5,
            _native(source.sizes.width // source.sizes.heads),
        ),
        Part(
            UNET,
            UNetGraph(pipeline.unet),
            ("sample", "timestep", "encoder_hidden_states", *beside),
            ("noise_pred",),
            unet_inputs,
            1e-5,
            all(_native(width) for width in _head_widths(pipeline.unet)),
        ),
        Part(DECODER, DecoderGraph(pipeline.codec), ("latent",), ("image",), latents, 1e-4, False),
    ]
    if source.tiny is not None:
        tiny = DecoderGraph(source.tiny)
        parts.append(Part(TINY_DECODER, tiny, ("latent",), ("image",), latents, 1e-4, False))
    return parts


def latent_shape(pipeline: EEGToImagePipeline) -> tuple[int, int, int]:
    """Channels, height and width of the latents that the U-Net was made for."""
    size = pipeline.unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return pipeline.unet.config.in_channels, height, width


def _eeg(batch: int, windows: WindowFacts, generator: torch.Generator) -> Tensor:
    """µV with the spectrum and the differences in size that EEG has: slow waves largest, a quiet and a loud channel."""
    shape = (batch, windows.channels, windows.samples)
    spectrum = torch.fft.rfft(torch.randn(shape, generator=generator))
    falling = spectrum / torch.arange(1, spectrum.shape[-1] + 1).sqrt()
    eeg = torch.fft.irfft(falling, n=windows.samples)
    loudness = torch.logspace(0.5, 1.7, windows.channels)[:, None]
    return (eeg / eeg.std(dim=2, keepdim=True) * loudness).contiguous()


def _native(head_width: int) -> bool:
    return 40 <= head_width <= 256 and head_width % 8 == 0


def _head_widths(unet: nn.Module) -> set[int]:
    widths = set()
    for module in unet.modules():
        if type(module).__name__ == "Attention":
            attention: Any = module
            widths.add(attention.inner_dim // attention.heads)
    return widths
