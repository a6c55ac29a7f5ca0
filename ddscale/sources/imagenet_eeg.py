"""The `imagenet-eeg` source: EEG to ImageNet's pictures (EEGCVPR40) as published in .pth files.

Its recordings were made block by block, one class after another: what tells the classes apart may be the time of the
recording (Li et al., TPAMI 2020). It is read for comparison with what was published on it.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from ddscale.signal.channels import standardise
from ddscale.sources.epochs import Shown, check_pictures, recording_of_epochs, suffix_of
from ddscale.sources.provenance import Provenance, Whereabouts
from ddscale.sources.recording import STANDARDISED, Listing, OpenRecording, Picture, Recording

_SFREQ = 1000.0
# The lengths that all who published on it use.
_SHORTEST, _LONGEST = 450, 600
# The published division of one person alone names half of the trials; one that is misread, a sixth or less.
_LEAST_SHARE = 1 / 3
Split = Literal["train", "val", "test"]
_SPLITS: tuple[Split, ...] = ("train", "val", "test")


class ImageNetEEGSource(Provenance):
    """ImageNet-EEG: six persons, 2,000 pictures of 40 classes, 128 channels at 1000 Hz, half a second each.

    Its numbers are standardised, no µV: the recipe must store float32, and limits of quality in µV do not apply.
    """

    kind: Literal["imagenet-eeg"]

    eeg: Annotated[str, Whereabouts]
    """The recordings: `eeg_5_95_std.pth`, `eeg_14_70_std.pth` or `eeg_55_95_std.pth`. Files in PyTorch's old format
    are read into memory whole, in each worker."""

    images: Annotated[str, Whereabouts]
    """ImageNet's training folder, with `n02951358/n02951358_31190.JPEG` in it; only what was shown need be there."""

    splits: Annotated[str | None, Whereabouts] = None
    """The division into train, val and test: `block_splits_by_image_all.pth` or `..._single.pth`; left out: by a hash
    of the pictures' content."""

    split_numbers: Literal["all", "of_person"] = "all"
    """What the division counts: all trials of the file (`..._all.pth`), or only those of the one person in `subjects`,
    as the code published with it reads `..._single.pth`."""

    split_number: int = Field(0, ge=0)
    """Which of the file's divisions."""

    subjects: Annotated[list[int] | None, Whereabouts] = Field(None, min_length=1)
    """Persons to take, 1 to 6; left out: all. Most of what was published is on person 4 alone."""

    start: Annotated[int, Whereabouts] = Field(20, ge=0)
    """First sample of a trial, ms after the picture appears: earlier ones may hold what the one before evoked."""

    stop: Annotated[int, Whereabouts] = Field(460, le=_SHORTEST)
    """Last sample of a trial, not included, ms."""

    captions: dict[str, str] = {}
    """Caption of each class, by its WordNet number, such as `n02951358: a photo of a canoe`."""

    @property
    def values_unit(self) -> str:
        return STANDARDISED

    @model_validator(mode="after")
    def _something_is_left(self) -> ImageNetEEGSource:
        if self.stop - self.start < 2:
            raise ValueError(f"a trial from sample {self.start} to {self.stop} is empty: raise `stop:`.")
        return self

    @model_validator(mode="after")
    def _one_numbering(self) -> ImageNetEEGSource:
        if self.splits is None:
            return self
        if self.split_numbers == "of_person" and len(self.subjects or ()) != 1:
            raise ValueError(
                "`split_numbers: of_person` counts the trials of one person: name that one in `subjects:`, such as [4]."
            )
        if self.split_numbers == "all" and Path(self.splits).stem.endswith("_single"):
            raise ValueError(
                f"`splits: {self.splits}` divides the trials of one person, counted by themselves: set "
                "`split_numbers: of_person` and the person in `subjects:`, or take `block_splits_by_image_all.pth`."
            )
        return self


def list_imagenet_eeg(source: ImageNetEEGSource) -> Listing:
    """A recording per person, and the pictures they saw.

    Raises FileNotFoundError naming a file or picture that is missing, ValueError when a file is not as published.
    """
    whole = _load(Path(source.eeg))
    names, labels = list(whole["images"]), list(whole["labels"])
    items = whole["dataset"]
    of_item = _splits(source, items)
    chosen: dict[int, list[int]] = defaultdict(list)
    left_out = 0
    stated: dict[str, Split | None] = {}
    for number, item in enumerate(items):
        subject, length = int(item["subject"]), int(item["eeg"].shape[1])
        if source.subjects is not None and subject not in source.subjects:
            continue
        if not _SHORTEST <= length <= _LONGEST or (of_item is not None and number not in of_item):
            left_out += 1
            continue
        name = names[int(item["image"])]
        split = None if of_item is None else of_item[number]
        if stated.setdefault(name, split) != split:
            raise ValueError(
                f"{source.splits}: picture {name} is in {stated[name]} for one trial and in {split} for another: it "
                "does not divide by picture, and what it trains on it would test on. Take a `..._by_image_...` file."
            )
        chosen[subject].append(number)
    missing = sorted(set(source.subjects or ()) - set(chosen))
    if missing or not chosen:
        there = sorted({int(item["subject"]) for item in items})
        raise ValueError(
            f"{source.eeg} has no trials of person {missing or source.subjects}; it has {there}."
        )
    class_of = {
        names[int(items[n]["image"])]: labels[int(items[n]["label"])] for ns in chosen.values() for n in ns
    }
    pictures = []
    for name, label in class_of.items():
        path = Path(source.images) / name.split("_")[0] / f"{name}.JPEG"
        caption = source.captions.get(label)
        pictures.append(Picture(name, str(path), suffix_of(path), label, caption, stated[name]))
    recordings = [
        Recording(
            dataset=source.dataset,
            subject=f"subject{subject}",
            id=f"subject{subject}",
            path=source.eeg,
            size_bytes=len(numbers) * 128 * 500 * 4,
            opener=partial(_open, source, tuple(numbers)),
            beside=() if source.splits is None else (source.splits,),
            cut=f"samples {source.start} to {source.stop}",
        )
        for subject, numbers in sorted(chosen.items())
    ]
    notes = [
        "recorded block by block, one class after another: a decoder may tell classes by when they were recorded "
        "(Li et al. 2020); check any result on a set in random order"
    ]
    if left_out:
        notes.append(
            f"{left_out} trials are left out: in no split of the file, or not {_SHORTEST} to {_LONGEST} samples long"
        )
    return Listing(recordings, [], check_pictures(pictures, source.eeg), notes)


def _load(path: Path) -> dict[str, Any]:
    """The file's content; tensors stay on disk where its format allows it. Nothing in it is ever executed."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Correct `eeg:` (it is relative to where you are).")
    whole = _load_numbers(path)
    needed = {"dataset", "labels", "images"}
    if not isinstance(whole, dict) or not needed <= set(whole) or not whole["dataset"]:
        raise ValueError(
            f"{path} is not ImageNet-EEG as published: it must be a dict of {', '.join(sorted(needed))}."
        )
    first = whole["dataset"][0]
    if not {"eeg", "image", "label", "subject"} <= set(first) or first["eeg"].ndim != 2:
        raise ValueError(f"{path}: its trials must have eeg (channels, samples), image, label and subject.")
    return whole


def _load_numbers(path: Path) -> Any:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about versions of pickle, which nobody can act on
        try:
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                if "mmap" not in str(error):
                    raise
                return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(
                f"{path} cannot be read as a PyTorch file of numbers ({str(error).splitlines()[0]}). Copy it again."
            ) from error


def _splits(source: ImageNetEEGSource, items: list[Any]) -> dict[int, Split] | None:
    """Split of each trial by its number in the whole file; those in none are missing.

    Raises ValueError when the division does not go together with the trials of the persons asked for.
    """
    if source.splits is None:
        return None
    mine = [
        n
        for n, item in enumerate(items)
        if source.subjects is None or int(item["subject"]) in source.subjects
    ]
    counted = mine if source.split_numbers == "of_person" else range(len(items))
    path = Path(source.splits)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Correct `splits:`, or leave it out.")
    try:
        divisions = _load_numbers(path)["splits"]
        division = divisions[source.split_number]
        found = {int(number): split for split in _SPLITS for number in division[split]}
        count = sum(len(division[split]) for split in _SPLITS)
    except IndexError:
        raise ValueError(
            f"{path} has {len(divisions)} divisions; `split_number: {source.split_number}` is none."
        ) from None
    except Exception as error:
        raise ValueError(
            f"{path} is no division of ImageNet-EEG as published ({error!r}). Copy it again."
        ) from error
    if len(found) < count:
        raise ValueError(
            f"{path}, division {source.split_number}: a trial is in two splits. Copy the file again."
        )
    if mine and max(found, default=0) >= len(counted):
        whose = f" of person {source.subjects}" if source.split_numbers == "of_person" else ""
        raise ValueError(
            f"{path} names trial {max(found)}, and {source.eeg} has {len(counted)}{whose}: they do not go together. "
            "Check `split_numbers:` and `subjects:`."
        )
    of_item = {counted[number]: split for number, split in found.items()} if mine else {}
    named = sum(number in of_item for number in mine)
    if named < _LEAST_SHARE * len(mine):
        raise ValueError(
            f"{path} with `split_numbers: {source.split_numbers}` names {named} of the {len(mine)} trials asked for of "
            f"{source.eeg}: it counts other trials. Check `split_numbers:` and `subjects:`, or take the division that "
            "belongs to the file."
        )
    return of_item


def _open(source: ImageNetEEGSource, numbers: tuple[int, ...]) -> OpenRecording:
    whole = _load(Path(source.eeg))
    items, names, labels = whole["dataset"], whole["images"], whole["labels"]
    shown = []
    for number in numbers:
        label = labels[int(items[number]["label"])]
        shown.append(Shown(names[int(items[number]["image"])], label, source.captions.get(label)))

    def take(epoch: int) -> np.ndarray:
        values: np.ndarray = items[numbers[epoch]]["eeg"][:, source.start : source.stop].float().numpy()
        return values

    n_channels = int(items[numbers[0]]["eeg"].shape[0])
    return recording_of_epochs(
        path=source.eeg,
        sfreq=_SFREQ,
        # The files do not say which electrode is which.
        channels=standardise([f"channel {i + 1}" for i in range(n_channels)], ["eeg"] * n_channels),
        shown=shown,
        samples=source.stop - source.start,
        take=take,
        unit=STANDARDISED,
        unit_source="file",
        in_time=False,
        meta={"format": "ImageNet-EEG", "epoch_ms": [source.start, source.stop]},
    )
