"""The `things-eeg2` source: EEG to the pictures of THINGS (Gifford et al. 2022), preprocessed, as published.

FOLDER/sub-01/preprocessed_eeg_training.npy   a dict: preprocessed_eeg_data (pictures, repetitions, channels,
FOLDER/sub-01/preprocessed_eeg_test.npy       samples), ch_names, times
IMAGES/training_images/00001_aardvark/aardvark_01b.jpg, IMAGES/test_images/...
IMAGES/image_metadata.npy                     which picture is which; without it: in the order of their names
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from ddscale.signal.channels import standardise
from ddscale.sources.epochs import SUFFIXES, Shown, check_pictures, recording_of_epochs, suffix_of
from ddscale.sources.identity import recording_ids
from ddscale.sources.plain_pickle import load_dict
from ddscale.sources.provenance import Provenance, Unit, Whereabouts
from ddscale.sources.recording import STANDARDISED, Listing, OpenRecording, Picture, Recording

Part = Literal["training", "test"]
_PARTS: tuple[Part, ...] = ("training", "test")
_UV = {"V": 1e6, "mV": 1e3, "uV": 1.0, "µV": 1.0, "nV": 1e-3}


class ThingsEEG2Source(Provenance):
    """THINGS-EEG2: ten persons; 1,654 concepts with ten pictures shown four times each for training, 200 other concepts
    with one picture shown 80 times each for the test. Repetitions are kept apart: a record is a single trial."""

    kind: Literal["things-eeg2"]

    folder: Annotated[str, Whereabouts]
    """Folder with `sub-01` and so on. Files are read into memory whole, one per worker (up to 8 GB each)."""

    images: Annotated[str, Whereabouts]
    """Folder with `training_images` and `test_images`."""

    metadata: Annotated[str | None, Whereabouts] = None
    """The file that says which picture is which; left out: `image_metadata.npy` in `images`, where there is one."""

    subjects: Annotated[list[str] | None, Whereabouts] = Field(None, min_length=1)
    """Persons to take, such as `sub-01`; left out: all."""

    values: Annotated[Literal["standardised"] | Unit, Whereabouts] = "standardised"
    """Unit of the numbers. The published files were whitened by their noise and have none; files of your own
    preprocessing may be in V."""

    tmin: Annotated[float, Whereabouts] = 0.0
    """Beginning of a trial, s after the picture appears; the files begin before."""

    @property
    def values_unit(self) -> str:
        return STANDARDISED if self.values == STANDARDISED else "uV"


@dataclass(frozen=True)
class _Condition:
    concept: str
    picture: Picture

    @property
    def shown(self) -> Shown:
        return Shown(self.picture.image, self.picture.label, self.picture.caption)


def list_things_eeg2(source: ThingsEEG2Source) -> Listing:
    """Two recordings per person, training and test, and all pictures.

    Raises FileNotFoundError naming a file or picture that is missing, ValueError when training and test share concepts.
    """
    root = Path(source.folder)
    if not root.is_dir():
        raise FileNotFoundError(
            f"There is no folder {root}. Correct `folder:` (it is relative to where you are)."
        )
    there = sorted(path.name for path in root.glob("sub-*") if path.is_dir())
    subjects = there if source.subjects is None else source.subjects
    unknown = sorted(set(subjects) - set(there))
    if unknown or not subjects:
        raise FileNotFoundError(
            f"{root} has no {', '.join(unknown) or 'sub-*'}; it has {', '.join(there) or 'no person at all'}."
        )
    conditions = {part: _conditions(source, part) for part in _PARTS}
    shared = {c.concept for c in conditions["training"]} & {c.concept for c in conditions["test"]}
    if shared:
        raise ValueError(
            f"{source.images}: concepts are in training and in test: {', '.join(sorted(shared)[:5])}. The published "
            "sets are disjoint: unpack the pictures again."
        )
    recordings = []
    for subject in subjects:
        for part in _PARTS:
            path = root / subject / f"preprocessed_eeg_{part}.npy"
            if not path.is_file():
                raise FileNotFoundError(
                    f"{subject} has no {path}. Put it there, or leave the person out (`subjects:`)."
                )
            recordings.append(
                Recording(
                    dataset=source.dataset,
                    subject=subject,
                    id=f"{subject}_{part}",
                    path=str(path),
                    size_bytes=path.stat().st_size,
                    opener=partial(_open, source, path, tuple(c.shown for c in conditions[part])),
                    cut=f"{source.values}, from {source.tmin:g} s",
                )
            )
    pictures = [condition.picture for part in _PARTS for condition in conditions[part]]
    return Listing(
        sorted(recordings, key=lambda recording: recording.id), [], check_pictures(pictures, source.folder)
    )


def _conditions(source: ThingsEEG2Source, part: Part) -> list[_Condition]:
    """The pictures of a part in the order in which the files have them."""
    root = Path(source.images)
    folder = root / f"{part}_images"
    stated = Path(source.metadata) if source.metadata else root / "image_metadata.npy"
    if source.metadata or stated.is_file():
        said = load_dict(stated)
        prefix = "train" if part == "training" else "test"
        try:
            concepts, files = (list(said[f"{prefix}_img_{what}"]) for what in ("concepts", "files"))
        except KeyError as error:
            raise ValueError(f"{stated} has no {error}: it is not THINGS-EEG2's metadata.") from None
        pairs = [(str(concept), str(file)) for concept, file in zip(concepts, files, strict=True)]
    else:
        if not folder.is_dir():
            raise FileNotFoundError(
                f"There is no folder {folder}. Unpack the pictures there, or correct `images:`."
            )
        pairs = sorted(
            (path.parent.name, path.name) for path in folder.glob("*/*") if suffix_of(path) in SUFFIXES
        )
    names = recording_ids([f"{concept}/{file}" for concept, file in pairs])
    conditions = []
    for name, (concept, file) in zip(names, pairs, strict=True):
        words = re.sub(r"^\d+_", "", concept)
        path = folder / concept / file
        picture = Picture(
            image=name,
            path=str(path),
            suffix=suffix_of(path),
            label=words,
            caption=words.replace("_", " "),
            split="train" if part == "training" else "test",
        )
        conditions.append(_Condition(words, picture))
    return conditions


def _open(source: ThingsEEG2Source, path: Path, shown: tuple[Shown, ...]) -> OpenRecording:
    whole = load_dict(path)
    data, names, times = _parts(path, whole)
    pictures, repetitions, n_channels, _ = data.shape
    if pictures != len(shown):
        raise ValueError(
            f"{path} has {pictures} pictures, and {source.images} has {len(shown)}: they do not go together."
        )
    sfreq = round(1 / float(np.median(np.diff(times))), 3)
    first = int(np.searchsorted(times, source.tmin - 0.5 / sfreq))
    if len(times) - first < 2:
        raise ValueError(f"{path} ends {times[-1]:g} s after the picture: lower `tmin:` ({source.tmin:g}).")
    # Triggers that were left among the channels carry no EEG.
    keep = [i for i, name in enumerate(names) if name.lower() not in ("stim", "status", "trigger")]
    scale = 1.0 if source.values == STANDARDISED else _UV[source.values]

    def take(epoch: int) -> np.ndarray:
        values: np.ndarray = data[epoch // repetitions, epoch % repetitions][keep, first:] * scale
        return values

    return recording_of_epochs(
        path=str(path),
        sfreq=sfreq,
        channels=standardise([names[i] for i in keep], ["eeg"] * len(keep)),
        shown=[what for what in shown for _ in range(repetitions)],
        samples=len(times) - first,
        take=take,
        unit=source.values_unit,
        unit_source="recipe",
        # Sorted by picture: when each was shown is not in the files.
        in_time=False,
        meta={"format": "THINGS-EEG2", "repetitions": repetitions, "channels_found": n_channels},
        close=whole.clear,
    )


def _parts(path: Path, whole: dict[str, Any]) -> tuple[np.ndarray, list[str], np.ndarray]:
    missing = {"preprocessed_eeg_data", "ch_names", "times"} - set(whole)
    if missing:
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}; it has {', '.join(map(str, whole))}.")
    data, names = np.asarray(whole["preprocessed_eeg_data"]), [str(name) for name in whole["ch_names"]]
    times = np.asarray(whole["times"], np.float64)
    if data.ndim != 4 or data.dtype.kind != "f":
        raise ValueError(
            f"{path}: preprocessed_eeg_data is {data.dtype} {data.shape}, published is (pictures, repetitions, "
            "channels, samples)."
        )
    if data.shape[2] != len(names) or data.shape[3] != len(times):
        raise ValueError(
            f"{path}: {data.shape[2]} channels and {data.shape[3]} samples, but {len(names)} names and {len(times)} "
            "times: it is damaged, or not as published."
        )
    return data, names, times
