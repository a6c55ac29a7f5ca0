"""Fine-tuning as a task for the loop: trials and their pictures, the losses, held-out pictures, the pipeline.

Shape letters: B batch, T samples, C channels, c, h, w a latent's channels, height, width, D CLIP's width.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ddscale.diffusion import draws
from ddscale.diffusion.alignment import contrastive_errors, cosine_errors
from ddscale.diffusion.clip import Clip
from ddscale.diffusion.codec import LatentCodec
from ddscale.diffusion.draws import Purpose
from ddscale.diffusion.model import EEGToLatent, Prediction, build, check_stores, check_windows, overlay
from ddscale.diffusion.objective import (
    NoiseLevels,
    Weights,
    add_noise,
    noise_errors,
    sample_latents,
    weights_at,
    without_condition,
)
from ddscale.diffusion.pipeline import EEGToImagePipeline, load_scheduler
from ddscale.diffusion.precompute import Features, fill, prepare
from ddscale.diffusion.settings import FinetuneRecipe
from ddscale.diffusion.unet import count_parameters, merge_lora
from ddscale.models import save_encoder
from ddscale.stream.collation import HostBatch
from ddscale.stream.device import materialise, send
from ddscale.stream.loader import Loader, open_stores
from ddscale.training.faults import UnreadableRecords
from ddscale.training.loop import Terms
from ddscale.training.pretraining import data_identity
from ddscale.training.ranks import Ranks
from ddscale.training.runs import Display, run

PIPELINE = "pipeline"
"""Folder in a run's folder that holds what generates."""

_TELL_EVERY_S = 30.0

# Held-out noise and timesteps must not be those that training has met at the same positions.
_HELD_OUT_SEED = 1


class Batch(NamedTuple):
    """Trials of a micro-batch on the device, and what the model shall make of them."""

    x_BTC: Tensor
    positions_B: Tensor
    """int64, on the CPU."""
    images_B: Tensor
    """int64 rows of the pictures, on the device: equal where the same picture was shown."""
    valid_B: Tensor
    mean_Bchw: Tensor
    std_Bchw: Tensor
    features_BD: Tensor | None


def finetune(recipe: FinetuneRecipe, ranks: Ranks, display: Display) -> str | None:
    """Run or continue the recipe; None when it is done, or what stopped it: a signal or the stop file."""
    return run(recipe, lambda: Finetuning(recipe, ranks, display), ranks, display)


class Finetuning:
    """Trials of EEG, each with the picture that was shown: see `ddscale.training.loop.Task` for the parts.

    Raises ValueError or OSError when a store, a folder or a picture is not there or does not fit.
    """

    names = ["noise", "alignment"]
    label = "part"
    builds_whole = True
    flops_per_sample: float | None = None

    def __init__(self, recipe: FinetuneRecipe, ranks: Ranks, display: Display) -> None:
        self.recipe = recipe
        self.ranks = ranks
        # What one rank alone may fail at comes before what all of them do together.
        with ranks.agreeing():
            codec, clip = self._open()
        self._features = self._precomputed(codec, clip, display)

    def _open(self) -> tuple[LatentCodec, Clip | None]:
        recipe, ranks = self.recipe, self.ranks
        self._levels = NoiseLevels.of(load_scheduler(recipe.stable_diffusion))
        self._loader = Loader(
            recipe.data,
            "train",
            global_batch_size=recipe.global_batch_size,
            micro_batch_size=recipe.micro_batch_size,
            rank=ranks.rank,
            world_size=ranks.world_size,
            stores=open_stores(recipe.data, check_index=ranks.local_rank == 0),
        )
        check_windows(recipe, self._loader.sfreq, self._loader.unit)
        check_stores(self._loader.stores, recipe.objective.alignment_target == "caption")
        self._held_out = self._open_held_out()
        self._unreadable = UnreadableRecords()
        self.hours_per_sample = recipe.data.window_samples / self._loader.sfreq / 3600
        codec, clip = LatentCodec.from_folder(recipe.stable_diffusion), _clip_of(recipe)
        # Its numbers and not the codec: a step must not keep the VAE in memory.
        self._scale, self._shift = codec.scale, codec.shift
        self._latent_side = recipe.views.image_size // codec.downsampling
        self._clip_width = None if clip is None or recipe.objective.alignment == "none" else clip.width
        return codec, clip

    def make_model(self) -> EEGToLatent:
        return build(self.recipe, self._clip_width, self._windows())

    def describe(self, model: nn.Module) -> list[str]:
        """Trained and frozen parameters by part."""
        assert isinstance(model, EEGToLatent)
        return [
            f"{count.part}: {count.trained:,} trained, {count.frozen:,} frozen parameters"
            for count in count_parameters(model.parts())
        ]

    def identity(self) -> dict[str, Any]:
        recipe = self.recipe
        of_training = (
            "encoder",
            "from_scratch",
            "stable_diffusion",
            "time_condition",
            "normalise_states",
            "views",
        )
        settings = recipe.model_dump(mode="json")
        return {
            **{name: settings[name] for name in of_training},
            "unet": {k: v for k, v in settings["unet"].items() if k != "gradient_checkpointing"},
            # Runs from before there was a choice had crops.
            "objective": {
                k: v for k, v in settings["objective"].items() if (k, v) != ("alignment_view", "crop")
            },
            "features": self._features.path.name,
            # A contrast is with the samples of one micro-batch on all ranks.
            **(
                {"candidates": recipe.micro_batch_size * self.ranks.world_size}
                if recipe.objective.alignment == "infonce"
                else {}
            ),
            "data": data_identity(recipe.data),
        }

    def state(self) -> dict[str, Any]:
        return self._loader.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        self._loader.restore(state)

    def steps(self) -> Iterator[list[HostBatch]]:
        return iter(self._loader)

    def weight(self, batch: HostBatch) -> float:
        return float(batch.valid.sum())

    def positions(self, batch: HostBatch) -> list[int]:
        return [int(position) for position in batch.positions]

    def loss(self, engine: Any, batch: HostBatch) -> Terms:
        """Losses of one micro-batch; which of them count follows from its place in the run."""
        recipe = self.recipe
        step = int(batch.positions[0]) // recipe.global_batch_size
        weights = weights_at(recipe.objective, step, recipe.steps)
        given = self._on_device(batch, recipe.seed)
        dropped_B = without_condition(recipe.objective, given.positions_B, recipe.seed)
        noise_B, alignment_B = self._errors(engine, given, weights, recipe.seed, dropped_B)
        total = weights.noise * noise_B.sum() + weights.alignment * alignment_B.sum()
        count = given.valid_B.sum()
        by_name = torch.stack(
            [
                torch.stack([errors_B.detach().sum(), count * (weight > 0)])
                for errors_B, weight in zip((noise_B, alignment_B), weights, strict=True)
            ]
        )
        return Terms(total, by_name.double())

    def new_faults(self) -> list[dict[str, Any]]:
        return self._unreadable.new(self._loader, self._held_out)

    def unreadable_windows(self) -> int:
        return self._unreadable.windows(self._loader, self._held_out)

    @torch.no_grad()
    def validate(self, engine: Any) -> dict[str, float]:
        """Losses on pictures that are not trained on, the same trials and noise each time.

        val_noise_without_eeg is the same noise predicted from the condition that stands for no EEG: what the EEG
        tells the U-Net is the difference. val_windows: how many trials could be read; without any there are no losses.
        """
        assert self._held_out is not None, "validation is only asked for with held-out pictures at hand"
        recipe = self.recipe
        # Of the last step, so that values of a sequential run's two halves can be compared.
        weights = weights_at(recipe.objective, recipe.steps - 1, recipe.steps)
        both = Weights(1.0, 0.0 if recipe.objective.alignment == "none" else 1.0)
        sums = torch.zeros(4, dtype=torch.float64, device=self.ranks.device)
        for micro_batches in self._held_out:
            for batch in micro_batches:
                given = self._on_device(batch, recipe.seed + _HELD_OUT_SEED)
                errors = [
                    self._errors(engine, given, wanted, recipe.seed + _HELD_OUT_SEED, dropped_B)
                    for wanted, dropped_B in (
                        (both, None),
                        (Weights(1.0, 0.0), torch.ones(len(batch), dtype=torch.bool)),
                    )
                ]
                (noise_B, alignment_B), (without_B, _) = errors
                parts = [noise_B, alignment_B, without_B, given.valid_B]
                sums += torch.stack([part.double().sum() for part in parts])
        noise, alignment, without, count = self.ranks.sum_(sums).tolist()
        if not count:
            return {"val_windows": 0}
        measured = {
            "val_noise": noise / count,
            "val_noise_without_eeg": without / count,
            "val_windows": int(count),
        }
        if both.alignment:
            measured["val_alignment"] = alignment / count
        return {"val_loss": (weights.noise * noise + weights.alignment * alignment) / count, **measured}

    def export(self, weights: Mapping[str, Tensor], folder: Path, facts: dict[str, Any]) -> list[str]:
        """`pipeline/` that generates, and `encoder/`, the fine-tuned encoder by itself."""
        with torch.random.fork_rng(devices=[]):
            model = self.make_model()
        overlay(model, dict(weights))
        merge_lora(model.unet)
        # Whoever draws goes by the U-Net's own size, which is Stable Diffusion's and not that of these pictures.
        model.unet.register_to_config(sample_size=self._latent_side)
        pipeline = EEGToImagePipeline.from_stable_diffusion(
            self.recipe.stable_diffusion, model.conditioner, model.unet
        )
        temporary, target = folder / f".{PIPELINE}.tmp", folder / PIPELINE
        for leftover in (temporary, folder / f".{PIPELINE}.old"):
            shutil.rmtree(leftover, ignore_errors=True)
        pipeline.save_pretrained(temporary)
        with contextlib.suppress(FileNotFoundError):
            target.rename(folder / f".{PIPELINE}.old")
        temporary.rename(target)
        shutil.rmtree(folder / f".{PIPELINE}.old", ignore_errors=True)
        encoder = save_encoder(
            model.conditioner.encoder, folder / "encoder", {**facts, **self._loader.of_windows()}
        )
        which = (
            f"averaged over steps with memory {self.recipe.ema}" if self.recipe.ema else "of the last step"
        )
        return [f"pipeline (weights {which}): {target}", f"encoder: {encoder}"]

    def close(self) -> None:
        self._loader.close()
        if self._held_out is not None:
            self._held_out.close()

    def _errors(
        self, engine: Any, given: Batch, weights: Weights, seed: int, dropped_B: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(noise, alignment) errors of each sample, (B,) float32, 0 where it is not valid or does not count."""
        objective, device = self.recipe.objective, self.ranks.device
        dropped_B = None if dropped_B is None else send(dropped_B, device)
        zero_B = torch.zeros(len(given.x_BTC), device=device)
        noise_B = alignment_B = zero_B
        noised = None
        if weights.noise:
            drawn = sample_latents(given.mean_Bchw, given.std_Bchw, given.positions_B, seed)
            scaled = (drawn - self._shift) * self._scale
            noised = add_noise(self._levels, scaled, given.positions_B, seed)
        noisy = () if noised is None else (noised.latents, noised.timesteps)
        predicted: Prediction = engine(given.x_BTC, dropped_B, *noisy)
        if noised is not None and predicted.noise is not None:
            noise_B = noise_errors(predicted.noise, noised, self._levels, objective.min_snr_gamma)
        # Also where it does not count: at ZeRO-3 DeepSpeed would go on using the last gradient of a part that has none.
        if predicted.clip is not None and given.features_BD is not None:
            if objective.alignment == "infonce":
                alignment_B = contrastive_errors(
                    predicted.clip, given.features_BD, given.images_B, given.valid_B, objective.temperature
                )
            else:
                alignment_B = cosine_errors(predicted.clip, given.features_BD)
        return torch.where(given.valid_B, noise_B, 0.0), torch.where(given.valid_B, alignment_B, 0.0)

    def _on_device(self, batch: HostBatch, seed: int) -> Batch:
        device, data = self.ranks.device, self.recipe.data
        x_BTC = materialise(batch, device, self._loader.step_uv, data.n_channels, data.normalisation)
        images_B = batch.images.clamp(min=0)
        crops_B = draws.integers(seed, batch.positions, Purpose.VIEW, self._features.crops)
        views = self._features.views(images_B, crops_B)
        features_BD = None
        if self._clip_width is not None:
            objective = self.recipe.objective
            whole = objective.alignment_target == "image" and objective.alignment_view == "whole"
            of_view = getattr(views, objective.alignment_target)
            features_BD = self._features.of_whole_images(images_B) if whole else of_view
        return Batch(
            x_BTC,
            batch.positions,
            send(images_B, device),
            send(batch.valid, device),
            send(views.mean, device),
            send(views.std, device),
            None if features_BD is None else send(features_BD, device),
        )

    def _precomputed(self, codec: LatentCodec, clip: Clip | None, display: Display) -> Features:
        """Latents and features of all pictures; what is missing is computed here, each rank a share of it."""
        recipe, ranks, pictures = self.recipe, self.ranks, self._loader.pictures
        assert pictures is not None, "check_stores has seen them"
        codec.vae.to(ranks.device)
        if clip is not None:
            clip.model.to(ranks.device)
        path: Path | None = None
        with ranks.agreeing():
            if ranks.is_main:
                path = prepare(pictures, codec, clip, recipe.features_folder, recipe.views)
        path = ranks.from_main(path)
        assert path is not None, "rank 0 has made it, or every rank has raised"
        with ranks.agreeing():
            told = [time.monotonic()]

            def tell(done: int, of: int) -> None:
                display.doing(f"latents and CLIP features after {done:,} of {of:,} pictures")
                if ranks.is_main and time.monotonic() - told[0] > _TELL_EVERY_S:
                    told[0] = time.monotonic()
                    display.say(f"latents and CLIP features: {done:,} of this rank's {of:,} pictures")

            fill(path, pictures, codec, clip, recipe.views, tell, ranks.rank, ranks.world_size)
        if ranks.is_main:
            display.say(f"latents and CLIP features of {len(pictures.names):,} pictures: {path}")
        return Features(path)

    def _windows(self) -> dict[str, Any]:
        """How windows have to be prepared for the conditioner."""
        return {
            "sfreq": self._loader.sfreq,
            "normalisation": self.recipe.data.normalisation.model_dump(mode="json"),
            "preprocessing": self._loader.preprocessing,
            "short_trials": self.recipe.data.short_trials,
            "condition_dropout": self.recipe.objective.condition_dropout,
        }

    def _open_held_out(self) -> Loader | None:
        recipe, ranks = self.recipe, self.ranks
        if not recipe.validation.every:
            return None
        return Loader.fixed(
            recipe.data,
            "val",
            windows=recipe.validation.windows,
            micro_batch_size=recipe.micro_batch_size,
            rank=ranks.rank,
            world_size=ranks.world_size,
            stores=self._loader.stores,
            to_the_end=True,
        )


def _clip_of(recipe: FinetuneRecipe) -> Clip | None:
    """CLIP, or None where nothing is aligned with it and there is none. Raises FileNotFoundError where it is needed."""
    try:
        return Clip(recipe.clip_folder)
    except FileNotFoundError:
        # One that is there is used all the same: what was precomputed with it is found again.
        if recipe.objective.alignment != "none" or recipe.clip_model is not None:
            raise
        return None
