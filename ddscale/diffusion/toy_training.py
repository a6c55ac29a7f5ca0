"""Training the toy Stable Diffusion from nothing: CLIP, the VAE, and what works on its latents.

Deterministic given the seed and the number of threads. About a minute on two cores with the default settings.
Shape letters: n pictures, B batch, C latent channels, H height, W width, N tokens, D width.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.training_utils import EMAModel
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from ddscale.diffusion.alignment import contrastive_errors
from ddscale.diffusion.clip import image_features, text_features
from ddscale.diffusion.codec import LatentCodec
from ddscale.diffusion.draws import Purpose, generator, uniform
from ddscale.diffusion.objective import NoiseLevels, add_noise, noise_errors, sample_latents
from ddscale.diffusion.toy import Toy, ToySettings, build_toy, save_toy
from ddscale.recipes import Settings
from ddscale.store.layout import written_whole

DESCRIPTION = "toy.json"

Progress = Callable[[str, int, int, float], None]
"""Part being trained, step (from 1), steps of this part, its loss."""


class ToyTrainingSettings(Settings):
    """How long each part of the toy is trained."""

    sizes: ToySettings = Field(default_factory=ToySettings)
    """Sizes of the networks."""
    clip_steps: int = Field(default=300, ge=1)
    """Steps of contrastive training of pictures against captions."""
    vae_steps: int = Field(default=400, ge=1)
    """Steps of the VAE; more: sharper pictures."""
    unet_steps: int = Field(default=500, ge=1)
    """Steps of the U-Net; more: pictures more like real ones."""
    tiny_steps: int = Field(default=400, ge=1)
    """Steps of the tiny autoencoder."""
    batch_size: int = Field(default=64, ge=2)
    """Pictures in a step of CLIP and of the U-Net; the autoencoders, which work at full size, take half."""
    kl_weight: float = Field(default=1e-3, gt=0)
    """Weight of the latents' divergence from N(0, 1) beside the squared error of the pictures."""
    caption_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Part of the pictures that the U-Net sees with an empty caption, for guidance."""
    seed: int = 0
    """Decides initial weights, order of the pictures and noise."""


def train_toy(
    folder: str | Path,
    images: NDArray[np.uint8],
    captions: Sequence[str],
    settings: ToyTrainingSettings | None = None,
    on_progress: Progress = lambda part, step, steps, loss: None,
) -> Path:
    """Train a toy Stable Diffusion on pictures and their captions, and write it as a diffusers folder.

    images: (n, 3, H, W) uint8, H = W = the toy's image size; only those that may be trained on.
    Returns the folder, in which toy.json, written last, says how it was made; when it says that the same was done
    before, nothing is done. Raises ValueError when pictures, captions and settings do not fit each other.
    """
    settings = settings or ToyTrainingSettings()
    size = settings.sizes.image_size
    if images.shape[1:] != (3, size, size) or images.dtype != np.uint8 or len(images) != len(captions):
        raise ValueError(
            f"the toy takes uint8 pictures (n, 3, {size}, {size}) with a caption each, got {images.dtype} "
            f"{images.shape} and {len(captions)} captions: resize them, or set the toy's image_size."
        )
    target = Path(folder)
    fingerprint = _fingerprint(images, captions, settings)
    if _is_finished(target, fingerprint):
        return target
    started = time.monotonic()
    pictures = torch.from_numpy(images).float() / 127.5 - 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        toy = build_toy(captions, settings.sizes)
    losses = {"clip": _train_clip(toy, pictures, captions, settings, on_progress)}
    losses["vae"] = _train_vae(toy, pictures, settings, on_progress)
    mean, std = _encoded(toy, pictures, settings.batch_size)
    toy.vae.register_to_config(scaling_factor=_measured_scaling(mean, std))
    losses["unet"] = _train_unet(toy, mean, std, captions, settings, on_progress)
    losses["tiny"] = _train_tiny(toy, pictures, mean, std, settings, on_progress)
    (target / DESCRIPTION).unlink(missing_ok=True)
    save_toy(toy, target)
    facts = {
        "what": "a toy Stable Diffusion, trained by ddscale on small pictures; not a pretrained model",
        "fingerprint": fingerprint,
        "pictures": len(images),
        "captions": sorted(set(captions)),
        "settings": settings.model_dump(mode="json"),
        "final_losses": losses,
        "parameters": {
            n: sum(p.numel() for p in getattr(toy, n).parameters()) for n in ("clip", "vae", "unet", "tiny")
        },
        "seconds": round(time.monotonic() - started, 1),
    }
    with written_whole(target / DESCRIPTION) as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return target


def _fingerprint(images: NDArray[np.uint8], captions: Sequence[str], settings: ToyTrainingSettings) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(images).tobytes())
    digest.update(json.dumps([*captions, settings.model_dump(mode="json")]).encode())
    return digest.hexdigest()


def _is_finished(folder: Path, fingerprint: str) -> bool:
    try:
        facts = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except ValueError as error:
        raise ValueError(f"{folder / DESCRIPTION} is not valid JSON ({error}): remove the folder.") from error
    return bool(facts.get("fingerprint") == fingerprint)


def _train_clip(
    toy: Toy, pictures: Tensor, captions: Sequence[str], settings: ToyTrainingSettings, on_progress: Progress
) -> float:
    caption_numbers, tokens = _tokenised(toy, captions)
    model = toy.clip.train()

    def loss_of(rows_B: Tensor, positions_B: Tensor) -> Tensor:
        numbers_B = caption_numbers[rows_B]
        return contrastive_errors(
            image_features(model, pictures[rows_B]),
            text_features(model, tokens[numbers_B]),
            numbers_B,
            torch.ones_like(numbers_B, dtype=torch.bool),
            temperature=0.07,
        ).mean()

    return _optimise("clip", model, loss_of, pictures, settings, settings.clip_steps, 1e-3, on_progress)


def _train_vae(toy: Toy, pictures: Tensor, settings: ToyTrainingSettings, on_progress: Progress) -> float:
    model = toy.vae.train()

    def loss_of(rows_B: Tensor, positions_B: Tensor) -> Tensor:
        shown = pictures[rows_B]
        latent = model.encode(shown).latent_dist
        drawn = sample_latents(latent.mean, latent.std, positions_B, settings.seed)
        divergence = 0.5 * (latent.mean.square() + latent.var - 1 - latent.logvar).mean()
        return F.mse_loss(model.decode(drawn).sample, shown) + settings.kl_weight * divergence

    return _optimise(
        "vae", model, loss_of, pictures, settings, settings.vae_steps, 3e-3, on_progress,
        batch_size=settings.batch_size // 2,
    )  # fmt: skip


def _train_unet(
    toy: Toy,
    mean: Tensor,
    std: Tensor,
    captions: Sequence[str],
    settings: ToyTrainingSettings,
    on_progress: Progress,
) -> float:
    model, scale = toy.unet.train(), toy.vae.config.scaling_factor
    levels = NoiseLevels.of(toy.scheduler)
    # The last row is the empty caption's, which guidance starts from.
    caption_numbers, tokens = _tokenised(toy, captions, extra="")
    with torch.no_grad():
        hidden_KND = toy.clip.text_model(input_ids=tokens).last_hidden_state

    def loss_of(rows_B: Tensor, positions_B: Tensor) -> Tensor:
        drawn = sample_latents(mean[rows_B], std[rows_B], positions_B, settings.seed) * scale
        noised = add_noise(levels, drawn, positions_B, settings.seed)
        dropped_B = uniform(settings.seed, positions_B, Purpose.DROPOUT) < settings.caption_dropout
        numbers_B = torch.where(dropped_B, len(hidden_KND) - 1, caption_numbers[rows_B])
        predicted = model(noised.latents, noised.timesteps, hidden_KND[numbers_B]).sample
        return noise_errors(predicted, noised, levels).mean()

    average = EMAModel(model.parameters(), decay=0.99, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    loss = _optimise(
        "unet", model, loss_of, mean, settings, settings.unet_steps, 2e-3, on_progress,
        after_step=lambda: average.step(model.parameters()),
    )  # fmt: skip
    average.copy_to(model.parameters())
    return loss


def _train_tiny(
    toy: Toy,
    pictures: Tensor,
    mean: Tensor,
    std: Tensor,
    settings: ToyTrainingSettings,
    on_progress: Progress,
) -> float:
    """Both halves beside each other: pictures from the VAE's latents, and its latents from pictures."""
    model, scaled = toy.tiny.train(), LatentCodec(toy.vae).scaled

    def loss_of(rows_B: Tensor, positions_B: Tensor) -> Tensor:
        drawn = scaled(sample_latents(mean[rows_B], std[rows_B], positions_B, settings.seed))
        shown = pictures[rows_B]
        decoded, encoded = model.decode(drawn).sample, model.encode(shown).latents
        return F.mse_loss(decoded, shown) + F.mse_loss(encoded, scaled(mean[rows_B]))

    return _optimise(
        "tiny", model, loss_of, pictures, settings, settings.tiny_steps, 3e-3, on_progress,
        batch_size=settings.batch_size // 2,
    )  # fmt: skip


def _optimise(
    part: str,
    model: nn.Module,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    data: Tensor,
    settings: ToyTrainingSettings,
    steps: int,
    lr: float,
    on_progress: Progress,
    batch_size: int | None = None,
    after_step: Callable[[], None] = lambda: None,
) -> float:
    """AdamW with a one-cycle learning rate; the mean loss of the last tenth of the steps."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=max(2, steps), pct_start=0.1)
    size = batch_size or settings.batch_size
    losses = []
    order = _order(len(data), size, steps, settings.seed)
    for step, (rows_B, positions_B) in enumerate(order, start=1):
        loss = loss_of(rows_B, positions_B)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        cycle.step()
        after_step()
        losses.append(loss.item())
        on_progress(part, step, steps, losses[-1])
    model.eval().requires_grad_(False)
    return float(np.mean(losses[-max(1, steps // 10) :]))


def _order(n: int, batch_size: int, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows and positions (both (B,) int64) of each step: all pictures in a new order on every pass."""
    passes: dict[int, NDArray[np.int64]] = {}
    for step in range(steps):
        positions = np.arange(step * batch_size, (step + 1) * batch_size)
        for number in {int(p) for p in positions // n} - passes.keys():
            passes[number] = generator(seed, number, Purpose.ORDER).permutation(n)
        rows = np.array([passes[p // n][p % n] for p in positions.tolist()])
        yield torch.from_numpy(rows), torch.from_numpy(positions)


@torch.no_grad()
def _encoded(toy: Toy, pictures: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """Mean and spread of every picture's latent."""
    codec = LatentCodec(toy.vae)
    parts = [codec.encode(batch) for batch in pictures.split(batch_size)]
    return torch.cat([part.mean for part in parts]), torch.cat([part.std for part in parts])


def _tokenised(toy: Toy, captions: Sequence[str], extra: str | None = None) -> tuple[Tensor, Tensor]:
    """Number of each picture's caption (n,), and the tokens of the different captions, `extra` last (K, N)."""
    different = sorted(set(captions))
    numbers = torch.tensor([different.index(caption) for caption in captions])
    texts = different if extra is None else [*different, extra]
    tokens = toy.tokenizer(
        texts, padding="max_length", truncation=True, max_length=toy.tokenizer.model_max_length, return_tensors="pt"
    )  # fmt: skip
    return numbers, tokens.input_ids


def _measured_scaling(mean: Tensor, std: Tensor) -> float:
    """What latents are multiplied by so that they have unit variance, as Stable Diffusion's 0.18215."""
    sampled_power = mean.var() + std.square().mean()
    return float(sampled_power.rsqrt())
