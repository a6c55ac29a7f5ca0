"""From EEG windows to what a Stable Diffusion U-Net is conditioned on, as DreamDiffusion does it.

Shape letters: B batch, T samples, C channels, N encoder tokens, E encoder width, L condition length, W width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from ddscale.models import EEGEncoder, EncoderConfig


class Condition(NamedTuple):
    """What a batch of windows says to the U-Net and to CLIP."""

    hidden_states: Tensor
    """(B, L, W), in place of a caption's hidden states."""
    time: Tensor | None
    """(B, W), added to the time embedding; None when the conditioner has no such part."""
    clip: Tensor | None
    """(B, D), to be aligned with CLIP features; None when the conditioner has no such head."""


class Projector(nn.Module):
    """Tokens of EEG to hidden states of text: mixing along the tokens N -> N/2 -> L, then a linear map E -> W.

    normalise: bring every state to the scale that CLIP's last layer norm gives those of text, which the U-Net knows;
    the original leaves them at whatever scale the maps have.
    """

    def __init__(
        self, n_tokens: int, encoder_width: int, length: int, width: int, normalise: bool = False
    ) -> None:
        super().__init__()
        self.tokens = nn.Sequential(
            nn.Conv1d(n_tokens, n_tokens // 2, kernel_size=1), nn.Conv1d(n_tokens // 2, length, kernel_size=1)
        )
        self.width = nn.Linear(encoder_width, width)
        self.norm = nn.LayerNorm(width) if normalise else None

    def forward(self, tokens_BNE: Tensor) -> Tensor:
        states_BLW: Tensor = self.width(self.tokens(tokens_BNE))
        return states_BLW if self.norm is None else self.norm(states_BLW)


class TimePooling(nn.Module):
    """Hidden states to one vector: L -> L/2 -> 1. Its linear map to the time embedding belongs to the U-Net."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.states = nn.Sequential(
            nn.Conv1d(length, length // 2, kernel_size=1), nn.Conv1d(length // 2, 1, kernel_size=1)
        )

    def forward(self, states_BLW: Tensor) -> Tensor:
        pooled_B1W: Tensor = self.states(states_BLW)
        return pooled_B1W[:, 0]


class AlignmentHead(nn.Module):
    """Tokens of EEG to CLIP's feature space, apart from what the U-Net sees."""

    def __init__(self, n_tokens: int, encoder_width: int, clip_width: int) -> None:
        super().__init__()
        self.tokens = nn.Conv1d(n_tokens, 1, kernel_size=1)
        self.width = nn.Linear(encoder_width, clip_width)

    def forward(self, tokens_BNE: Tensor) -> Tensor:
        features_BD: Tensor = self.width(self.tokens(tokens_BNE)[:, 0])
        return features_BD


class NullStates(nn.Module):
    """Hidden states that stand for 'no EEG', which guidance starts from."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.states = nn.Parameter(torch.zeros(1, length, width))

    def forward(self, batch: int) -> Tensor:
        """The states repeated: a (batch, L, W) view."""
        return self.states.expand(batch, -1, -1)


class EEGConditioner(ModelMixin, ConfigMixin):
    """EEG encoder, projector to the U-Net's condition, and the head that is aligned with CLIP.

    A model of diffusers: save_pretrained writes config.json and safetensors, from_pretrained reads them.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        encoder_sizes: dict[str, Any],
        length: int = 77,
        width: int = 768,
        time_condition: bool = False,
        clip_width: int | None = 768,
        normalise_states: bool = False,
        sfreq: float | None = None,
        normalisation: dict[str, Any] | None = None,
        preprocessing: dict[str, Any] | None = None,
        short_trials: str | None = None,
        condition_dropout: float | None = None,
    ) -> None:
        """encoder_sizes: fields of EncoderConfig. length, width: of the condition, as the U-Net takes it.

        time_condition: also give a vector for the time embedding (the original does). clip_width: of the features
        to align with; None leaves the head out. normalise_states: see Projector. sfreq (Hz), normalisation,
        preprocessing (filters and reference of the ingest), short_trials (what is done with trials shorter than a
        window): what windows have to be like; kept for whoever prepares them, not used here. condition_dropout: part
        of the samples that trained without EEG, None where nobody knows; what guidance starts from learnt from those.
        """
        super().__init__()
        sizes = EncoderConfig.model_validate(encoder_sizes)
        self.encoder = EEGEncoder(sizes)
        self.projector = Projector(sizes.n_tokens, sizes.width, length, width, normalise_states)
        self.time_pooling = TimePooling(length) if time_condition else None
        self.alignment = AlignmentHead(sizes.n_tokens, sizes.width, clip_width) if clip_width else None
        self.null = NullStates(length, width)

    @classmethod
    def around(cls, encoder: EEGEncoder, **settings: Any) -> EEGConditioner:
        """A conditioner with fresh heads around a pretrained encoder; settings: as the constructor takes them."""
        conditioner = cls(encoder_sizes=encoder.config.model_dump(mode="json"), **settings)
        conditioner.encoder.load_state_dict(encoder.state_dict())
        return conditioner

    @torch.no_grad()
    def start_null_from(self, hidden_states_1LW: Tensor) -> None:
        """Let 'no EEG' begin as the hidden states (1, L, W) of the empty caption, which the U-Net knows as that.

        Raises ValueError when they have another shape.
        """
        if hidden_states_1LW.shape != self.null.states.shape:
            raise ValueError(
                f"the empty caption's hidden states are {tuple(hidden_states_1LW.shape)}, the conditioner gives "
                f"{tuple(self.null.states.shape)}: set its length and width to the text encoder's."
            )
        self.null.states.copy_(hidden_states_1LW)

    def forward(self, x_BTC: Tensor, dropped_B: Tensor | None = None) -> Condition:
        """x_BTC: windows as the encoder was pretrained on. dropped_B: bool, samples that train without their EEG.

        Alignment features come from the EEG of every sample, dropped or not. Raises ValueError when the windows
        are not (T, C) as configured.
        """
        tokens_BNE = self.encoder(x_BTC).tokens
        hidden_BLW = self.projector(tokens_BNE)
        if dropped_B is not None:
            hidden_BLW = torch.where(
                dropped_B[:, None, None], self.null(len(x_BTC)).to(hidden_BLW), hidden_BLW
            )
        return Condition(
            hidden_BLW,
            None if self.time_pooling is None else self.time_pooling(hidden_BLW),
            None if self.alignment is None else self.alignment(tokens_BNE),
        )

    def without_eeg(self, batch: int) -> Condition:
        """The condition of `batch` samples that have no EEG."""
        hidden_BLW = self.null(batch)
        time_BW = None if self.time_pooling is None else self.time_pooling(hidden_BLW)
        return Condition(hidden_BLW, time_BW, None)
