"""EEGLAB .set files, with their samples beside them (.fdt) or inside."""

from __future__ import annotations

from pathlib import Path

import mne


def read(path: Path) -> mne.io.BaseRaw:
    """Open a .set without loading it where its layout allows."""
    return mne.io.read_raw_eeglab(path)
