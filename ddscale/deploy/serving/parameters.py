"""What a service takes on, and what a request may ask for."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Limits(BaseModel):
    """What one service takes on."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    places: int = Field(default=32, ge=1)
    """Requests that wait, are drawn or are being answered; others get 429. Memory: each holds one body, one answer."""
    timeout_s: float = Field(default=120.0, gt=0)
    """From a request's arrival to its pictures; then 504, or 408 when its body had not come."""
    write_timeout_s: float = Field(default=30.0, gt=0)
    """For a client to take its whole answer; then the connection is closed."""
    max_pictures: int = Field(default=16, ge=1)
    """Windows times samples of one request."""


class Asked(BaseModel):
    """Parameters of a request."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    steps: int | None = Field(default=None, ge=1, le=1000)
    """Denoising steps, of those that were exported; by default the first."""
    scheduler: str | None = Field(default=None, max_length=40)
    """Sampler, of those that were exported; by default the first."""
    guidance: float = Field(default=3.0, ge=1, le=100, allow_inf_nan=False)
    """How far pictures are pushed to what the EEG says; 1 is none, at half the cost."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """The same EEG, parameters and seed give the same pictures."""
    samples: int = Field(default=1, ge=1, le=1000)
    """Pictures for each window."""
    sfreq: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """The EEG's sampling rate, Hz; refused when it is not the model's."""
    unit: str = Field(default="uV", max_length=20)
    """The EEG's unit; refused when it is not the model's."""
    format: Literal["png", "zip"] = "png"
    """png: one picture or a grid. zip: `<window>-<sample>.png` for each."""

    @classmethod
    def described(cls) -> str:
        """A line for each parameter."""
        return "\n".join(
            f"  {name} (default {field.default}): {field.description}"
            for name, field in cls.model_fields.items()
        )
