"""Where recordings come from: folders of EEG files, BIDS and MOABB datasets, arrays, and simulated recordings.

    source = FilesSource(kind="files", dataset="clinic", folder="/data/clinic", subject=r"(patient\\d+)/")
    listing = list_recordings(source)
    with listing.recordings[0].open() as recording:
        signal_CT = recording.read(0, 1000)  # µV

A source's settings are one entry of an ingest recipe's `sources:`; its `kind` says which.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ddscale.sources.files import FilesSource, list_files
from ddscale.sources.recording import Listing, OpenRecording, Recording

SourceSettings = Annotated[FilesSource, Field()]

__all__ = ["FilesSource", "Listing", "OpenRecording", "Recording", "SourceSettings", "list_recordings"]


def list_recordings(source: SourceSettings) -> Listing:
    """The recordings of a source, without decoding or downloading anything.

    Raises FileNotFoundError when there is none, ValueError when the source cannot be used as configured.
    """
    return list_files(source)
