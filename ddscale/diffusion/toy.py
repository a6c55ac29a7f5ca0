"""A toy Stable Diffusion: the real one's classes and folder layout, a thousandth of its size, trained on digits.

Its folder loads with diffusers' StableDiffusionPipeline; beside the pipeline's parts `clip/` holds the whole toy CLIP,
and `tiny/` an autoencoder for the same latents with a tenth of the VAE's weights. It stands in where no pretrained
Stable Diffusion can be had, and is called a toy wherever it appears.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from pydantic import Field
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from ddscale.recipes import Settings
from ddscale.training.ranks import quiet_deepspeed

START, END = "<|startoftext|>", "<|endoftext|>"
CLIP_FOLDER = "clip"
TINY_FOLDER = "tiny"
_HEAD = 32


class ToySettings(Settings):
    """Sizes of the toy's networks. The defaults have 4 M parameters together."""

    image_size: int = Field(default=32, ge=16)
    """Height and width of the pictures; a multiple of 2 to the number of VAE levels minus 1."""
    vae_channels: tuple[int, ...] = (16, 16, 32, 64)
    """Channels of the VAE's levels; each but the first halves the picture."""
    tiny_channels: int = Field(default=16, ge=1)
    """Channels of the tiny autoencoder, at all of the VAE's levels."""
    latent_channels: int = Field(default=4, ge=1)
    """Channels of a latent; Stable Diffusion has 4."""
    unet_channels: tuple[int, ...] = (64, 96)
    """Channels of the U-Net's levels; each but the first halves the latent."""
    width: int = Field(default=64, ge=16)
    """Width of CLIP's layers and features, which is the U-Net's cross-attention width."""
    clip_depth: int = Field(default=2, ge=1)
    """Layers of CLIP's text and vision transformers."""
    text_length: int = Field(default=8, ge=4)
    """Tokens of a caption, start and end included; Stable Diffusion has 77."""


class Toy(NamedTuple):
    """The toy's parts, as diffusers and transformers know them."""

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    clip: CLIPModel
    tiny: AutoencoderTiny
    """Takes and gives scaled latents, as the U-Net has them."""
    tokenizer: CLIPTokenizer
    scheduler: DPMSolverMultistepScheduler
    settings: ToySettings


def build_toy(captions: Iterable[str], settings: ToySettings) -> Toy:
    """The parts with random weights, drawn from torch's generator; captions: every word they hold gets a token."""
    tokenizer = build_tokenizer(captions, settings.text_length)
    return Toy(
        vae=_build_vae(settings),
        unet=_build_unet(settings),
        clip=_build_clip(settings, tokenizer),
        tiny=_build_tiny(settings),
        tokenizer=tokenizer,
        scheduler=build_scheduler(),
        settings=settings,
    )


def build_tokenizer(captions: Iterable[str], length: int) -> CLIPTokenizer:
    """CLIP's byte-level BPE, with merges that make every word of the captions one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    words = sorted({word for caption in captions for word in caption.lower().split()})
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # Any text can be tokenised: each byte is a token, inside a word and at its end.
    learner.train_from_iterator(
        words,
        trainers.BpeTrainer(
            vocab_size=100_000,
            min_frequency=1,
            initial_alphabet=alphabet,
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    learned = json.loads(learner.to_str())["model"]
    tokens = [*alphabet, *(f"{byte}</w>" for byte in alphabet)]
    tokens += sorted(set(learned["vocab"]) - set(tokens))
    vocabulary = {token: number for number, token in enumerate([*tokens, START, END])}
    merges = [tuple(pair) for pair in learned["merges"]]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length)


def build_scheduler() -> DPMSolverMultistepScheduler:
    """Stable Diffusion's noise levels; the toy predicts v, which learns faster than epsilon in few steps."""
    return DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        steps_offset=1,
    )


def save_toy(toy: Toy, folder: str | Path) -> Path:
    """Write the toy as a Stable Diffusion folder of diffusers, CLIP included. Returns the folder."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    target, settings = Path(folder), toy.settings
    quiet_deepspeed()  # transformers will import it, to ask whether weights are partitioned over ranks
    text_encoder = CLIPTextModel(toy.clip.config.text_config)
    text_encoder.load_state_dict(toy.clip.text_model.state_dict())
    pipeline = StableDiffusionPipeline(
        vae=toy.vae,
        text_encoder=text_encoder.eval(),
        tokenizer=toy.tokenizer,
        unet=toy.unet,
        scheduler=toy.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(target)
    toy.tiny.save_pretrained(target / TINY_FOLDER)
    toy.clip.save_pretrained(target / CLIP_FOLDER)
    toy.tokenizer.save_pretrained(target / CLIP_FOLDER)
    CLIPImageProcessorPil(
        size={"shortest_edge": settings.image_size},
        crop_size={"height": settings.image_size, "width": settings.image_size},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    ).save_pretrained(target / CLIP_FOLDER)
    return target


def _build_vae(settings: ToySettings) -> AutoencoderKL:
    levels = len(settings.vae_channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=settings.vae_channels,
        latent_channels=settings.latent_channels,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=settings.image_size,
    )


def _build_tiny(settings: ToySettings) -> AutoencoderTiny:
    levels = len(settings.vae_channels)
    return AutoencoderTiny(
        encoder_block_out_channels=(settings.tiny_channels,) * levels,
        decoder_block_out_channels=(settings.tiny_channels,) * levels,
        num_encoder_blocks=(1, *(2,) * (levels - 1)),
        num_decoder_blocks=(*(2,) * (levels - 1), 1),
        latent_channels=settings.latent_channels,
    )


def _build_unet(settings: ToySettings) -> UNet2DConditionModel:
    levels = len(settings.unet_channels)
    return UNet2DConditionModel(
        sample_size=settings.image_size // 2 ** (len(settings.vae_channels) - 1),
        in_channels=settings.latent_channels,
        out_channels=settings.latent_channels,
        block_out_channels=settings.unet_channels,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        cross_attention_dim=settings.width,
        # diffusers' attention_head_dim is the number of heads. Heads narrower than 40 cannot be exported well.
        attention_head_dim=tuple(max(1, channels // 48) for channels in settings.unet_channels),
        norm_num_groups=16,
    )


def _build_clip(settings: ToySettings, tokenizer: CLIPTokenizer) -> CLIPModel:
    from transformers import CLIPConfig

    layers = {
        "hidden_size": settings.width,
        "intermediate_size": 2 * settings.width,
        "num_hidden_layers": settings.clip_depth,
        "num_attention_heads": max(1, settings.width // _HEAD),
        "projection_dim": settings.width,
    }
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": settings.text_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {"image_size": settings.image_size, "patch_size": settings.image_size // 4}
    config = CLIPConfig(
        text_config={**layers, **text}, vision_config={**layers, **vision}, projection_dim=settings.width
    )
    return CLIPModel(config)
