"""EEG to image with diffusers' parts: what StableDiffusionPipeline does, the caption replaced by EEG.

Shape letters: B windows, T samples, C channels, G pictures (B times pictures per window), L and W a condition's
length and width, h and w a latent's height and width.
"""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import diffusers
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    ImagePipelineOutput,
    LCMScheduler,
    PNDMScheduler,
    SchedulerMixin,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ddscale.diffusion.codec import VAE, LatentCodec
from ddscale.diffusion.conditioning import Condition, EEGConditioner
from ddscale.diffusion.unet import load_unet

SchedulerName = Literal["pndm", "ddim", "dpmsolver++", "unipc", "lcm"]


class _Recipe(NamedTuple):
    kind: Any
    settings: dict[str, Any]


# Settings that Stable Diffusion's own configuration has, and other schedulers' configurations lack.
_SCHEDULERS: dict[str, _Recipe] = {
    "pndm": _Recipe(PNDMScheduler, {"skip_prk_steps": True, "set_alpha_to_one": False}),
    "ddim": _Recipe(DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),
    "dpmsolver++": _Recipe(DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "unipc": _Recipe(UniPCMultistepScheduler, {}),
    "lcm": _Recipe(LCMScheduler, {"clip_sample": False}),
}


def scheduler_named(name: str, like: SchedulerMixin) -> SchedulerMixin:
    """A scheduler by name, with the noise levels and prediction type of `like`.

    `pndm` is PLMS, Stable Diffusion 1's own. `lcm` needs a U-Net that was distilled for it.
    Raises ValueError naming the known ones.
    """
    if name not in _SCHEDULERS:
        raise ValueError(f"scheduler {name!r} is not known: use one of {', '.join(get_args(SchedulerName))}.")
    kind, settings = _SCHEDULERS[name]
    scheduler: SchedulerMixin = kind.from_config(like.config, **settings)
    return scheduler


class EEGToImagePipeline(DiffusionPipeline):
    """Generates pictures from EEG windows; saved and loaded as any diffusers pipeline."""

    model_cpu_offload_seq = "conditioner->unet->vae"

    vae: VAE
    unet: UNet2DConditionModel
    scheduler: Any
    conditioner: EEGConditioner

    def __init__(
        self,
        vae: VAE,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        conditioner: EEGConditioner,
    ) -> None:
        """Raises ValueError when the parts do not fit each other."""
        super().__init__()
        _check_fit(vae, unet, conditioner)
        self.register_modules(vae=vae, unet=unet, scheduler=scheduler, conditioner=conditioner)
        self.codec = LatentCodec(vae)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.codec.downsampling)

    @classmethod
    def from_stable_diffusion(
        cls, folder: str | Path, conditioner: EEGConditioner, unet: UNet2DConditionModel | None = None
    ) -> EEGToImagePipeline:
        """A Stable Diffusion folder's VAE, scheduler and U-Net (unless one is given) with an EEG conditioner."""
        scheduler = load_scheduler(folder)
        return cls(LatentCodec.from_folder(folder).vae, unet or load_unet(folder), scheduler, conditioner)

    @torch.no_grad()
    def __call__(
        self,
        eeg: Tensor | None = None,
        *,
        condition: Condition | None = None,
        without: Condition | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 3.0,
        num_images_per_eeg: int = 1,
        height: int | None = None,
        width: int | None = None,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        callback_on_step_end: Callable[[EEGToImagePipeline, int, Any, dict[str, Any]], Any] | None = None,
    ) -> ImagePipelineOutput:
        """Pictures for a batch of windows, those of one window beside each other.

        eeg: (B, T, C) float, as the conditioner's encoder takes it; or condition: (B, L, W) hidden states and
        vector in its place, with `without` as what guidance starts from (by default the conditioner's own).
        guidance_scale: 1 is without guidance, which then costs half. height, width: pixels; by default the
        U-Net's own size. eta: DDIM's noise. generator: one for all or one for each of the G pictures.
        latents: starting noise (G, C, h, w). output_type: pil, np, pt or latent.
        Warns when guidance starts from states that were never trained.
        Raises ValueError when what is given does not fit.
        """
        device = self._execution_device
        if (eeg is None) == (condition is None):
            raise ValueError("give either `eeg` windows or a `condition`, one of the two.")
        if eeg is not None:
            condition = self.conditioner(eeg.to(device=device, dtype=self.conditioner.dtype))
        assert condition is not None, "one of the two was given"
        batch, pictures = len(condition.hidden_states), len(condition.hidden_states) * num_images_per_eeg
        guided = guidance_scale > 1
        if guided and without is None:
            self._warn_of_untrained_guidance(guidance_scale)
            without = self.conditioner.without_eeg(batch)
        conditions = [without, condition] if guided and without is not None else [condition]
        hidden = self._together([c.hidden_states for c in conditions], num_images_per_eeg)
        vectors = [c.time for c in conditions]
        vector = None if vectors[0] is None else self._together(vectors, num_images_per_eeg)

        self.scheduler.set_timesteps(num_inference_steps, device=device)
        latents = self._starting_latents(pictures, height, width, generator, latents, hidden.dtype)
        extra = self._what_step_takes(eta=eta, generator=generator)
        with self.progress_bar(total=len(self.scheduler.timesteps)) as progress:
            for number, timestep in enumerate(self.scheduler.timesteps):
                # Both halves in one batch, in Stable Diffusion's order, so that equal inputs give equal bits.
                entering = torch.cat([latents] * 2) if guided else latents
                entering = self.scheduler.scale_model_input(entering, timestep)
                predicted = self.unet(
                    entering, timestep, encoder_hidden_states=hidden, class_labels=vector, return_dict=False
                )[0]
                if guided:
                    unconditional, conditional = predicted.chunk(2)
                    predicted = unconditional + guidance_scale * (conditional - unconditional)
                latents = self.scheduler.step(predicted, timestep, latents, **extra, return_dict=False)[0]
                if callback_on_step_end is not None:
                    changed = callback_on_step_end(self, number, timestep, {"latents": latents}) or {}
                    latents = changed.get("latents", latents)
                progress.update()

        if output_type == "latent":
            images: Any = latents
        else:
            decoded = self.codec.decode(latents)
            images = self.image_processor.postprocess(
                decoded, output_type=output_type, do_denormalize=[True] * pictures
            )
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images)

    def _warn_of_untrained_guidance(self, guidance_scale: float) -> None:
        if self.conditioner.config.get("condition_dropout") == 0:
            warnings.warn(
                f"guidance_scale is {guidance_scale:g}, and this pipeline was trained with condition_dropout 0: what "
                "guidance starts from, the states that stand for no EEG, was never trained. Set guidance_scale to 1, "
                "or train with objective.condition_dropout above 0.",
                stacklevel=3,
            )

    def _together(self, tensors: list[Any], per_window: int) -> Tensor:
        repeated = [t.to(device=self._execution_device, dtype=self.unet.dtype) for t in tensors]
        return torch.cat([t.repeat_interleave(per_window, dim=0) for t in repeated])

    def _starting_latents(
        self,
        pictures: int,
        height: int | None,
        width: int | None,
        generator: Any,
        latents: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        own = self.unet.config.sample_size
        own_height, own_width = (own, own) if isinstance(own, int) else own
        step = self.codec.downsampling
        if (height or 0) % step or (width or 0) % step:
            raise ValueError(f"height {height} and width {width} must be multiples of {step}.")
        shape = (
            pictures,
            self.unet.config.in_channels,
            height // step if height else own_height,
            width // step if width else own_width,
        )
        if isinstance(generator, list) and len(generator) != pictures:
            raise ValueError(
                f"{len(generator)} generators for {pictures} pictures: give one for each, or one."
            )
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=self._execution_device, dtype=dtype)
        elif tuple(latents.shape) != shape:
            raise ValueError(f"latents are {tuple(latents.shape)}, these pictures need {shape}.")
        return latents.to(self._execution_device) * self.scheduler.init_noise_sigma

    def _what_step_takes(self, **offered: Any) -> dict[str, Any]:
        taken = inspect.signature(self.scheduler.step).parameters
        return {name: value for name, value in offered.items() if name in taken}


def load_scheduler(folder: str | Path) -> SchedulerMixin:
    """The scheduler of a pipeline's folder, of whatever class it names.

    Raises FileNotFoundError when there is none, ValueError when diffusers has no such class.
    """
    path = Path(folder) / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"no scheduler in {folder}: {path} is not there. Give a pipeline's whole folder."
        )
    name = json.loads(path.read_text(encoding="utf-8")).get("_class_name", "")
    kind: Any = getattr(diffusers, name, None)
    if not hasattr(kind, "set_timesteps"):
        raise ValueError(f"{path} names the scheduler {name!r}, which the installed diffusers does not have.")
    return kind.from_pretrained(path.parent, local_files_only=True)


def _check_fit(vae: VAE, unet: UNet2DConditionModel, conditioner: EEGConditioner) -> None:
    sizes, given = unet.config, conditioner.config
    problems = []
    if sizes.in_channels != vae.config.latent_channels:
        problems.append(
            f"latents of {vae.config.latent_channels} channels, the U-Net takes {sizes.in_channels}"
        )
    if sizes.cross_attention_dim != given.width:
        problems.append(f"conditions {given.width} wide, the U-Net takes {sizes.cross_attention_dim}")
    takes_vector = sizes.class_embed_type == "simple_projection"
    if takes_vector != bool(given.time_condition):
        problems.append(
            f"the conditioner {'gives' if given.time_condition else 'lacks'} a vector beside the time, the U-Net "
            f"{'takes' if takes_vector else 'has no place for'} one (unet.add_time_condition makes it)"
        )
    if problems:
        raise ValueError(f"the pipeline's parts do not fit: {'; '.join(problems)}.")
