"""TAESD's original weight files as an autoencoder of diffusers, its newest variant included.

AutoencoderTiny is the same network, but cannot express the variant for 32 latent channels, whose blocks at the
lowest resolution see group statistics of the whole picture.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from diffusers.configuration_utils import register_to_config
from diffusers.models import ModelMixin  # noqa: F401 - diffusers finds out here how TinyVAE is loaded
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from torch import Tensor, nn

_WIDTH = 64
_PER_LEVEL = 3


class PooledBlock(AutoencoderTinyBlock):
    """A block that first adds group-normalised statistics to its input."""

    def __init__(self) -> None:
        super().__init__(_WIDTH, _WIDTH, "relu")
        self.pool = nn.Sequential(
            nn.Conv2d(_WIDTH, 4 * _WIDTH, kernel_size=1, bias=False),
            nn.GroupNorm(4, 4 * _WIDTH),
            nn.ReLU(),
            nn.Conv2d(4 * _WIDTH, _WIDTH, kernel_size=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.pool(x))


class TinyVAE(AutoencoderTiny):
    """AutoencoderTiny with pooled blocks at the lowest resolution, if asked for."""

    @register_to_config
    def __init__(self, latent_channels: int = 4, pooled: bool = False, scaling_factor: float = 1.0) -> None:
        super().__init__(latent_channels=latent_channels, scaling_factor=scaling_factor)
        # What the parent's constructor registers besides would not be accepted when this is loaded again.
        if pooled:
            layers = self.encoder.layers
            lowest_in = range(len(layers) - 1 - _PER_LEVEL, len(layers) - 1)
            lowest_out = range(2, 2 + _PER_LEVEL)
            for sequence, places in ((layers, lowest_in), (self.decoder.layers, lowest_out)):
                for place in places:
                    sequence[place] = PooledBlock()


def taesd_files(folder: Path) -> tuple[Path, Path] | None:
    """The `*_encoder.pth` and `*_decoder.pth` in a folder; None where it is none of TAESD's.

    Raises ValueError naming what is there when they are no pair.
    """
    encoders, decoders = (sorted(folder.glob(f"*_{part}.pth")) for part in ("encoder", "decoder"))
    if not encoders and not decoders:
        return None
    if len(encoders) != 1 or len(decoders) != 1:
        there = ", ".join(path.name for path in [*encoders, *decoders])
        raise ValueError(f"{folder} holds {there}: leave one encoder and the decoder made with it there.")
    return encoders[0], decoders[0]


def load_taesd(encoder_file: str | Path, decoder_file: str | Path) -> TinyVAE:
    """The autoencoder of TAESD's published `*_encoder.pth` and `*_decoder.pth`; sizes are read off the weights.

    Raises FileNotFoundError or ValueError naming the file that is not such a one.
    """
    encoder, decoder = _weights(encoder_file), _weights(decoder_file)
    last = max((int(name.partition(".")[0]) for name in encoder), default=0)
    if f"{last}.bias" not in encoder:
        raise ValueError(f"{encoder_file} does not hold the weights of a TAESD encoder.")
    vae = TinyVAE(
        latent_channels=len(encoder[f"{last}.bias"]), pooled=any(".pool." in name for name in encoder)
    )
    # The original counts the decoder's clamp as its layer 0, diffusers has it outside of the layers.
    shifted = {_renumbered(name): value for name, value in decoder.items()}
    for part, state, file in ((vae.encoder, encoder, encoder_file), (vae.decoder, shifted, decoder_file)):
        try:
            part.layers.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"{file} is no TAESD file of a known variant: {error}") from None
    return vae.eval().requires_grad_(False)


def _weights(file: str | Path) -> dict[str, Tensor]:
    state = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not all(name.partition(".")[0].isdigit() for name in state):
        raise ValueError(f"{file} does not hold numbered layers, as TAESD's files do.")
    return state


def _renumbered(name: str) -> str:
    number, _, rest = name.partition(".")
    return f"{int(number) - 1}.{rest}"
