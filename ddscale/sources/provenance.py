"""Settings that every source has: the name of its dataset and where it comes from."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import field_validator

from ddscale.recipes import Settings

Unit = Literal["V", "mV", "uV", "µV", "nV"]
ChannelKind = Literal["eeg", "eog", "emg", "ecg", "stim", "ref", "misc"]


class Provenance(Settings):
    """A dataset's name and the statements that the store's manifest keeps about it."""

    dataset: str
    """Name of the dataset in the store, in mixture weights and in reports: lower-case letters, digits and `-`."""

    licence: str | None = None
    """Licence of the data, as its publishers state it (SPDX name where there is one)."""

    url: str | None = None
    """Where the data comes from: address, DOI or a sentence."""

    @property
    def values_unit(self) -> str:
        """Unit in which the source's recordings are read: uV, or `standardised` where nobody can know any more."""
        return "uV"

    @field_validator("dataset")
    @classmethod
    def _plain_name(cls, dataset: str) -> str:
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", dataset):
            plain = re.sub(r"[^a-z0-9]+", "-", dataset.lower()).strip("-") or "my-dataset"
            raise ValueError(
                f"`{dataset}` is not a dataset name: lower-case letters, digits and `-`. Write `{plain}`."
            )
        return dataset
