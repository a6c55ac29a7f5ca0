"""The recipe of a probe: which labelled trials, which encoders, and what they are held against."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from ddscale.recipes import Settings


class LinearProbe(Settings):
    """Logistic regression on what the frozen encoder gives."""

    features: list[Literal["mean", "mean_std"]] = Field(default=["mean", "mean_std"], min_length=1)
    """Of a window's tokens their mean, or mean and standard deviation over time, which keeps how strongly they go to
    and fro; of several windows of a trial, the average. Each is a row of the table: none is picked afterwards."""

    regularisation: list[float] = Field(default=[1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0], min_length=1)
    """Inverse strengths (scikit-learn's C) to choose from, by leaving out one training subject after another."""


class FineTuning(Settings):
    """Encoder and a linear head on its pooled output, trained together on the training subjects' trials."""

    epochs: int = Field(default=30, ge=1)
    """Passes over the training trials; each takes another stretch of trials longer than a window."""

    batch_size: int = Field(default=32, ge=1)
    """Trials per step."""

    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate of AdamW; warms up over a tenth of the steps, then falls along a cosine."""

    weight_decay: float = Field(default=0.05, ge=0)
    """Decoupled decay of the weights."""

    seeds: list[int] | None = Field(default=None, min_length=1)
    """Of head, batches and random encoders; null: the probe's. Fewer save most of a probe's time."""


class BandPower(Settings):
    """Logistic regression on the logarithm of each channel's power in each band."""

    bands: dict[str, list[float]] = {
        "delta": [1.0, 4.0], "theta": [4.0, 8.0], "alpha": [8.0, 13.0], "beta": [13.0, 30.0], "gamma": [30.0, 45.0],
    }  # fmt: skip
    """Name -> [low, high], Hz."""

    @field_validator("bands")
    @classmethod
    def _bands_are_intervals(cls, bands: dict[str, list[float]]) -> dict[str, list[float]]:
        wrong = [name for name, edges in bands.items() if len(edges) != 2 or not 0 <= edges[0] < edges[1]]
        if wrong or not bands:
            raise ValueError(f"{', '.join(wrong) or 'no band'}: a band is [low, high] in Hz, low below high.")
        return bands


class SteadyState(Settings):
    """Methods that know the flicker's frequencies: canonical correlation, and power at them over their neighbours."""

    frequencies: list[float] = Field(min_length=1)
    """Hz of each stimulus; trials without one (rest) are told by the classifier that reads all of them."""

    harmonics: int = Field(default=3, ge=1)
    """Sines and cosines at so many multiples of each frequency."""


class ProbeRecipe(Settings):
    """Classification of labelled trials, each subject in turn left out of everything that is fitted."""

    stage: Literal["probe"]
    """This recipe's stage."""

    out: str
    """Folder for probe.json."""

    store: str
    """Store with labelled trials; all its splits are used, since each subject is tested once."""

    datasets: list[str] | None = None
    """Datasets of the store to use; null: all with labels."""

    labels: list[str] | None = None
    """Classes to tell apart; null: all there are."""

    start_s: float = Field(default=0.0, ge=0)
    """Where the part of a trial that is used begins, s from the trial's beginning."""

    stop_s: float | None = Field(default=None, gt=0)
    """Where it ends; null: with the shortest trial."""

    encoders: dict[str, str] = {}
    """Name -> folder of a pretrained encoder, such as RUN/encoder. Of each one's sizes, random ones are tested too."""

    window_overlap: float = Field(default=0.5, ge=0, lt=1)
    """Least share of a window that the next one of the same trial repeats, where trials are longer than windows."""

    short_trials: Literal["pad", "stretch"] = "pad"
    """Trials shorter than an encoder's window: zeros behind them, or stretched to its length."""

    seeds: list[int] = Field(default=[0, 1, 2], min_length=1)
    """Of random encoders and of fine-tuning: each is done with every one of them."""

    linear: LinearProbe = LinearProbe()
    """Linear probe, and how every method's classifier is regularised."""

    finetuning: FineTuning | None = FineTuning()
    """Fine-tuning; null: none."""

    band_power: BandPower | None = BandPower()
    """Baseline; null: none."""

    steady_state: SteadyState | None = None
    """Baselines for flickering stimuli; null: none."""

    shuffles: int = Field(default=20, ge=1)
    """How often the training labels are shuffled (within subjects) for the control; fine-tuning, which takes longest:
    once."""

    @model_validator(mode="after")
    def _there_is_something_to_do(self) -> ProbeRecipe:
        problems = []
        if not self.encoders and self.band_power is None and self.steady_state is None:
            problems.append("nothing to probe: name `encoders`, or a baseline.")
        if self.stop_s is not None and self.stop_s <= self.start_s:
            problems.append(f"stop_s {self.stop_s:g} is not after start_s {self.start_s:g}.")
        if self.labels is not None and len(set(self.labels)) < 2:
            problems.append("labels: at least two different ones are needed to tell apart.")
        if problems:
            raise ValueError("\n    ".join(problems))
        return self
