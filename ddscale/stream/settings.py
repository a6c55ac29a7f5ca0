"""What a recipe says about data: which stores, how windows are cut, in which order, how they are scaled."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, field_validator

from ddscale.recipes import Settings


class ZScore(Settings):
    """Each channel of each window to zero mean and unit variance: amplitude differences are discarded."""

    kind: Literal["zscore"] = "zscore"
    """Normalise by the window's own statistics."""

    clip: float | None = Field(default=15.0, gt=0)
    """Standard deviations beyond which values are cut, so that one artefact cannot own the loss; null: never."""

    eps_uv: float = Field(default=0.1, gt=0)
    """Smallest standard deviation divided by, µV: a flat channel stays flat, and is not blown up to noise."""


class Divide(Settings):
    """All values by one number: amplitude differences are kept (DreamDiffusion divides by 10)."""

    kind: Literal["divide"] = "divide"
    """Normalise by a constant."""

    by_uv: float = Field(default=10.0, gt=0)
    """µV that become 1."""

    clip: float | None = Field(default=None, gt=0)
    """Largest absolute value after the division; null: no limit."""


Normalisation = Annotated[ZScore | Divide, Field(discriminator="kind")]


class CacheSettings(Settings):
    """Where a node keeps files of remote stores while they are in use; all its ranks share it."""

    folder: str | None = None
    """On a disk of the node itself. null: `ddscale` in XDG_CACHE_HOME, else in the system's folder for temporary
    files."""

    max_gb: float = Field(default=100.0, gt=0)
    """Size up to which files are kept, GB; the longest unused go first. What does not fit is fetched again."""


class StreamSettings(Settings):
    """The stream: a pure function from position to window, and the machinery that reads ahead along it."""

    stores: list[str] = Field(min_length=1)
    """Folders or URLs (s3://, gs://, https://..., anything fsspec reads) of the stores to read, all of one sampling
    rate, step and dtype. file:// gives a mounted network disk the node's cache."""

    cache: CacheSettings = CacheSettings()
    """For stores behind a URL."""

    window_samples: int = Field(default=512, ge=2)
    """Samples in a window (512 at 256 Hz: 2 s); longer windows cost memory and compute in proportion."""

    overlap: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of a window shared with the next one of the same record: more windows, less new in each. Without effect
    on trials."""

    cut: Literal["sliding", "trials"] = "sliding"
    """`sliding`: windows one after another through every record. `trials`: one window for each trial, from its onset,
    and nothing of continuous recordings; needed for what goes with a picture."""

    short_trials: Literal["pad", "stretch"] = "pad"
    """Trials shorter than a window: zeros after the end, or stretched to fill it by linear interpolation, which
    changes frequencies in proportion (DreamDiffusion makes 512 samples of 440)."""

    n_channels: int = Field(default=128, ge=1)
    """Channels given to the model: fewer are repeated to fill it, of more a run chosen by the position is kept."""

    sfreq: float | None = Field(default=None, gt=0)
    """Sampling rate the recipe counts on, Hz; another one in a store is an error. null: whatever the stores have."""

    normalisation: Normalisation = ZScore()
    """How µV become the model's numbers."""

    weights: dict[str, float] | None = None
    """Share of each dataset in the mixture, every dataset named, 0 leaves one out. null: every window of every
    dataset exactly once per epoch."""

    shuffle: Literal["global", "block"] = "global"
    """`global`: any window can follow any other, and almost every one is in another file than the last. `block`:
    windows of a few shards from anywhere at a time, for large stores on disks or networks that open and seek slowly;
    windows of a recording meet in a batch more often."""

    block_shards: int = Field(default=8, ge=1)
    """Shards in a block of the block shuffle (of each dataset, with weights): more mix better, fewer read more nearly
    in sequence. Let a block last for many global batches of different recordings."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """Decides order, masks and channel crops; same seed, same stores: same batches on any number of ranks."""

    reader_threads: int = Field(default=2, ge=0)
    """Threads that read ahead on each rank; 0 reads while the training waits."""

    reads_at_once: int = Field(default=1, ge=1, le=256)
    """Reads under way at a time on each rank for the micro-batches being read: 16 hide the latency of a network file
    system; a local disk gains little."""

    prefetch: int = Field(default=4, ge=1)
    """Micro-batches read ahead on each rank, never less than one step of them; each costs its int16 windows in
    (pinned) memory."""

    blocklist: list[str] = []
    """`dataset/recording` or `dataset/subject` whose windows must not be seen; a subject of a store with a secret
    salt by its hash."""

    max_unreadable: int = Field(default=100, ge=0)
    """Records that may turn out unreadable on a rank, each replaced by invalid zeros, before the run stops."""

    max_unreadable_fraction: float = Field(default=0.05, ge=0, le=1)
    """Fraction of the last 1,000 windows of a rank that may have been unreadable before the run stops: notices a disk
    that is gone, whatever the number of different records. 1 turns it off."""

    retry_s: float = Field(default=60.0, ge=0)
    """Seconds for which reads that the storage fails are tried again, at growing intervals, before their records count
    as unreadable; what is damaged or missing is not waited for."""

    @field_validator("stores")
    @classmethod
    def _no_store_twice(cls, stores: list[str]) -> list[str]:
        twice = sorted({store for store in stores if stores.count(store) > 1})
        if twice:
            raise ValueError(
                f"named twice: {', '.join(twice)}. To see a dataset more often give it a weight."
            )
        return stores

    @field_validator("blocklist")
    @classmethod
    def _blocklist_names_datasets(cls, blocklist: list[str]) -> list[str]:
        bare = [entry for entry in blocklist if not all(entry.partition("/"))]
        if bare:
            raise ValueError(f"{', '.join(bare)}: write `dataset/recording` or `dataset/subject`.")
        return blocklist

    @field_validator("weights")
    @classmethod
    def _weights_make_a_mixture(cls, weights: dict[str, float] | None) -> dict[str, float] | None:
        if weights is None:
            return None
        wrong = [f"{name}: {w}" for name, w in sorted(weights.items()) if not (math.isfinite(w) and w >= 0)]
        if wrong:
            raise ValueError(f"a weight is a finite number of at least 0, found {', '.join(wrong)}.")
        if not any(weights.values()):
            raise ValueError("no dataset has a weight above 0. Give at least one, or leave `weights` out.")
        return weights

    @property
    def hop_samples(self) -> int:
        """Samples from the start of a window to the start of the next in the same record."""
        return max(1, round(self.window_samples * (1 - self.overlap)))
