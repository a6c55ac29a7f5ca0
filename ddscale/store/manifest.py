"""What a store says about itself: `manifest.json`, as typed models."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ddscale.store import layout
from ddscale.store.layout import FORMAT, FORMAT_VERSION, PAIRED_VERSION, Backend
from ddscale.store.quantisation import Dtype

MICROVOLT = "uV"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class MontageChannel(_Part):
    name: str
    """As the recording gives it."""
    standard: str | None
    """Standard 10-20/10-10/10-05, EGI or BioSemi name; None where there is none."""
    kind: str
    """eeg, eog, emg, ecg, ref or misc."""
    position: tuple[float, float, float] | None = None
    """Metres, head coordinates; of the first recording that states them."""


class Montage(_Part):
    """The channels of a device's recordings, before bad ones are left out record by record."""

    channels: list[MontageChannel]
    reference: str | None = None

    @property
    def id(self) -> str:
        """`<channels>ch-<hash>`; positions do not count, so that digitised heads do not each become a montage."""
        named = [(channel.name, channel.standard, channel.kind) for channel in self.channels]
        text = json.dumps([named, self.reference], ensure_ascii=False)
        return f"{len(self.channels)}ch-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def without(self, dropped: list[int]) -> list[MontageChannel]:
        """The channels of a record from which those at the positions `dropped` were left out."""
        return [channel for position, channel in enumerate(self.channels) if position not in set(dropped)]


class StoreFormat(_Part):
    """What is one and the same for every record of a store, settled when it is first built."""

    backend: Backend
    sfreq: float
    """Hz."""
    dtype: Dtype
    """int16, or float32 (values are then µV)."""
    step_uV: float
    """µV per least significant bit; 1.0 for float32."""
    record_s: float
    """Longest record, seconds."""
    min_record_s: float
    """Shortest record, seconds."""
    shard_mb: float
    """Size at which a shard is closed, MB (uncompressed, for Zarr)."""
    chunk_samples: int
    """Zarr: samples of one record in an inner chunk, the least that can be decompressed."""
    channel_kinds: list[str]
    """Kinds of channels that records hold."""
    filters: dict[str, Any]
    """Settings of the signal processing."""
    quality: dict[str, Any]
    """Settings of the quality control."""
    salt_check: str
    """Tells whether a salt is the one that subjects were hashed with."""
    unit: str = MICROVOLT
    """What a value of 1 after multiplication by the step is; `standardised` where publishers divided by a spread."""

    @property
    def record_samples(self) -> int:
        """Longest record, samples."""
        return round(self.record_s * self.sfreq)

    @property
    def itemsize(self) -> int:
        """Bytes per value."""
        return 2 if self.dtype == "int16" else 4

    def rows_per_shard(self, channels: int) -> int:
        """Zarr: how many records of so many channels one shard has room for."""
        return max(1, int(self.shard_mb * 1e6) // (self.record_samples * channels * self.itemsize))

    @property
    def preprocessing_hash(self) -> str:
        """16 hex digits; equal exactly when records of two ingests may lie in one store."""
        text = json.dumps([FORMAT_VERSION, _stated(StoreFormat.model_dump(self))], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class TableFile(_Part):
    rows: int
    sha256: str


class TrialCounts(_Part):
    """What a dataset of trials holds."""

    trials: int
    trials_by_split: dict[str, int]
    labels: int
    """Different labels among the trials."""
    images: int
    """Pictures in the store, shown in a trial that was kept or not."""
    images_by_split: dict[str, int]
    images_shown: int
    """Pictures with at least one trial."""
    most_repetitions: int
    """Most trials of one picture and subject."""


class DatasetEntry(_Part):
    licence: str | None
    url: str | None
    recordings: int
    """Recordings that gave at least one record."""
    quarantined: int
    """Recordings that were left out whole."""
    subjects: int
    records: int
    hours: float
    hours_found: float
    """Length of all recordings that could be opened."""
    hours_by_split: dict[str, float]
    hours_by_channels: dict[str, float]
    """Hours by the number of channels in the record."""
    subjects_by_split: dict[str, int]
    rejected_hours: dict[str, float]
    """Hours left out, by reason; channels left out of otherwise good recordings do not count."""
    dropped_channels: dict[str, int]
    """Channels left out for whole recordings, by reason."""
    clipped: int
    """Values at the limit of the integer range."""
    largest_quantisation_error_uV: float
    trials: TrialCounts | None = None
    """None for a dataset of continuous recordings."""


class Totals(_Part):
    hours: float
    recordings: int
    subjects: int
    records: int


class Splitting(_Part):
    """How subjects, and pictures that EEG was recorded to, were divided; names are hashed."""

    val_fraction: float
    test_fraction: float
    val_subjects: list[str] = []
    test_subjects: list[str] = []
    val_images: float = 0.0
    test_images: float = 0.0
    images_by: Literal["image", "image_and_subject"] = "image"
    """Whether a trial goes where its picture goes, or is kept only where its subject belongs there too."""


class Blocklist(_Part):
    """Who and what must not be in the store."""

    subjects: list[str] = []
    """Hashed."""
    recordings: list[str] = []
    """dataset/recording."""


class Manifest(_Part):
    format: Literal["ddscale-store"] = FORMAT
    version: int = FORMAT_VERSION
    writer: str
    """Name and version of the program that built the store."""
    preprocessing_hash: str
    content: StoreFormat
    totals: Totals
    datasets: dict[str, DatasetEntry]
    splitting: Splitting
    blocklist: Blocklist
    montages: dict[str, Montage]
    tables: dict[str, TableFile]
    """The Parquet files beside this one."""

    def to_json(self) -> str:
        return json.dumps(_stated(self.model_dump(mode="json")), indent=1, ensure_ascii=False) + "\n"


# What stores of continuous recordings in µV need not say; without it they are what they were before there was it.
_UNSAID = {
    "unit": MICROVOLT,
    "trials": None,
    "val_images": 0.0,
    "test_images": 0.0,
    "images_by": "image",
}


def _stated(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    return {key: _stated(value) for key, value in tree.items() if key not in _UNSAID or value != _UNSAID[key]}


def read_manifest(store: Path) -> Manifest:
    """The manifest of the store in this folder.

    Raises FileNotFoundError when there is none, ValueError when it is not one this version reads.
    """
    path = store / layout.MANIFEST
    if not path.is_file():
        if (store / layout.STAGING).is_dir():
            raise FileNotFoundError(
                f"{store} holds an ingest that has not finished: no {layout.MANIFEST} yet. "
                "Run the same `ddscale ingest` again: it continues."
            )
        found = "is not there" if not store.is_dir() else f"holds no {layout.MANIFEST}"
        raise FileNotFoundError(f"No store at {store}: it {found}. Build one with `ddscale ingest RECIPE`.")
    try:
        tree = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}). Copy the store again, or ingest into a new folder."
        ) from error
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        raise ValueError(
            f"{path} is not the manifest of a ddscale store. Point at a folder ddscale ingest built."
        )
    if tree.get("version") not in (FORMAT_VERSION, PAIRED_VERSION):
        raise ValueError(
            f"{store} has store format {tree.get('version')}, this version of ddscale reads {FORMAT_VERSION} and "
            f"{PAIRED_VERSION}. "
            "Ingest again into a new folder, or use the ddscale that built it."
        )
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(
            f"{path} is not a manifest of format {tree['version']}: {error.errors()[0]['msg']} at "
            f"{'.'.join(str(part) for part in error.errors()[0]['loc'])}. Ingest again into a new folder."
        ) from error
