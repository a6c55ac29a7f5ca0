"""Sizes of the masked autoencoder and of its encoder, with presets and the checks that hold between them."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from ddscale.recipes import Settings

Preset = Literal["demo", "dreamdiffusion", "vit_l", "vit_h", "2b", "7b"]

_MAE_DECODER = {"decoder_width": 512, "decoder_depth": 8, "decoder_heads": 16}

# Encoder / decoder parameters: demo 0.5 M together; dreamdiffusion 151.8 M / 13.4 M (the released code, whose
# MLP ratio of 1.0 gives half a ViT-L); vit_l 303 M, vit_h 630 M, 2b 2.0 B, 7b 7.2 B with MAE's decoder.
PRESETS: dict[str, dict[str, Any]] = {
    "demo": {
        "width": 128, "depth": 2, "heads": 2, "mlp_ratio": 2.0,
        "decoder_width": 96, "decoder_depth": 2, "decoder_heads": 2,
    },
    "dreamdiffusion": {"width": 1024, "depth": 24, "heads": 16, "mlp_ratio": 1.0, **_MAE_DECODER},
    "vit_l": {"width": 1024, "depth": 24, "heads": 16, "mlp_ratio": 4.0, **_MAE_DECODER},
    "vit_h": {"width": 1280, "depth": 32, "heads": 16, "mlp_ratio": 4.0, **_MAE_DECODER},
    "2b": {"width": 2048, "depth": 40, "heads": 32, "mlp_ratio": 4.0, **_MAE_DECODER},
    "7b": {"width": 4096, "depth": 36, "heads": 32, "mlp_ratio": 4.0, **_MAE_DECODER},
}  # fmt: skip


class _Sizes(Settings):
    """What encoder and autoencoder share: the window, the patches and the encoder's transformer."""

    n_channels: int = Field(default=128, ge=1)
    """Rows of a window, after the stream has tiled a recording's channels up to it."""
    n_samples: int = Field(default=512, ge=1)
    """Samples per window."""
    patch: int = Field(default=4, ge=1)
    """Samples per token; a token mixes all channels of these samples. Smaller: finer in time, more tokens."""
    width: int = Field(ge=2)
    """Width of the encoder's tokens."""
    depth: int = Field(ge=1)
    """Transformer blocks in the encoder."""
    heads: int = Field(ge=1)
    """Attention heads per encoder block; must divide width."""
    mlp_ratio: float = Field(default=1.0, gt=0)
    """Hidden width of each block's MLP over its width, rounded down; 1.0 in DreamDiffusion's code, 4.0 in ViT."""

    @model_validator(mode="after")
    def _window_and_width(self) -> _Sizes:
        if self.n_samples % self.patch:
            fit = max(self.patch, self.n_samples // self.patch * self.patch)
            raise ValueError(
                f"n_samples {self.n_samples} is not a multiple of patch {self.patch}: "
                f"use n_samples {fit} or another patch."
            )
        _check_transformer("width", self.width, "heads", self.heads, self.mlp_ratio)
        return self

    @property
    def n_tokens(self) -> int:
        """Tokens of an unmasked window, the class token not counted."""
        return self.n_samples // self.patch

    @property
    def patch_values(self) -> int:
        """Numbers in one token's patch: samples times channels."""
        return self.patch * self.n_channels


class EncoderConfig(_Sizes):
    """Sizes of an encoder as it is used after pretraining: every token visible, no decoder."""

    class_token: bool = True
    """Whether the class token takes part, as in pretraining. The original's fine-tuning drops it."""


class MAEConfig(_Sizes):
    """Sizes of a masked autoencoder: a preset, any of its fields replaced, or all sizes written out."""

    preset: Preset | None = None
    """Named sizes to start from; a field written beside it replaces the preset's."""
    decoder_width: int = Field(ge=2)
    """Width of the decoder's tokens."""
    decoder_depth: int = Field(ge=1)
    """Transformer blocks in the decoder, which sees all tokens: keep it light."""
    decoder_heads: int = Field(ge=1)
    """Attention heads per decoder block; must divide decoder_width."""
    mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    """Part of the tokens that is hidden: 0.75 in the DreamDiffusion paper, 0.1 in its released code."""
    activation_checkpointing: bool = False
    """Recompute each block in the backward pass: a third more work, much less memory."""

    @model_validator(mode="before")
    @classmethod
    def _start_from_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("preset") is None:
            return given
        preset = given["preset"]
        if preset not in PRESETS:
            raise ValueError(f"preset {preset!r} is not known: use one of {', '.join(get_args(Preset))}.")
        return {**PRESETS[preset], **given}

    @model_validator(mode="after")
    def _decoder_and_mask(self) -> MAEConfig:
        _check_transformer(
            "decoder_width", self.decoder_width, "decoder_heads", self.decoder_heads, self.mlp_ratio
        )
        if not 0 < self.n_visible < self.n_tokens:
            raise ValueError(
                f"mask_ratio {self.mask_ratio} leaves {self.n_visible} of {self.n_tokens} tokens visible: "
                f"choose one up to {1 - 1 / self.n_tokens:.4g}, or a smaller patch."
            )
        return self

    @property
    def n_visible(self) -> int:
        """Tokens the encoder sees: the original's floor, safe against 1 - 0.9 falling just short of 0.1."""
        return int(self.n_tokens * (1.0 - self.mask_ratio) + 1e-6)

    @property
    def n_masked(self) -> int:
        """Tokens that are hidden and predicted."""
        return self.n_tokens - self.n_visible

    @property
    def encoder(self) -> EncoderConfig:
        """The encoder's own configuration."""
        return EncoderConfig(**{name: getattr(self, name) for name in _Sizes.model_fields})


def _check_transformer(width_name: str, width: int, heads_name: str, heads: int, mlp_ratio: float) -> None:
    if width % 2:
        raise ValueError(
            f"{width_name} {width} is odd, but half of it carries sines and half cosines: use {width + 1}."
        )
    if width % heads:
        fitting = [n for n in range(1, width + 1) if width % n == 0]
        nearest = min(fitting, key=lambda n: abs(n - heads))
        raise ValueError(
            f"{heads_name} {heads} does not divide {width_name} {width}: the nearest that does is {nearest}."
        )
    if int(width * mlp_ratio) < 1:
        raise ValueError(
            f"mlp_ratio {mlp_ratio} of {width_name} {width} leaves no hidden unit: use {1 / width:g} or more."
        )
