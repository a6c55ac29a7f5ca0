"""What came of an ingest, for a person to read and for a script to act on."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ddscale.ingest.trials import TRIAL
from ddscale.store import layout, tables
from ddscale.store.manifest import DatasetEntry, Manifest
from ddscale.store.publishing import UNLISTED

BLOCKLISTED = "blocklisted"


@dataclass(frozen=True)
class DatasetRow:
    """One dataset of the store. hours: in recordings that could be opened, in records, left out by reason."""

    dataset: str
    recordings_found: int
    recordings_kept: int
    recordings_quarantined: int
    recordings_new: int
    """Kept for the first time by this run."""
    hours_found: float
    hours_kept: float
    hours_rejected: dict[str, float]
    channels_dropped: dict[str, int]
    """Bad channels left out for a whole recording, by reason."""


@dataclass(frozen=True)
class Quarantined:
    """A recording, or a file that could not be one, that is not in the store."""

    dataset: str
    recording: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Summary:
    """store: its folder. problems: what else went wrong. notes: what a person should know, though all went well."""

    store: str
    datasets: list[DatasetRow]
    quarantined: list[Quarantined]
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Everything that was found, and not blocked on purpose, is in the store."""
        return not self.quarantined and not self.problems

    def as_dict(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}


def summarise(
    store: Path, manifest: Manifest, new: dict[str, int], problems: list[str], notes: list[str]
) -> Summary:
    """The summary of a store as it was just published. new: recordings kept by this run, per dataset."""
    recordings = tables.read(store / layout.RECORDINGS, tables.RECORDINGS)
    rejected = tables.read(store / layout.REJECTED, tables.REJECTED)
    left_out = recordings.filter(pc.equal(recordings["status"].cast("string"), "quarantined"))
    unlisted = rejected.filter(pc.equal(rejected["reason"].cast("string"), UNLISTED))
    quarantined = [
        Quarantined(row["dataset"], row["recording"], row["reason"], row["detail"])
        for table in (left_out, unlisted)
        for row in table.select(["dataset", "recording", "reason", "detail"]).to_pylist()
        if row["reason"] != BLOCKLISTED
    ]
    rows = []
    for name, entry in manifest.datasets.items():
        mine = sum(item.dataset == name for item in quarantined)
        rows.append(
            DatasetRow(
                dataset=name,
                recordings_found=entry.recordings + mine,
                recordings_kept=entry.recordings,
                recordings_quarantined=mine,
                recordings_new=new.get(name, 0),
                hours_found=entry.hours_found,
                hours_kept=entry.hours,
                hours_rejected=entry.rejected_hours,
                channels_dropped=entry.dropped_channels,
            )
        )
        if mine and not entry.recordings:
            problems = [*problems, f"dataset {name}: none of its {mine} recordings could be used."]
        notes = [*notes, *_trial_notes(name, entry, manifest), *_dropped_trials(name, entry, rejected)]
        if not (entry.trials is not None and entry.trials.images):
            notes = [*notes, *_subject_notes(name, entry, manifest)]
    notes = [*notes, *(note for row in recordings["notes"].to_pylist() for note in row or [])]
    return Summary(
        str(store), rows, sorted(quarantined, key=lambda q: (q.dataset, q.recording)), problems, notes
    )


def _subject_notes(name: str, entry: DatasetEntry, manifest: Manifest) -> list[str]:
    """What a person should know of how a dataset's people were divided."""
    if not entry.subjects:
        return []
    notes = []
    if entry.subjects == 1 and entry.recordings > 1:
        notes.append(
            f"dataset {name}: its {entry.recordings} recordings count as one subject, in one split. If they are "
            "of several people, say how files name them (`subject: stem`, or a regular expression) and ingest into "
            "a new folder."
        )
    splitting = manifest.splitting
    for split, wanted in (("val", splitting.val_fraction), ("test", splitting.test_fraction), ("train", 1)):
        if wanted and not entry.subjects_by_split.get(split):
            remedy = (
                "there is nothing of it to train on"
                if split == "train"
                else f"name some in splits.{split}_subjects if some should"
            )
            notes.append(
                f"dataset {name}: none of its {entry.subjects} subjects fell into {split}; {remedy}."
            )
    return notes


def _dropped_trials(name: str, entry: DatasetEntry, rejected: pa.Table) -> list[str]:
    """How many trials of a dataset were left out, and why."""
    mine = pc.and_(
        pc.equal(rejected["dataset"].cast("string"), name), pc.starts_with(rejected["detail"], TRIAL)
    )
    counts = Counter(rejected["reason"].filter(mine).cast("string").to_pylist())
    if not counts or entry.trials is None:
        return []
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
    total = entry.trials.trials + counts.total()
    return [f"dataset {name}: {counts.total()} of {total} trials are left out: {reasons}"]


def _trial_notes(name: str, entry: DatasetEntry, manifest: Manifest) -> list[str]:
    """What a person should know of how a dataset's pictures were divided."""
    trials, splitting = entry.trials, manifest.splitting
    if trials is None or not trials.images:
        return []
    notes = []
    for split, fraction in (("val", splitting.val_images), ("test", splitting.test_images)):
        if fraction and not trials.images_by_split.get(split):
            notes.append(
                f"dataset {name}: none of its {trials.images} pictures fell into {split}; raise splits.{split}_images "
                "if some should."
            )
    by_subject = splitting.val_fraction or splitting.test_fraction
    if by_subject and splitting.images_by == "image":
        notes.append(
            f"dataset {name} is divided by picture: splits.val and splits.test have no effect on it. Persons are held "
            "out as well with splits.images_by: image_and_subject."
        )
    if trials.images_shown < trials.images:
        notes.append(
            f"dataset {name}: {trials.images - trials.images_shown} of its {trials.images} pictures have no trial that "
            "was kept."
        )
    return notes


def write_summary(store: Path, summary: Summary) -> None:
    """Keep the summary beside the store's tables, without what only this run can say."""
    tree = summary.as_dict()
    for row in tree["datasets"]:
        del row["recordings_new"]
    del tree["store"]
    layout.write_bytes(
        store / layout.SUMMARY, (json.dumps(tree, indent=1, ensure_ascii=False) + "\n").encode()
    )
