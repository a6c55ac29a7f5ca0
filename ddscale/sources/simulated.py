"""The `simulated` source: EEG that no person produced, as files of several devices.

For trying a pipeline from end to end where no data can be downloaded; called simulated wherever it appears.
"""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, field_validator

from ddscale.sources.files import open_file
from ddscale.sources.provenance import Provenance, Whereabouts
from ddscale.sources.recording import Listing, OpenRecording, Recording
from ddscale.sources.selection import Statements
from ddscale.sources.simulation.devices import DEVICES

# Changes with what the generator produces, so that files of an older one are not taken for new.
_GENERATION = 1


class SimulatedSource(Provenance):
    """Simulated recordings, written into a folder as EDF, BDF, BrainVision and FIF when they are first opened."""

    kind: Literal["simulated"]

    url: Annotated[str, Whereabouts] = "simulated by ddscale"
    """Provenance that the store and the report give; it should go on beginning with `simulated`."""

    folder: Annotated[str, Whereabouts]
    """Folder to write the files into; a file that is there already is read again, not written again."""

    subjects: Annotated[int, Whereabouts] = Field(12, ge=1)
    """Simulated persons; each has a head, rhythms and a device of their own, taken in turn from `devices`."""

    recordings_per_subject: Annotated[int, Whereabouts] = Field(1, ge=1)
    """Recordings of each person."""

    minutes: float = Field(5.0, gt=0, le=30)
    """Length of each recording; one is generated in memory (256 channels: 20 MB a minute, several times over)."""

    devices: Annotated[list[str], Whereabouts] = Field(default_factory=lambda: list(DEVICES), min_length=1)
    """Devices that record; the number in the name is the number of EEG channels."""

    seed: int = Field(0, ge=0)
    """Another seed, other persons."""

    @field_validator("devices")
    @classmethod
    def _known_devices(cls, devices: list[str]) -> list[str]:
        unknown = [name for name in devices if name not in DEVICES]
        if unknown:
            raise ValueError(f"no device called {', '.join(unknown)}; there are {', '.join(DEVICES)}.")
        return devices


def list_simulated(source: SimulatedSource) -> Listing:
    """The recordings that the source describes; none is written before it is opened."""
    from ddscale.sources.simulation.writing import path_of, size_of

    recordings = []
    width = max(2, len(str(source.subjects)))
    for number in range(1, source.subjects + 1):
        device = source.devices[(number - 1) % len(source.devices)]
        for repetition in range(1, source.recordings_per_subject + 1):
            subject = f"simulated{number:0{width}d}"
            name = f"{subject}_run{repetition}_{device}"
            recordings.append(
                Recording(
                    dataset=source.dataset,
                    subject=subject,
                    id=name,
                    path=str(path_of(_folder(source), name, DEVICES[device])),
                    size_bytes=size_of(DEVICES[device], _seconds(source)),
                    opener=partial(_open, source, device, name, number, repetition),
                )
            )
    return Listing(sorted(recordings, key=lambda recording: recording.id), [])


def _open(source: SimulatedSource, device: str, name: str, number: int, repetition: int) -> OpenRecording:
    from ddscale.sources.simulation import brain, writing

    path = writing.path_of(_folder(source), name, DEVICES[device])
    if not path.exists():
        subject = brain.draw_subject(_random(source, number))
        names, signal_CT = brain.record(
            subject, DEVICES[device], _seconds(source), _random(source, number, repetition)
        )
        writing.write(path.parent, name, DEVICES[device], names, signal_CT)
    return open_file(str(path), Statements(meta={"device": f"simulated {device}", "simulated": True}))


def _seconds(source: SimulatedSource) -> int:
    return max(1, round(60 * source.minutes))


def _folder(source: SimulatedSource) -> Path:
    """A subfolder per content, so that a changed seed or length never finds the files of another."""
    digest = hashlib.sha256(f"{_GENERATION} {source.dataset} {source.seed} {_seconds(source)}".encode())
    return Path(source.folder) / f"{source.dataset}-{digest.hexdigest()[:8]}"


def _random(source: SimulatedSource, *numbers: int) -> np.random.Generator:
    dataset = int.from_bytes(hashlib.sha256(source.dataset.encode()).digest()[:8], "big")
    return np.random.default_rng([source.seed, dataset, *numbers])
