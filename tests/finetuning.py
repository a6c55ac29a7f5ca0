"""The smallest fine-tuning that has every part: trials with pictures, a toy Stable Diffusion, an encoder."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ddscale.diffusion.toy import ToySettings, build_toy, save_toy
from ddscale.models import EEGEncoder, EncoderConfig, save_encoder
from ddscale.store import ArrayRecording, ImageFile, StagedTrial, write_store

SFREQ = 128.0
SAMPLES, CHANNELS = 64, 8
CLASSES = ("zero", "one", "two", "three")
SIZES = {"width": 32, "depth": 2, "heads": 2, "mlp_ratio": 2.0, "n_channels": CHANNELS, "n_samples": SAMPLES}


def caption_of(label: str) -> str:
    return f"a handwritten {label}"


def write_paired_store(path: Path, pictures: int = 72, subjects: tuple[str, ...] = ("anna", "ben")) -> Path:
    """Every subject sees every picture once, in an order of their own; a class is a frequency, its picture a grey.

    Of six pictures of a class the last but one is for validation, the last for the test.
    """
    rng = np.random.default_rng(7)
    files = [_picture(number) for number in range(pictures)]
    recordings = []
    for subject in subjects:
        records, trials = [], []
        for place, number in enumerate(rng.permutation(pictures).tolist()):
            label = CLASSES[number % len(CLASSES)]
            seconds = np.arange(SAMPLES) / SFREQ
            wave = 20 * np.sin(2 * np.pi * (6 + 5 * (number % len(CLASSES))) * seconds)
            records.append((place * SAMPLES, rng.normal(scale=10, size=(CHANNELS - 2, SAMPLES)) + wave))
            trials.append(StagedTrial(image=f"picture{number:03d}", label=label, caption=caption_of(label)))
        names = [f"E{number + 1}" for number in range(CHANNELS - 2)]
        recordings.append(ArrayRecording("paired", subject, f"{subject}-seen", names, records, trials=trials))
    write_store(path, recordings, sfreq=SFREQ, images=files)
    return path


def _picture(number: int) -> ImageFile:
    pixels = np.full((32, 32, 3), 40 + 50 * (number % len(CLASSES)), dtype=np.uint8)
    pixels[number % 32, :, :] = 255
    pixels[:, number // 32, :] = 255  # no two alike
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    data = buffer.getvalue()
    label = CLASSES[number % len(CLASSES)]
    name = f"picture{number:03d}"
    stated = {4: "val", 5: "test"}.get(number // len(CLASSES) % 6, "train")
    return ImageFile(
        "paired",
        name,
        "png",
        f"{name}.png",
        lambda: data,
        label,
        caption_of(label),
        stated,  # type: ignore[arg-type]
    )


def write_parts(folder: Path) -> Path:
    """`folder`/sd, a toy of random weights, and `folder`/encoder; the store in `folder`/store."""
    torch.manual_seed(3)
    settings = ToySettings(vae_channels=(8, 8, 16), unet_channels=(32, 32), width=32)
    save_toy(build_toy([caption_of(label) for label in CLASSES], settings), folder / "sd")
    facts = {"sfreq": SFREQ, "normalisation": {"kind": "zscore", "clip": 15.0, "eps_uv": 0.1}}
    save_encoder(EEGEncoder(EncoderConfig.model_validate(SIZES)), folder / "encoder", facts)
    write_paired_store(folder / "store")
    return folder


def tiny_recipe(parts: Path, run: Path, **changes: Any) -> dict[str, Any]:
    """A recipe on what `write_parts` wrote; `changes` replace top-level keys."""
    return {
        "stage": "finetune",
        "run": str(run),
        "encoder": str(parts / "encoder"),
        "stable_diffusion": str(parts / "sd"),
        "data": {"stores": [str(parts / "store")], "cut": "trials", "window_samples": SAMPLES,
                 "n_channels": CHANNELS, "reader_threads": 1},
        "global_batch_size": 16,
        "micro_batch_size": 4,
        "steps": 16,
        "optimiser": {"lr": 1e-3},
        "schedule": {"warmup_steps": 4},
        "ema": 0.9,
        "objective": {"alignment": "infonce"},
        "views": {"image_size": 32, "crops": 2},
        "log_every": 1,
        "checkpoint": {"every": 8, "keep": 2},
        "validation": {"every": 8, "windows": 10},
        **changes,
    }  # fmt: skip
