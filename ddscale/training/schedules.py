"""Learning rate as a pure function of the step: nothing is kept, so nothing can be resumed wrongly."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from ddscale.recipes import Settings


class Schedule(Settings):
    """Linear warm-up, then half a cosine to the end, or a plateau with a linear decay at the end."""

    kind: Literal["cosine", "wsd"] = "cosine"
    """cosine: falls all the way, best for one planned length. wsd (warm-up, stable, decay): stays at the peak until
    the decay, so that one run can be lengthened or branched from its plateau."""

    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the rate rises linearly from 0 to the peak."""

    final_fraction: float = Field(default=0.0, ge=0, le=1)
    """Rate at the last step, as a part of the peak."""

    decay_steps: int | None = Field(default=None, ge=1)
    """wsd only: steps of the final decay; null: a tenth of all steps."""

    @model_validator(mode="after")
    def _decay_belongs_to_wsd(self) -> Schedule:
        if self.kind == "cosine" and self.decay_steps is not None:
            raise ValueError("decay_steps has no effect on a cosine: remove it, or set kind: wsd.")
        return self

    def problems(self, steps: int) -> list[str]:
        """What does not fit into a run of `steps` steps."""
        needed = self.warmup_steps + (self.decay_length(steps) if self.kind == "wsd" else 0)
        if needed <= steps:
            return []
        parts = "warm-up and decay take" if self.kind == "wsd" else "warm-up takes"
        return [f"schedule: {parts} {needed} steps, the run has {steps}: shorten it, or raise `steps`."]

    def decay_length(self, steps: int) -> int:
        """Steps of wsd's final decay."""
        return self.decay_steps if self.decay_steps is not None else max(1, steps // 10)


def learning_rate(schedule: Schedule, step: int, steps: int, peak: float) -> float:
    """Rate of update number `step` (the first is 0) in a run of `steps` updates; after the last, its rate."""
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    if schedule.kind == "cosine":
        length = steps - schedule.warmup_steps
        progress = min(1.0, (step - schedule.warmup_steps) / length) if length else 1.0
        height = 0.5 * (1.0 + math.cos(math.pi * progress))
    else:
        decay = schedule.decay_length(steps)
        # The last update's rate is one step above the end, as the cosine's is: neither wastes an update at 0.
        height = min(1.0, max(0.0, (steps - step) / decay))
    return peak * (schedule.final_fraction + (1.0 - schedule.final_fraction) * height)
