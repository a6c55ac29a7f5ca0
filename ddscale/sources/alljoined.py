"""The `alljoined` source: EEG to pictures of COCO (Alljoined1, Xu et al. 2024), as published on Hugging Face.

FOLDER/train-00000-of-00011.parquet, FOLDER/test-...   rows: EEG (64, 334) in V at 512 Hz, from 50 ms before the
                                                       picture; subject_id, session, block, trial, 73k_id, coco_id
IMAGES/000000000139.jpg                                COCO 2017, `train2017` and `val2017`
"""

from __future__ import annotations

import json
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from ddscale.signal.channels import standardise
from ddscale.sources.epochs import Shown, check_pictures, recording_of_epochs
from ddscale.sources.provenance import Provenance, Whereabouts
from ddscale.sources.recording import Listing, OpenRecording, Picture, Recording

Part = Literal["train", "test"]
_PARTS: tuple[Part, ...] = ("train", "test")
_NEEDED = ("EEG", "subject_id", "session", "block", "trial", "coco_id")
_SFREQ = 512.0
_ONSET = 26  # samples: 50 ms
_UV_PER_V = 1e6
# The order in which BioSemi's 64 electrodes come; the files do not name them.
_BIOSEMI64 = (
    "Fp1 AF7 AF3 F1 F3 F5 F7 FT7 FC5 FC3 FC1 C1 C3 C5 T7 TP7 CP5 CP3 CP1 P1 P3 P5 P7 P9 PO7 PO3 O1 Iz Oz POz Pz CPz "
    "Fpz Fp2 AF8 AF4 AFz Fz F2 F4 F6 F8 FT8 FC6 FC4 FC2 FCz Cz C2 C4 C6 T8 TP8 CP6 CP4 CP2 P2 P4 P6 P8 P10 PO8 PO4 O2"
)


class AlljoinedSource(Provenance):
    """Alljoined1: eight persons, 10,000 pictures of COCO each, 64 channels at 512 Hz, 0.6 s after the picture."""

    kind: Literal["alljoined"]

    folder: Annotated[str, Whereabouts]
    """Folder with `train-*.parquet` and `test-*.parquet`."""

    images: Annotated[list[str], Whereabouts] = Field(min_length=1)
    """Folders with COCO's pictures, searched in this order, such as `coco/train2017` and `coco/val2017`."""

    captions: Annotated[list[str], Whereabouts] = []
    """COCO's caption files, such as `captions_train2017.json`; each picture gets the first of its captions."""

    published_split: bool = True
    """Keep the published division into train and test. false: pictures are divided by a hash of their content."""

    subjects: Annotated[list[int] | None, Whereabouts] = Field(None, min_length=1)
    """Persons to take; left out: all."""

    channels: list[str] = Field(default_factory=_BIOSEMI64.split)
    """Names of the channels in the order of the files; the default is BioSemi's order of 64."""


def list_alljoined(source: AlljoinedSource) -> Listing:
    """A recording per person, session and part, and the pictures shown, without reading any EEG.

    Raises FileNotFoundError naming a file or picture that is missing, ValueError when a picture is in both parts.
    """
    rows: dict[tuple[int, int, Part], int] = defaultdict(int)
    part_of: dict[int, Part] = {}
    files = {part: _files(source, part) for part in _PARTS}
    if not any(files.values()):
        raise FileNotFoundError(
            f"{source.folder} holds no train-*.parquet or test-*.parquet. Correct `folder:`."
        )
    for part in _PARTS:
        for path in files[part]:
            table = _read(path, ["subject_id", "session", "coco_id"])
            for subject, session, coco in zip(
                *(table[name].to_pylist() for name in table.column_names), strict=True
            ):
                if source.subjects is not None and subject not in source.subjects:
                    continue
                rows[subject, session, part] += 1
                if part_of.setdefault(coco, part) != part and source.published_split:
                    raise ValueError(
                        f"{source.folder}: picture {coco} is in train and in test, so what is trained on would be "
                        "tested on. Set `published_split: false` to divide the pictures anew."
                    )
    if not rows:
        raise ValueError(f"{source.folder} has no trials of person {source.subjects}.")
    captions = _captions(source, set(part_of))
    pictures = [
        Picture(
            image=_name(coco),
            path=str(_picture_path(source, coco)),
            suffix="jpg",
            caption=captions.get(coco),
            split=part if source.published_split else None,
        )
        for coco, part in part_of.items()
    ]
    recordings = [
        Recording(
            dataset=source.dataset,
            subject=f"subject{subject}",
            id=f"subject{subject}_session{session}_{part}",
            path=source.folder,
            size_bytes=count * 64 * 334 * 4,
            opener=partial(_open, source, subject, session, part, captions),
        )
        for (subject, session, part), count in sorted(rows.items())
    ]
    return Listing(
        sorted(recordings, key=lambda recording: recording.id), [], check_pictures(pictures, source.folder)
    )


def _files(source: AlljoinedSource, part: Part) -> list[Path]:
    return sorted(Path(source.folder).glob(f"{part}-*.parquet"))


def _read(path: Path, columns: list[str], filters: Any = None) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        missing = sorted(set(_NEEDED) - set(pq.read_schema(path).names))
        if missing:
            raise ValueError(f"it lacks the columns {', '.join(missing)}")
        return pq.read_table(path, columns=columns, filters=filters, partitioning=None)
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        raise ValueError(
            f"{path} is no table of Alljoined as published: {error}. Download it again."
        ) from error


def _name(coco: int) -> str:
    return f"{coco:012d}"


def _picture_path(source: AlljoinedSource, coco: int) -> Path:
    """Where the picture is, or where it was looked for last."""
    paths = [Path(folder) / f"{_name(coco)}.jpg" for folder in source.images]
    return next((path for path in paths if path.is_file()), paths[-1])


def _captions(source: AlljoinedSource, wanted: set[int]) -> dict[int, str]:
    first: dict[int, tuple[int, str]] = {}
    for name in source.captions:
        if not Path(name).is_file():
            raise FileNotFoundError(f"There is no file {name}. Correct `captions:`, or leave it out.")
        try:
            for entry in json.loads(Path(name).read_bytes())["annotations"]:
                coco, number = entry["image_id"], entry["id"]
                if coco in wanted and number < first.get(coco, (number + 1, ""))[0]:
                    first[coco] = number, entry["caption"].strip()
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{name} is no caption file of COCO ({error!r}). Download it again.") from error
    return {coco: caption for coco, (_, caption) in first.items()}


def _open(
    source: AlljoinedSource, subject: int, session: int, part: Part, captions: dict[int, str]
) -> OpenRecording:
    parts: list[np.ndarray] = []
    order: list[tuple[int, int, int]] = []
    for path in _files(source, part):
        mine = [("subject_id", "==", subject), ("session", "==", session)]
        table = _read(path, ["EEG", "block", "trial", "coco_id"], mine)
        if len(table):
            parts.append(_epochs(path, table["EEG"].combine_chunks(), len(source.channels)))
            order += zip(*(table[name].to_pylist() for name in ("block", "trial", "coco_id")), strict=True)
    if len({values.shape[1:] for values in parts}) > 1:
        raise ValueError(f"{source.folder}: files with epochs of several lengths. Download them again.")
    epochs_ECL = np.concatenate(parts)
    in_time = sorted(range(len(order)), key=lambda i: order[i][:2])

    def take(epoch: int) -> np.ndarray:
        values: np.ndarray = epochs_ECL[in_time[epoch], :, _ONSET:].astype(np.float64) * _UV_PER_V
        return values

    return recording_of_epochs(
        path=source.folder,
        sfreq=_SFREQ,
        channels=standardise(source.channels, ["eeg"] * len(source.channels)),
        shown=[Shown(_name(order[i][2]), None, captions.get(order[i][2])) for i in in_time],
        samples=epochs_ECL.shape[2] - _ONSET,
        take=take,
        unit="V",
        unit_source="file",
        in_time=True,
        meta={"format": "Alljoined1", "reference": "as preprocessed by its publishers"},
    )


def _epochs(path: Path, column: Any, channels: int) -> np.ndarray:
    """Nested lists as (E, C, L) float32."""
    rows = column.flatten()
    values = rows.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    samples = len(values) // max(len(rows), 1)
    shape = len(column), channels, samples
    regular = len(rows) == len(column) * channels and np.prod(shape) == len(values) and samples > _ONSET + 1
    if not regular:
        raise ValueError(
            f"{path}: EEG of {len(rows) / len(column):g} channels and about {samples} samples, and `channels:` names "
            f"{channels}: correct it, or download the file again."
        )
    return values.reshape(shape)
