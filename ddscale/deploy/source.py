"""The weights to export, from whichever folder holds them: a run, a pipeline, a diffusers folder, an encoder."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddscale.deploy.recipe import EEGInput, ExportRecipe
from ddscale.diffusion.codec import LatentCodec
from ddscale.diffusion.conditioning import EEGConditioner
from ddscale.diffusion.folders import component_class
from ddscale.diffusion.pipeline import EEGToImagePipeline, load_scheduler
from ddscale.diffusion.unet import load_unet
from ddscale.models import EEGEncoder, EncoderConfig, describe, load_encoder

_HASHED = {".json", ".safetensors", ".bin", ".pth"}


@dataclass(frozen=True)
class WindowFacts:
    """What windows the graphs take."""

    channels: int
    samples: int
    sfreq: float | None
    normalisation: dict[str, Any] | None
    preprocessing: dict[str, Any] | None


@dataclass
class Source:
    """Loaded weights in fp32; a generator's parts are None for an encoder alone."""

    path: Path
    encoder: EEGEncoder | None
    pipeline: EEGToImagePipeline | None
    tiny: LatentCodec | None
    windows: WindowFacts

    @property
    def sizes(self) -> EncoderConfig:
        """Sizes of the encoder."""
        if self.encoder is not None:
            return self.encoder.config
        assert self.pipeline is not None, "a source has an encoder or a pipeline"
        return self.pipeline.conditioner.encoder.config


def load_source(recipe: ExportRecipe) -> Source:
    """Everything that the recipe names, in fp32 and evaluation mode; nothing is downloaded.

    Raises FileNotFoundError or ValueError naming the folder that is not what it should be.
    """
    root = Path(recipe.source)
    if not root.is_dir():
        raise FileNotFoundError(
            f"source {root} is not there: give the folder of a run, a pipeline or an encoder."
        )
    folder = root / "pipeline" if (root / "pipeline" / "model_index.json").is_file() else root
    if not (folder / "model_index.json").is_file():
        return _encoder_alone(recipe, root)
    conditioner_folder = Path(recipe.conditioner) if recipe.conditioner else folder / "conditioner"
    if not (conditioner_folder / "config.json").is_file():
        raise FileNotFoundError(
            f"no EEG conditioner in {conditioner_folder}: {folder} alone makes pictures from text. State "
            "`conditioner:`, a folder saved by EEGConditioner.save_pretrained."
        )
    if (kind := component_class(conditioner_folder)) != "EEGConditioner":
        raise ValueError(f"{conditioner_folder} holds a {kind}, not an EEGConditioner.")
    conditioner = EEGConditioner.from_pretrained(conditioner_folder, local_files_only=True)
    pipeline = EEGToImagePipeline(
        LatentCodec.from_folder(folder).vae, load_unet(folder), load_scheduler(folder), conditioner
    )
    for part in (pipeline.vae, pipeline.unet, pipeline.conditioner):
        part.float().eval().requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    tiny = LatentCodec.from_folder(recipe.tiny_decoder) if recipe.tiny_decoder else None
    if tiny is not None:
        _check_tiny(tiny, pipeline.codec, str(recipe.tiny_decoder))
    config: Any = conditioner.config
    stated = {name: getattr(config, name, None) for name in ("sfreq", "normalisation", "preprocessing")}
    windows = _window_facts(recipe.eeg, conditioner.encoder.config, stated, conditioner_folder)
    return Source(folder, None, pipeline, tiny, windows)


def _encoder_alone(recipe: ExportRecipe, root: Path) -> Source:
    folder = root / "encoder" if (root / "encoder" / "config.json").is_file() else root
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{root} holds neither a pipeline (model_index.json) nor an encoder (config.json): give the folder of a "
            "fine-tuned or pretrained run, or what it exported."
        )
    for setting in ("tiny_decoder", "conditioner"):
        if getattr(recipe, setting):
            raise ValueError(f"{folder} is an encoder alone: `{setting}` has no use here, remove it.")
    encoder = load_encoder(folder).float().eval().requires_grad_(False)
    metadata = describe(folder).metadata
    stated = {name: metadata.get(name) for name in ("sfreq", "normalisation", "preprocessing")}
    return Source(folder, encoder, None, None, _window_facts(recipe.eeg, encoder.config, stated, folder))


def _window_facts(given: EEGInput, sizes: EncoderConfig, stated: dict[str, Any], where: Path) -> WindowFacts:
    settled = {}
    for name, own in stated.items():
        wanted = getattr(given, name)
        if own is not None and wanted is not None and own != wanted:
            raise ValueError(
                f"eeg.{name}: the recipe says {wanted!r}, {where} was trained with {own!r}: leave it out of the recipe."
            )
        settled[name] = own if own is not None else wanted
    channels = given.channels or sizes.n_channels
    if channels > sizes.n_channels:
        raise ValueError(
            f"eeg.channels {channels} is more than the {sizes.n_channels} that the encoder takes: choose which to "
            f"give it, and state eeg.channels: {sizes.n_channels} or less."
        )
    return WindowFacts(channels, sizes.n_samples, **settled)


def _check_tiny(tiny: LatentCodec, codec: LatentCodec, folder: str) -> None:
    if (tiny.latent_channels, tiny.downsampling) != (codec.latent_channels, codec.downsampling):
        raise ValueError(
            f"tiny_decoder {folder} is for latents of {tiny.latent_channels} channels at 1/{tiny.downsampling}, the "
            f"pipeline's have {codec.latent_channels} at 1/{codec.downsampling}: give one made for the same latents."
        )


def hash_source(folder: Path) -> str:
    """SHA-256 over names and contents of a folder's weight and configuration files."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in _HASHED and p.is_file()):
        with path.open("rb") as file:
            own = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(json.dumps([path.relative_to(folder).as_posix(), own]).encode())
    return digest.hexdigest()
