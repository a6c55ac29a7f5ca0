"""The recipe of an ingest: sources, what is done to the signal, what is kept, how it is stored and divided."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from pydantic import Field, field_validator, model_validator

from ddscale.recipes import Settings
from ddscale.signal.preprocessing import Preprocessing
from ddscale.signal.quality import Quality
from ddscale.sources import SourceSettings, unit_of
from ddscale.store.identity import PUBLIC_SALT, salt_check
from ddscale.store.layout import Backend
from ddscale.store.manifest import MICROVOLT, StoreFormat
from ddscale.store.quantisation import Dtype

ChannelKind = Literal["eeg", "eog", "emg", "ecg", "ref", "misc"]

_NO_LIMIT = 1e30


class Storage(Settings):
    """How records lie in the store."""

    dtype: Dtype = "int16"
    """int16 at a fixed step, or float32 (µV, twice the size)."""
    step_uV: float = Field(0.1, gt=0)
    """µV per least significant bit of int16; 0.1 reaches ±3.28 mV. Smaller keeps more detail and clips earlier."""
    record_s: float = Field(60.0, gt=0, le=600)
    """Longest record, seconds. Windows are cut inside records, so a long one wastes less at its end."""
    min_record_s: float = Field(2.0, gt=0)
    """Shortest stretch of good signal that is kept, seconds; shorter than a window it can never be drawn. Trials are
    kept whatever their length."""
    shard_mb: float = Field(512.0, gt=0)
    """Size at which a shard file is closed, MB (for Zarr before compression)."""
    chunk_s: float = Field(2.0, gt=0)
    """Zarr: seconds of one record compressed together, the least that a window costs to read."""
    channel_kinds: list[ChannelKind] = Field(["eeg", "eog"], min_length=1)
    """Kinds of channels that are stored. EOG is near enough to EEG in size and place; ECG and EMG are not."""

    @model_validator(mode="after")
    def _lengths_fit(self) -> Storage:
        if self.min_record_s > self.record_s:
            raise ValueError(
                f"min_record_s ({self.min_record_s:g}) must not exceed record_s ({self.record_s:g})"
            )
        if self.chunk_s > self.record_s:
            raise ValueError(f"chunk_s ({self.chunk_s:g}) must not exceed record_s ({self.record_s:g})")
        return self


class Splits(Settings):
    """Who and what is held out. A subject is in one split with all recordings, and stays there as the store grows;
    recordings of EEG to pictures are divided by picture."""

    val: float = Field(0.0, ge=0, lt=1)
    """Fraction of subjects for validation, by a hash of dataset and subject: about that many, not exactly."""
    test: float = Field(0.0, ge=0, lt=1)
    """Fraction of subjects for the final test, by the same hash."""
    val_subjects: list[str] = []
    """Subjects for validation whatever their hash, as `dataset/subject`."""
    test_subjects: list[str] = []
    """Subjects for the final test whatever their hash, as `dataset/subject`."""
    val_images: float = Field(0.0, ge=0, lt=1)
    """Fraction of the pictures that EEG was recorded to for validation, by a hash of their content. Of pictures whose
    publishers hold out a test set only, this is taken from those they train on."""
    test_images: float = Field(0.0, ge=0, lt=1)
    """Fraction of those pictures for the final test, where their publishers hold out none."""
    images_by: Literal["image", "image_and_subject"] = "image"
    """Where a trial with a picture goes: where its picture goes, whoever saw it; or only where its subject belongs as
    well, so that both are new in validation and test. Trials whose two sides disagree are then left out."""

    @field_validator("val_subjects", "test_subjects")
    @classmethod
    def _with_dataset(cls, names: list[str]) -> list[str]:
        return _qualified(names, "subject")

    @model_validator(mode="after")
    def _disjoint(self) -> Splits:
        if self.val + self.test >= 1:
            raise ValueError(f"val ({self.val:g}) and test ({self.test:g}) leave nobody to train on")
        if self.val_images + self.test_images >= 1:
            raise ValueError(
                f"val_images ({self.val_images:g}) and test_images ({self.test_images:g}) leave none to train on"
            )
        both = sorted(set(self.val_subjects) & set(self.test_subjects))
        if both:
            raise ValueError(f"in val_subjects and in test_subjects: {', '.join(both)}. Choose one")
        return self


class BlocklistSettings(Settings):
    """Who and what must never be in the store, such as subjects that a model will be evaluated on."""

    subjects: list[str] = []
    """As `dataset/subject`."""
    recordings: list[str] = []
    """As `dataset/recording`, the name that the summary and the index give it."""

    @field_validator("subjects")
    @classmethod
    def _subjects_with_dataset(cls, names: list[str]) -> list[str]:
        return _qualified(names, "subject")

    @field_validator("recordings")
    @classmethod
    def _recordings_with_dataset(cls, names: list[str]) -> list[str]:
        return _qualified(names, "recording")


def _qualified(names: list[str], what: str) -> list[str]:
    wrong = [name for name in names if name.count("/") != 1 or not all(name.split("/"))]
    if wrong:
        raise ValueError(f"write `dataset/{what}`, not {', '.join(f'`{name}`' for name in wrong)}")
    return names


class IngestRecipe(Settings):
    """Everything `ddscale ingest` needs to build or continue a store."""

    stage: Literal["ingest"]
    out: str
    """Folder of the store."""
    backend: Backend = "tar"
    """tar: fastest to read, uncompressed. zarr: about two thirds of the size, read at a quarter of the speed."""
    sources: list[SourceSettings] = Field(min_length=1)
    """Where the recordings come from."""
    preprocessing: Preprocessing = Field(default_factory=Preprocessing)
    """What is done to the signal."""
    quality: Quality = Field(default_factory=Quality)
    """What is left out."""
    storage: Storage = Field(default_factory=Storage)
    """How it is stored."""
    splits: Splits = Field(default_factory=Splits)
    """Who is held out."""
    blocklist: BlocklistSettings = Field(default_factory=BlocklistSettings)
    """Who and what must not get in."""
    salt: str = Field(PUBLIC_SALT, min_length=1)
    """Secret that subjects' names are hashed with. The default is public: fit for public data only."""
    workers: int | None = Field(None, ge=0)
    """Processes on this machine; null: one per core. 0: none, all in this process, for finding faults."""
    scheduler: str | None = None
    """Address of a running Dask scheduler (tcp://...) whose workers see the same paths; instead of `workers`."""
    recording_limit_h: float | None = Field(2.0, gt=0)
    """Hours that one recording may take, downloading it included, before the process that reads it is ended and it is
    quarantined; the others go on. null: any time. Has no effect with `workers: 0`."""

    @model_validator(mode="after")
    def _one_source_per_dataset(self) -> IngestRecipe:
        count = Counter(source.dataset for source in self.sources)
        twice = sorted(name for name, times in count.items() if times > 1)
        if twice:
            raise ValueError(
                f"dataset {', '.join(twice)} is named by more than one source: give each source a dataset of its own"
            )
        if self.scheduler is not None and self.workers is not None:
            raise ValueError("`scheduler:` brings its own workers: leave out `workers:`")
        return self

    @model_validator(mode="after")
    def _units_fit(self) -> IngestRecipe:
        units = {source.dataset: unit_of(source) for source in self.sources}
        if len(set(units.values())) > 1:
            said = ", ".join(f"{name} in {unit}" for name, unit in units.items())
            raise ValueError(
                f"sources of several units ({said}) cannot share a store: make one for each unit"
            )
        if set(units.values()) != {MICROVOLT} and self.storage.dtype != "float32":
            raise ValueError(
                f"dataset {', '.join(units)} is not in µV, and a step of {self.storage.step_uV:g} would cut its "
                "numbers off: set storage.dtype: float32"
            )
        return self

    @property
    def effective_quality(self) -> Quality:
        """`quality`, without the limits in µV where the sources are in another unit."""
        if unit_of(self.sources[0]) == MICROVOLT:
            return self.quality
        return self.quality.model_copy(update={"flat_uV": 0.0, "amplitude_uV": _NO_LIMIT})

    def store_format(self) -> StoreFormat:
        """What every record of this recipe's store has in common."""
        return StoreFormat(
            backend=self.backend,
            sfreq=self.preprocessing.sfreq,
            dtype=self.storage.dtype,
            step_uV=self.storage.step_uV if self.storage.dtype == "int16" else 1.0,
            record_s=self.storage.record_s,
            min_record_s=self.storage.min_record_s,
            shard_mb=self.storage.shard_mb,
            chunk_samples=max(1, round(self.storage.chunk_s * self.preprocessing.sfreq)),
            channel_kinds=list(self.storage.channel_kinds),
            filters=self.preprocessing.model_dump(mode="json"),
            quality=self.effective_quality.model_dump(mode="json"),
            salt_check=salt_check(self.salt),
            unit=unit_of(self.sources[0]),
        )
