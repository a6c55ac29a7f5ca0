"""The events that a recording's own file holds: annotations, markers, and steps of a trigger channel."""

from __future__ import annotations

from pathlib import Path

import mne

from ddscale.sources import edf
from ddscale.sources.formats import identify
from ddscale.sources.mne_files import explained, quiet, read_raw

# BioSemi writes codes into the lower 16 bits of a Status sample, and its own state above.
_TRIGGER_BITS = 0xFFFF


def events_of(path: Path) -> list[tuple[float, str]]:
    """(onset in s from the first sample, name) of every event, in order; a trigger's name is its code.

    Raises ValueError for a format whose events are not read here, and for EDF with interruptions.
    """
    format_name = identify(path)
    with quiet(), explained(path, format_name):
        raw = _raw(path, format_name)
        try:
            found = [
                (float(entry["onset"]) - raw.first_time, str(entry["description"]))
                for entry in raw.annotations
            ]
            if not found:
                found = _triggers(raw)
        finally:
            raw.close()
    return sorted(found)


def _raw(path: Path, format_name: str) -> mne.io.BaseRaw:
    if format_name in ("EDF", "BDF"):
        if not edf.read_header(path).continuous:
            raise ValueError(
                "it was interrupted (EDF+D), and the times of its events go on meanwhile; say what was presented when "
                "in a CSV, in seconds of what was recorded"
            )
        return (mne.io.read_raw_edf if format_name == "EDF" else mne.io.read_raw_bdf)(path)
    if format_name == "EEGLAB":
        return mne.io.read_raw_eeglab(path)
    if format_name == "EGI raw":
        return mne.io.read_raw_egi(path)
    if format_name == "EGI MFF":
        raise ValueError("events of .mff are not read; say what was presented when in a CSV")
    return read_raw(path, format_name)


def _triggers(raw: mne.io.BaseRaw) -> list[tuple[float, str]]:
    """Where trigger channels step up from one code to another."""
    channels = [raw.ch_names[i] for i in mne.pick_types(raw.info, meg=False, stim=True)]
    if not channels:
        return []
    steps = mne.find_events(
        raw,
        stim_channel=channels,
        shortest_event=1,
        mask=_TRIGGER_BITS,
        mask_type="and",
        consecutive="increasing",
    )
    return [((sample - raw.first_samp) / raw.info["sfreq"], str(code)) for sample, _, code in steps.tolist()]
