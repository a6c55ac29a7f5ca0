"""Settings that every source has: the name of its dataset and where it comes from."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import field_validator

from ddscale.recipes import Settings

Unit = Literal["V", "mV", "uV", "µV", "nV"]
ChannelKind = Literal["eeg", "eog", "emg", "ecg", "stim", "ref", "misc"]


class Whereabouts:
    """Marks a setting that says where recordings are and which of them to take, or what else a listed `Recording` tells
    by itself (its subject, its cut): as long as they are listed, none becomes another by it."""


class Provenance(Settings):
    """A dataset's name and the statements that the store's manifest keeps about it."""

    dataset: Annotated[str, Whereabouts]
    """Name of the dataset in the store, in mixture weights and in reports: lower-case letters, digits and `-`."""

    licence: Annotated[str | None, Whereabouts] = None
    """Licence of the data, as its publishers state it (SPDX name where there is one)."""

    url: Annotated[str | None, Whereabouts] = None
    """Where the data comes from: address, DOI or a sentence."""

    @property
    def values_unit(self) -> str:
        """Unit in which the source's recordings are read: uV, or `standardised` where nobody can know any more."""
        return "uV"

    @property
    def statement(self) -> dict[str, Any]:
        """What the settings, where they are no defaults, say of each recording: kept with it, so that another statement
        is noticed. A setting counts unless it is marked as a `Whereabouts`."""
        chosen = {
            name for name, field in type(self).model_fields.items() if Whereabouts not in field.metadata
        }
        return self.model_dump(mode="json", include=chosen, exclude_defaults=True)

    @field_validator("dataset")
    @classmethod
    def _plain_name(cls, dataset: str) -> str:
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", dataset):
            plain = re.sub(r"[^a-z0-9]+", "-", dataset.lower()).strip("-") or "my-dataset"
            raise ValueError(
                f"`{dataset}` is not a dataset name: lower-case letters, digits and `-`. Write `{plain}`."
            )
        return dataset
