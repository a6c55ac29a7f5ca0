"""A table of trials: a line for each, saying in which recording something was presented, when, and what."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ddscale.sources.identity import recording_ids
from ddscale.sources.recording import Picture, Trial

COLUMNS = ("recording", "onset", "duration", "image", "label", "caption", "split")
_NEEDED = ("recording", "onset", "duration")
_SEPARATORS = {";": "the semicolon", "\t": "the tabulator", "|": "the bar"}
_BIDS = {"trial_type": "label", "stim_file": "image"}
SUFFIXES = ("png", "jpg", "jpeg")


@dataclass(frozen=True)
class Event:
    """A line of a table. onset, duration: s. image: as in `Picture.image`."""

    onset: float
    duration: float
    image: str | None
    label: str | None
    caption: str | None


@dataclass(frozen=True)
class Table:
    """events: by recording, in the order of the file. pictures: sorted by image."""

    events: dict[str, list[Event]]
    pictures: list[Picture]


def read_table(path: Path, images: Path) -> Table:
    """Read a table of trials; `images`: what the paths of pictures are relative to.

    Raises FileNotFoundError naming the table or a picture that is missing, ValueError naming the line at fault.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no table {path}. Correct `csv:` (it is relative to where you are)."
        )
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            _check_columns(path, columns)
            lines = [(number, line) for number, line in enumerate(reader, start=2)]
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text: byte 0x{error.object[error.start]:02x} at {error.start}. Save it as "
            '"CSV UTF-8" (in Excel: Save as, file type).'
        ) from error
    if not lines:
        raise ValueError(f"{path} has no line below its header: a line for each trial is needed.")
    shown = list(dict.fromkeys(line["image"] for _, line in lines if line.get("image")))
    names = dict(zip(shown, recording_ids(shown), strict=True))
    events: dict[str, list[Event]] = defaultdict(list)
    pictures: dict[str, Picture] = {}
    first: dict[tuple[str, Event], int] = {}
    for number, line in lines:
        where = f"{path}, line {number}"
        if None in line or None in line.values():
            raise ValueError(f"{where} has not as many fields as the header: quote fields that hold commas.")
        image = names.get(line.get("image") or "")
        if image is not None:
            _note_picture(pictures, image, images / line["image"], line, where)
        event = Event(
            onset=_seconds(line, "onset", where),
            duration=_seconds(line, "duration", where),
            image=image,
            label=line.get("label") or None,
            caption=line.get("caption") or None,
        )
        earlier = first.setdefault((line["recording"], event), number)
        if earlier != number:
            raise ValueError(f"{where} says the same as line {earlier}: take one of the two out.")
        events[line["recording"]].append(event)
        if not (image or line.get("label")):
            raise ValueError(f"{where}: neither `image` nor `label` is filled in: a trial needs one.")
    return Table(dict(events), [pictures[name] for name in sorted(pictures)])


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    missing = [name for name in _NEEDED if name not in columns]
    strange = [name for name in columns if name not in COLUMNS]
    if not (missing or strange or len(set(columns)) < len(columns)):
        return
    what = f"lacks the columns {', '.join(missing)}" if missing else f"has columns {', '.join(columns)}"
    found = f" It has {', '.join(columns) or 'none at all'}." if missing else ""
    raise ValueError(
        f"{path} {what}: its header may have {', '.join(COLUMNS)}, the first three it needs.{found}{_hint(columns)}"
    )


def _hint(columns: Sequence[str]) -> str:
    """What a header of another custom is most likely to need, for the end of a message."""
    for separator, named in _SEPARATORS.items():
        if len(columns) == 1 and separator in columns[0]:
            return f" Its separator is {named}: write it with commas."
    bids = [f"`{name}` to `{ours}`" for name, ours in _BIDS.items() if name in columns]
    if bids:
        return f" It looks like BIDS events: rename {' and '.join(bids)}, and name each line's file in `recording`."
    return ""


def _seconds(line: Mapping[str, str], name: str, where: str) -> float:
    try:
        seconds = float(line[name])
    except ValueError:
        raise ValueError(f"{where}: {name} `{line[name]}` is not a number of seconds.") from None
    if not (seconds > 0 or (name == "onset" and seconds == 0)) or seconds == float("inf"):
        raise ValueError(f"{where}: {name} {line[name]} s cannot be; the recording begins at 0.")
    return seconds


def _note_picture(
    pictures: dict[str, Picture], image: str, path: Path, line: Mapping[str, str], where: str
) -> None:
    suffix, split = path.suffix.lower().removeprefix("."), line.get("split") or None
    if split not in (None, "train", "val", "test"):
        raise ValueError(f"{where}: split `{split}` is none of train, val and test.")
    if image not in pictures:
        if suffix not in SUFFIXES:
            raise ValueError(f"{where}: picture {path} is not one of {', '.join(SUFFIXES)}: convert it.")
        if not path.is_file():
            raise FileNotFoundError(
                f"{where}: picture {line['image']} is missing: there is no {path}. Put it there, or take its lines out."
            )
        pictures[image] = Picture(
            image,
            str(path),
            suffix,
            line.get("label") or None,
            line.get("caption") or None,
            split,  # type: ignore[arg-type]
        )
    if pictures[image].split != split:
        raise ValueError(
            f"{where}: picture {line['image']} is in split `{split}` here and `{pictures[image].split}` in an earlier "
            "line: a picture is in one split."
        )


def to_trials(events: Sequence[Event], sfreq: float) -> list[Trial]:
    """Events as trials of a recording of this rate, in order of onset, repetitions counted."""
    seen: Counter[str] = Counter()
    trials = []
    for event in sorted(events, key=lambda event: event.onset):
        start = round(event.onset * sfreq)
        what = event.image or f"\0{event.label}"
        trials.append(
            Trial(
                start=start,
                stop=start + round(event.duration * sfreq),
                image=event.image,
                label=event.label,
                caption=event.caption,
                repetition=seen[what],
            )
        )
        seen[what] += 1
    return trials
