"""The `bids` source: EEG datasets in the Brain Imaging Data Structure.

mne-bids finds the recordings and the sidecars that apply to them; the signals are read like any other file, so
that a sidecar with a mistake does not cost the recording.
"""

from __future__ import annotations

import csv
import json
import math
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from ddscale.sources.files import open_file, size_of
from ddscale.sources.identity import recording_names
from ddscale.sources.marking import is_bad, is_skip
from ddscale.sources.provenance import ChannelKind, Provenance, Unit, Whereabouts
from ddscale.sources.recording import Listing, Mark, OpenRecording, Recording
from ddscale.sources.selection import Position, Statements, is_stated

# The formats BIDS allows for EEG, by the file that leads to the others.
_EXTENSIONS = (".edf", ".bdf", ".vhdr", ".set")

_KINDS: dict[str, ChannelKind] = {
    "EEG": "eeg", "EOG": "eog", "VEOG": "eog", "HEOG": "eog", "EMG": "emg", "ECG": "ecg", "EKG": "ecg",
    "TRIG": "stim", "REF": "ref", "MISC": "misc", "OTHER": "misc",
}  # fmt: skip
# Channel types of BIDS that are no electrical potential on the skin of the head.
_ELSEWHERE = frozenset(
    {
        *(
            "RESP",
            "GSR",
            "TEMP",
            "PUPIL",
            "EYEGAZE",
            "PPG",
            "AUDIO",
            "SYSCLOCK",
            "ADC",
            "DAC",
            "HLU",
            "FITERR",
        ),
        *("SEEG", "ECOG", "DBS", "MEGMAG", "MEGGRADAXIAL", "MEGGRADPLANAR", "PD", "ACCEL", "GYRO", "MAGN"),
    }
)


class BidsSource(Provenance):
    """A BIDS dataset: every EEG recording in it, outside `derivatives`, `sourcedata` and `code`."""

    kind: Literal["bids"]

    folder: Annotated[str, Whereabouts]
    """The dataset's folder: the one with `dataset_description.json` and `sub-*`."""

    subjects: Annotated[list[str] | None, Whereabouts] = None
    """Subjects to take, without `sub-`; left out: all."""

    tasks: Annotated[list[str] | None, Whereabouts] = None
    """Tasks to take, without `task-`; left out: all."""

    unit: Unit | None = None
    """Unit of the numbers in the files, whatever headers and sidecars say; leave out to believe them."""


def list_bids(source: BidsSource) -> Listing:
    """The EEG recordings of a BIDS dataset, without opening them.

    Raises FileNotFoundError when the folder is missing, not BIDS, or holds no EEG that is asked for.
    """
    import mne_bids

    from ddscale.sources.mne_files import quiet

    root = Path(source.folder)
    if not any(root.glob("sub-*")):
        raise FileNotFoundError(
            f"{root} is not a BIDS dataset: it {'has no sub-* folder' if root.is_dir() else 'does not exist'}. "
            "Correct `folder:`, or use a source of kind `files`."
        )
    with quiet():
        found = mne_bids.find_matching_paths(
            root,
            subjects=source.subjects,
            tasks=source.tasks,
            suffixes="eeg",
            extensions=list(_EXTENSIONS),
            datatypes="eeg",
            ignore_nosub=True,
        )
    located = [(entry.fpath.relative_to(root).as_posix(), entry) for entry in found]
    chosen = [(relative, entry) for relative, entry in located if relative.startswith("sub-")]
    rejected = [
        (
            path.relative_to(root).as_posix(),
            "a link to content that is not here (with DataLad: `datalad get` it)",
        )
        for path in sorted(root.glob("sub-*/**/eeg/*_eeg.*"))  # mne-bids passes over these
        if path.suffix in _EXTENSIONS
        and path.is_symlink()
        and not path.exists()
        and _asked_for(path.name, source)
    ]
    if not chosen:
        asked = "".join(
            f" for {what} {', '.join(names)}"
            for what, names in (("subjects", source.subjects), ("tasks", source.tasks))
            if names
        )
        first = f" {len(rejected)} were rejected; {rejected[0][0]}: {rejected[0][1]}." if rejected else ""
        raise FileNotFoundError(
            f"No EEG recordings in the BIDS dataset {root}{asked} (sub-*/[ses-*/]eeg/*_eeg with "
            f"{' '.join(_EXTENSIONS)}).{first}"
        )
    names = [relative.rpartition("/")[2].replace("_eeg.", ".") for relative, _ in chosen]
    recordings = [
        Recording(
            dataset=source.dataset,
            subject=entry.subject,
            id=name,
            alias=alias,
            path=str(entry.fpath),
            size_bytes=size_of(entry.fpath),
            opener=partial(_open, str(entry.fpath), str(root), source.unit),
            beside=_sidecars_beside(entry.fpath),
        )
        for (name, alias), (_, entry) in zip(recording_names(names), chosen, strict=True)
    ]
    return Listing(sorted(recordings, key=lambda recording: recording.id), sorted(rejected))


def _asked_for(name: str, source: BidsSource) -> bool:
    entities = dict(part.split("-", 1) for part in name.split("_") if "-" in part)
    return (source.subjects is None or entities.get("sub") in source.subjects) and (
        source.tasks is None or entities.get("task") in source.tasks
    )


def _sidecars_beside(path: Path) -> tuple[str, ...]:
    """The recording's own sidecars, so that one that is corrected counts as a change of the recording."""
    stem = path.stem.removesuffix("_eeg")
    return tuple(str(path.with_name(stem + end)) for end in ("_channels.tsv", "_eeg.json", "_events.tsv"))


def _open(path: str, root: str, unit: Unit | None) -> OpenRecording:
    import mne_bids

    from ddscale.sources.mne_files import quiet

    with quiet():
        entry = mne_bids.get_bids_path_from_fname(path, check=False).update(root=root)
        tables, texts = ("channels", "electrodes", "events"), ("eeg", "coordsystem")
        wanted = dict.fromkeys(tables, ".tsv") | dict.fromkeys(texts, ".json")
        sidecars = {
            suffix: entry.find_matching_sidecar(suffix=suffix, extension=extension, on_error="ignore")
            for suffix, extension in wanted.items()
        }
    opened = open_file(path, _statements(sidecars, unit))
    opened.marks += _marks(_table(sidecars["events"]), opened)
    return opened


def _marks(events: list[dict[str, str]], opened: OpenRecording) -> list[Mark]:
    """What the table of events marks as bad; mne-bids writes annotations there."""
    marks = []
    for row in events:
        said = [row.get(column, "") for column in ("trial_type", "value")]
        if not any(is_bad(text) or is_skip(text) for text in said):
            continue
        onset_s, duration_s = (_seconds(row.get(column, "")) for column in ("onset", "duration"))
        channels = row.get("channel", "")
        names = [name.strip() for name in channels.split(",")] if is_stated(channels) else []
        marks.append(Mark.at(onset_s, duration_s, opened.sfreq, opened.n_samples, names))
    return marks


def _seconds(text: str) -> float:
    """0 for what is no number: a mark without an extent, which the ingest tells of."""
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if math.isfinite(value) else 0.0


def _statements(sidecars: dict[str, Path | None], unit: Unit | None) -> Statements:
    """What the sidecars that apply to a recording say about it."""
    channels = _table(sidecars["channels"])
    about = _json(sidecars["eeg"])
    types = {row["name"]: row.get("type", "").upper() for row in channels if row.get("name")}
    line = about.get("PowerLineFrequency")
    reference = about.get("EEGReference")
    meta: dict[str, Any] = {}
    if isinstance(line, int | float) and line > 0:
        meta["line_freq"] = float(line)
    maker = [
        str(about[key])
        for key in ("Manufacturer", "ManufacturersModelName")
        if is_stated(str(about.get(key, "")))
    ]
    if maker:
        meta["device"] = " ".join(maker)
    for key in ("HardwareFilters", "SoftwareFilters"):
        if isinstance(about.get(key), dict):
            meta[key] = about[key]
    return Statements(
        unit=unit,
        kinds={name: _KINDS[kind] for name, kind in types.items() if kind in _KINDS},
        units={
            row["name"]: row["units"]
            for row in channels
            if is_stated(row.get("units", "")) and row.get("name")
        },
        bad_channels=frozenset(
            row["name"]
            for row in channels
            if row.get("status", "").strip().lower() == "bad" and row.get("name")
        ),
        elsewhere={name: kind for name, kind in types.items() if kind in _ELSEWHERE},
        positions=_positions(_table(sidecars["electrodes"]), _json(sidecars["coordsystem"])),
        reference=str(reference) if is_stated(str(reference or "")) else None,
        meta=meta,
    )


def _positions(electrodes: list[dict[str, str]], system: dict[str, Any]) -> dict[str, Position]:
    """Electrode positions in metres, where their coordinate system is MNE's head frame (CapTrak)."""
    scale = {"m": 1.0, "cm": 1e-2, "mm": 1e-3}.get(str(system.get("EEGCoordinateUnits", "")).lower())
    if system.get("EEGCoordinateSystem") != "CapTrak" or scale is None:
        return {}
    positions = {}
    for row in electrodes:
        try:
            x, y, z = (float(row[axis]) * scale for axis in "xyz")
        except (KeyError, ValueError):
            continue  # n/a: an electrode that was not digitised
        if math.isfinite(x + y + z):
            positions[row.get("name", "")] = (x, y, z)
    return positions


def _table(path: Path | None) -> list[dict[str, str]]:
    if path is None:
        return []
    with Path(path).open(encoding="utf-8-sig", errors="replace", newline="") as file:
        return [
            {key: value or "" for key, value in row.items() if key}
            for row in csv.DictReader(file, delimiter="\t")
        ]


def _json(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is not valid JSON ({error}): repair it, it describes the recording."
        ) from error
    return content if isinstance(content, dict) else {}
