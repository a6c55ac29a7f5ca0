"""What an export recipe says: where the weights are, which precisions, samplers and batch sizes are wanted."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ddscale.recipes import Settings


class EEGInput(Settings):
    """What windows the graphs will be given. Left out, everything is as the source says."""

    channels: int | None = Field(default=None, ge=1)
    """Channels of a recording; fewer than the encoder takes are repeated, as in training. null: as many as it takes."""
    sfreq: float | None = Field(default=None, gt=0)
    """Sampling rate, Hz, for a source that does not state it; another one than it states is an error."""
    normalisation: dict[str, Any] | None = None
    """`{kind: zscore, clip: 15, eps_uv: 0.1}` or `{kind: divide, by_uv: 10, clip: null}`, likewise."""
    preprocessing: dict[str, Any] | None = None
    """Filtering that recordings must have had, likewise; kept in the manifest for whoever prepares them."""


class ScheduleSettings(Settings):
    """One sampler for which a table is written."""

    name: Literal["pndm", "ddim", "dpmsolver++", "unipc", "lcm"]
    """`lcm` needs a U-Net that was distilled for it."""
    steps: int = Field(ge=1, le=1000)
    """Denoising steps; each number of steps is a table of its own."""


class ProfileSettings(Settings):
    """Batch sizes that engines are built for, in pictures. The U-Net's are doubled for guidance."""

    name: str = Field(default="default", pattern="^[a-z0-9-]+$")
    """Names the profile among others."""
    min: int = Field(default=1, ge=1)
    """Smallest batch."""
    opt: int = Field(default=1, ge=1)
    """Batch that is tuned for."""
    max: int = Field(default=4, ge=1)
    """Largest batch; memory is reserved for it."""

    @model_validator(mode="after")
    def _in_order(self) -> ProfileSettings:
        if not self.min <= self.opt <= self.max:
            raise ValueError(
                f"profile {self.name}: {self.min}, {self.opt}, {self.max} are not min <= opt <= max."
            )
        return self


class EngineSettings(Settings):
    """How export/to_tensorrt.py builds engines from the ONNX folder."""

    flavour: Literal["rtx", "datacentre"] = "rtx"
    """`rtx` (GeForce, RTX and A10/L4-like GPUs) is built on any machine; `datacentre` needs its GPU and TensorRT."""
    target: str = "ada"
    """Which GPUs: turing, ampere, ada, blackwell or sm75 to sm121 for rtx; `here`, this machine's, for datacentre."""
    precision: Literal["fp32", "fp16", "int8", "fp8"] = "fp16"
    """Which of the exported precisions."""


class ExportRecipe(Settings):
    """From a trained pipeline or encoder to ONNX graphs, tables and a manifest."""

    stage: Literal["export"] = "export"
    """Which command this recipe is for."""
    source: str
    """A fine-tuned run, a pipeline's folder, any diffusers folder (then with `conditioner`), or an encoder's folder."""
    conditioner: str | None = None
    """Folder of an EEG conditioner, for a diffusers folder that has none."""
    out: str
    """Folder to write; a folder for each precision inside. An earlier export there is replaced as a whole."""
    precisions: list[Literal["fp32", "fp16", "int8", "fp8"]] = Field(default=["fp32"], min_length=1)
    """fp32: the reference; fp16: half the memory, for GPUs; int8, fp8: quantised matrix products and convolutions,
    their weights a quarter as large; fp8, for GPUs since Ada, was the coarser one in what was measured."""
    schedules: list[ScheduleSettings] = [
        ScheduleSettings(name="dpmsolver++", steps=20),
        ScheduleSettings(name="dpmsolver++", steps=8),
    ]
    """Samplers that the runtime will offer; the first is also replayed end to end."""
    tiny_decoder: str | None = None
    """Folder of an AutoencoderTiny, or of TAESD's two `.pth` files, for the same latents: exported beside the full
    decoder, for few-step use."""
    profiles: list[ProfileSettings] = Field(default=[ProfileSettings()], min_length=1)
    """Batch sizes of the engines."""
    eeg: EEGInput = EEGInput()
    """What windows the graphs will be given."""
    engines: EngineSettings = EngineSettings()
    """How engines are built."""
    seed: int = 0
    """Of the inputs that graphs are checked on."""

    @field_validator("schedules")
    @classmethod
    def _no_schedule_twice(cls, schedules: list[ScheduleSettings]) -> list[ScheduleSettings]:
        pairs = [(s.name, s.steps) for s in schedules]
        if twice := sorted(
            {f"{name} with {steps} steps" for name, steps in pairs if pairs.count((name, steps)) > 1}
        ):
            raise ValueError(f"stated twice: {', '.join(twice)}.")
        return schedules

    @field_validator("precisions", "profiles")
    @classmethod
    def _nothing_twice(cls, items: list[Any]) -> list[Any]:
        names = [getattr(item, "name", item) for item in items]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"stated twice: {', '.join(twice)}.")
        return items
