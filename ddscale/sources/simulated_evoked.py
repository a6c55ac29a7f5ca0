"""The `simulated-evoked` source: EEG that no person produced, while pictures of digits were "shown".

For trying the way from EEG to pictures where no data can be downloaded; called simulated wherever it appears. It is
written as files of three formats and a table of trials, and read as the `events` source reads them.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from ddscale.sources.events import open_events
from ddscale.sources.provenance import Provenance, Whereabouts
from ddscale.sources.recording import Listing, OpenRecording, Recording
from ddscale.sources.selection import Statements
from ddscale.sources.trial_table import COLUMNS, Event, read_table

# Changes with what the generator produces, so that files of an older one are not taken for new.
_GENERATION = 1
_LEAD_S = 2.0
_GAP_S = (0.1, 0.4)


class SimulatedEvokedSource(Provenance):
    """Simulated persons who look at scikit-learn's digits in random order; every picture once each."""

    kind: Literal["simulated-evoked"]

    url: Annotated[str, Whereabouts] = "simulated by ddscale"
    """Provenance that the store and the report give; it should go on beginning with `simulated`."""

    folder: Annotated[str, Whereabouts]
    """Folder to write recordings, pictures and the table into; what is there already is read again."""

    subjects: Annotated[int, Whereabouts] = Field(6, ge=1)
    """Simulated persons, each with a head, rhythms, latencies and amplitudes of their own."""

    pictures: int = Field(1500, ge=10, le=1797)
    """How many of the 1,797 digits are shown. A fifth are those the toy Stable Diffusion never sees: the test set."""

    pictures_per_recording: int = Field(300, ge=1)
    """Pictures in one recording; a new recording is a new file."""

    trial_s: float = Field(4.0, ge=0.5, le=20)
    """Length of a trial, s; 4 s are the 512 samples of a window at 128 Hz. The response lasts 1.6 s."""

    snr_db: float = Field(-6.0, ge=-60, le=60)
    """Power of what a picture evokes, over the trial, against that of the ongoing EEG (0.5 to 30 Hz), dB. Lower is
    harder: of single trials with pictures never seen, a small convolutional network told the class of 99 % at -6,
    96 % at -14 and 93 % at -18 after a minute of training on 6,645."""

    seed: int = Field(0, ge=0)
    """Another seed, other persons and another order of pictures."""


def list_simulated_evoked(source: SimulatedEvokedSource) -> Listing:
    """The recordings that the source describes. Pictures and table are written now, recordings when first opened."""
    from ddscale.sources.simulation.evoked import DEVICES
    from ddscale.sources.simulation.writing import path_of, size_of

    folder = _folder(source)
    table_path = folder / "events.csv"
    plan = _plan(source)
    if not table_path.is_file():
        _write_pictures_and_table(source, folder, plan)
    table = read_table(table_path, folder)
    recordings = []
    for name, (number, device, shown) in plan.items():
        path = path_of(folder, name, DEVICES[device])
        recordings.append(
            Recording(
                dataset=source.dataset,
                subject=name.partition("_")[0],
                id=name,
                path=str(path),
                size_bytes=size_of(DEVICES[device], _seconds(source, len(shown))),
                opener=partial(_open, source, name, number, device, shown, tuple(table.events[path.name])),
            )
        )
    return Listing(recordings, [], table.pictures)


_Plan = dict[str, tuple[int, str, tuple[int, ...]]]
"""By the name of a recording: number of the person, device, digits in the order in which they are shown."""


def _plan(source: SimulatedEvokedSource) -> _Plan:
    from ddscale.sources.simulation.evoked import DEVICES

    devices = list(DEVICES)
    width = max(2, len(str(source.subjects)))
    plan: _Plan = {}
    for number in range(1, source.subjects + 1):
        order = _random(source, number, 0).permutation(source.pictures).tolist()
        for run, first in enumerate(range(0, len(order), source.pictures_per_recording), start=1):
            shown = tuple(order[first : first + source.pictures_per_recording])
            plan[f"simulated{number:0{width}d}_run{run:02d}"] = (
                number,
                devices[(number - 1) % len(devices)],
                shown,
            )
    return plan


def _onsets(source: SimulatedEvokedSource, number: int, shown: tuple[int, ...]) -> list[float]:
    """When pictures appear, s: one after another, with pauses of no fixed length."""
    gaps = _random(source, number, 1, shown[0]).uniform(*_GAP_S, len(shown))
    onsets = _LEAD_S + np.cumsum(gaps + source.trial_s) - source.trial_s
    return [round(float(onset), 4) for onset in onsets]


def _seconds(source: SimulatedEvokedSource, pictures: int) -> int:
    return int(np.ceil(2 * _LEAD_S + pictures * (source.trial_s + _GAP_S[1])))


def _write_pictures_and_table(source: SimulatedEvokedSource, folder: Path, plan: _Plan) -> None:
    """Pictures first, the table last: where there is a table, everything it names is there."""
    from ddscale.sources.simulation import digits
    from ddscale.sources.simulation.evoked import DEVICES
    from ddscale.sources.simulation.writing import path_of

    known = digits.load()
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for number in range(source.pictures):
        (folder / _picture(number)).write_bytes(digits.png(known.scans[number]))
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for name, (number, device, shown) in plan.items():
        file = path_of(folder, name, DEVICES[device]).name
        for onset, picture in zip(_onsets(source, number, shown), shown, strict=True):
            label = int(known.labels[picture])
            split = "test" if known.held_out[picture] else "train"
            writer.writerow(
                [file, onset, source.trial_s, _picture(picture), label, digits.caption_of(label), split]
            )
    aside = folder / f".events.{os.getpid()}.csv"
    aside.write_text(text.getvalue(), encoding="utf-8")
    aside.replace(folder / "events.csv")


def _picture(number: int) -> str:
    return f"pictures/digit-{number:04d}.png"


def _open(
    source: SimulatedEvokedSource,
    name: str,
    number: int,
    device: str,
    shown: tuple[int, ...],
    events: tuple[Event, ...],
) -> OpenRecording:
    from ddscale.sources.simulation import digits, evoked, writing

    kind = evoked.DEVICES[device]
    path = writing.path_of(_folder(source), name, kind)
    if not path.exists():
        names, signal_CT = evoked.record(
            _random(source, number, 2),
            _random(source, number, 3, shown[0]),
            kind,
            _seconds(source, len(shown)),
            _onsets(source, number, shown),
            evoked.code(digits.load())[list(shown)],
            source.trial_s,
            source.snr_db,
        )
        writing.write(path.parent, name, kind, names, signal_CT)
    meta = {"device": f"simulated {device}", "simulated": True, "snr_db": source.snr_db}
    return open_events(str(path), events, Statements(meta=meta))


def _folder(source: SimulatedEvokedSource) -> Path:
    """A subfolder per content, so that changed settings never find the files of others."""
    said = [_GENERATION, source.dataset, source.seed, source.pictures, source.pictures_per_recording]
    said += [source.trial_s, source.snr_db, source.subjects]
    digest = hashlib.sha256(" ".join(map(str, said)).encode())
    return Path(source.folder) / f"{source.dataset}-{digest.hexdigest()[:8]}"


def _random(source: SimulatedEvokedSource, *numbers: int) -> np.random.Generator:
    dataset = int.from_bytes(hashlib.sha256(source.dataset.encode()).digest()[:8], "big")
    return np.random.default_rng([source.seed, dataset, *numbers])
