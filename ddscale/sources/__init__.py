"""Where recordings come from: folders of EEG files, arrays, BIDS and MOABB datasets, EEG recorded to pictures, and
simulated recordings.

    source = FilesSource(kind="files", dataset="clinic", folder="/data/clinic", subject=r"(patient\\d+)/")
    listing = list_recordings(source)
    with listing.recordings[0].open() as recording:
        signal_CT = recording.read(0, 1000)  # µV

A source's settings are one entry of an ingest recipe's `sources:`; its `kind` says which.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from ddscale.sources.alljoined import AlljoinedSource, list_alljoined
from ddscale.sources.arrays import ArraysSource, list_arrays
from ddscale.sources.bids import BidsSource, list_bids
from ddscale.sources.events import EventsSource, list_events
from ddscale.sources.files import FilesSource, list_files
from ddscale.sources.imagenet_eeg import ImageNetEEGSource, list_imagenet_eeg
from ddscale.sources.moabb import MoabbSource, list_moabb
from ddscale.sources.recording import Listing, OpenRecording, Picture, Recording, Trial
from ddscale.sources.simulated import SimulatedSource, list_simulated
from ddscale.sources.simulated_evoked import SimulatedEvokedSource, list_simulated_evoked
from ddscale.sources.things_eeg2 import ThingsEEG2Source, list_things_eeg2

SourceSettings = Annotated[
    FilesSource
    | ArraysSource
    | BidsSource
    | MoabbSource
    | EventsSource
    | ImageNetEEGSource
    | ThingsEEG2Source
    | AlljoinedSource
    | SimulatedSource
    | SimulatedEvokedSource,
    Field(discriminator="kind"),
]

__all__ = [
    "AlljoinedSource",
    "ArraysSource",
    "BidsSource",
    "EventsSource",
    "FilesSource",
    "ImageNetEEGSource",
    "Listing",
    "MoabbSource",
    "OpenRecording",
    "Picture",
    "Recording",
    "SimulatedEvokedSource",
    "SimulatedSource",
    "SourceSettings",
    "ThingsEEG2Source",
    "Trial",
    "list_recordings",
    "unit_of",
]


def unit_of(source: SourceSettings) -> str:
    """The unit in which a source's recordings are read: "uV", or "standardised" where nobody can know any more."""
    return source.values_unit


def list_recordings(source: SourceSettings) -> Listing:
    """The recordings of a source, without decoding or downloading anything.

    Raises FileNotFoundError when there is none, ValueError when the source cannot be used as configured.
    """
    listing = _list(source)
    statement = json.dumps(source.statement, ensure_ascii=False, sort_keys=True)
    stated = [replace(recording, statement=statement) for recording in listing.recordings]
    return replace(listing, recordings=stated)


def _list(source: SourceSettings) -> Listing:
    match source:
        case FilesSource():
            return list_files(source)
        case ArraysSource():
            return list_arrays(source)
        case BidsSource():
            return list_bids(source)
        case MoabbSource():
            return list_moabb(source)
        case SimulatedSource():
            return list_simulated(source)
        case EventsSource():
            return list_events(source)
        case ImageNetEEGSource():
            return list_imagenet_eeg(source)
        case ThingsEEG2Source():
            return list_things_eeg2(source)
        case AlljoinedSource():
            return list_alljoined(source)
        case SimulatedEvokedSource():
            return list_simulated_evoked(source)
