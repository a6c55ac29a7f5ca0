"""EEG that a command is given for a trained model: a store, or a recording file that is made into one for the while."""

from __future__ import annotations

import contextlib
import csv
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from ddscale.diffusion.conditioning import EEGConditioner
from ddscale.ingest import IngestRecipe
from ddscale.ingest import run as ingest
from ddscale.ingest.trials import TRIAL
from ddscale.models.encoder_folder import ModelDescription
from ddscale.store import Store, layout, open_store, tables
from ddscale.stream.settings import Normalisation, StreamSettings, ZScore

DATASET = "given"
"""What a recording file by itself is called in the store that is made of it."""
_RECORD_S, _LONGEST_RECORD_S = 60.0, 600.0


@dataclass(frozen=True)
class WindowNeeds:
    """What windows a model takes, as it was trained on them."""

    model: str
    """What it is and where it lies, for messages."""
    n_samples: int
    n_channels: int
    sfreq: float | None
    """Hz; None: it does not say."""
    normalisation: Normalisation
    preprocessing: list[dict[str, Any]]
    """Filters and reference of the stores it was trained on, each of which will do; empty: nobody knows."""
    short_trials: Literal["pad", "stretch"] = "pad"

    def settings(self, store: str | Path, cut: Literal["sliding", "trials"], **more: Any) -> StreamSettings:
        """A stream of such windows from a store; `more`: other fields of its settings."""
        return StreamSettings(
            stores=[str(store)],
            window_samples=self.n_samples,
            n_channels=self.n_channels,
            cut=cut,
            short_trials=self.short_trials,
            sfreq=self.sfreq,
            normalisation=self.normalisation,
            **more,
        )

    def check(self, store: Store, name: str | os.PathLike[str]) -> None:
        """Raise ValueError when a store was filtered otherwise than what the model was trained on."""
        found = dict(store.content.filters)
        if not self.preprocessing or found in self.preprocessing:
            return
        wanted = self.preprocessing[0]
        different = sorted(k for k in {*wanted, *found} if wanted.get(k) != found.get(k))
        raise ValueError(
            f"{name} was ingested with other preprocessing than {self.model} was trained on: "
            + "; ".join(f"{k} is {found.get(k)!r}, not {wanted.get(k)!r}" for k in different)
            + ". Ingest it again with the same."
        )

    def preprocessing_for(self, path: Path) -> dict[str, Any]:
        """How a recording file has to be filtered; ValueError where that is not known, or not one thing."""
        known = [settings for settings in self.preprocessing if settings]
        if len(known) == 1:
            return known[0]
        why = (
            f"{self.model} was trained on stores that were filtered in {len(known)} ways"
            if known
            else f"how the stores were filtered that {self.model} was trained on is not known (they are not where "
            "they were, or were written from arrays)"
        )
        raise ValueError(
            f"{path} is a recording that has yet to be filtered, and {why}: ingest it as they were (ddscale ingest, "
            "recipes/ingest/files.yaml), and give the store."
        )


def normalisation_of(stated: dict[str, Any] | None) -> Normalisation:
    """As a model's folder states it; one that does not say, such as converted from elsewhere, is given our default."""
    found: Normalisation = TypeAdapter(Normalisation).validate_python(stated) if stated else ZScore()
    return found


def needs_of_conditioner(conditioner: EEGConditioner) -> WindowNeeds:
    """What a fine-tuned generator takes."""
    config: Any = conditioner.config
    return WindowNeeds(
        model="the generator",
        n_samples=config.encoder_sizes["n_samples"],
        n_channels=config.encoder_sizes["n_channels"],
        sfreq=config.sfreq,
        normalisation=normalisation_of(config.normalisation),
        preprocessing=[] if config.preprocessing is None else [config.preprocessing],
        short_trials=config.short_trials or "pad",
    )


def needs_of_encoder(folder: str | Path, description: ModelDescription) -> WindowNeeds:
    """What a pretrained encoder takes; how its stores were filtered is asked of them where its folder is silent."""
    said, sizes = description.metadata, description.config
    stated = said.get("preprocessing")
    data = (said.get("recipe") or {}).get("data") or {}
    return WindowNeeds(
        model=f"the encoder {folder}",
        n_samples=sizes["n_samples"],
        n_channels=sizes["n_channels"],
        sfreq=said.get("sfreq"),
        normalisation=normalisation_of(said.get("normalisation")),
        preprocessing=[stated] if stated else _filters_of(said.get("stores") or []),
        short_trials=data.get("short_trials") or "pad",
    )


def _filters_of(named: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
    """Filters of the stores named that are at hand and still are what they were; each once."""
    found: list[dict[str, Any]] = []
    for entry in named:
        try:
            store = open_store(entry["path"])
        except (OSError, ValueError, ModuleNotFoundError):
            return []
        # Recordings may have come since, and the filters of a store never change; another store may lie there now.
        filters = dict(store.content.filters)
        if filters not in found:
            found.append(filters)
    return found


@dataclass(frozen=True)
class Given:
    """EEG ready to be read."""

    address: str
    """Of the store."""
    file: Path | None = None
    """The recording file it was made of; None: it was given as a store."""
    left_out: list[str] = field(default_factory=list)
    """Warnings of onsets that were asked for and cannot be had."""


@contextlib.contextmanager
def given_eeg(
    eeg: str | Path,
    needs: WindowNeeds,
    unit: str | None = None,
    at: Sequence[float] = (),
    trial_s: float | None = None,
) -> Iterator[Given]:
    """The store at `eeg`, or one made for the while of a recording file, filtered as in training.

    unit: of the file's numbers, where its header is silent or wrong. at: onsets in seconds of the file, to cut it into
    trials there, each of `trial_s` (default: a window).
    Raises FileNotFoundError, or ValueError naming the file and why nothing of it can be used.
    """
    path = Path(eeg)
    if layout.is_url(eeg) or (path / layout.MANIFEST).is_file():
        if at:
            raise ValueError(
                f"{eeg} is a store, whose trials begin where its ingest put them: onsets go with a recording file."
            )
        yield Given(os.fspath(eeg))
        return
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: give a recording file or a store's folder.")
    preprocessing = needs.preprocessing_for(path)
    window_s = needs.n_samples / float(preprocessing["sfreq"])
    length_s = window_s if trial_s is None else trial_s
    with tempfile.TemporaryDirectory(prefix="ddscale-") as folder:
        source: dict[str, Any] = {"kind": "files", "dataset": DATASET, "folder": str(path.parent)}
        source |= {"include": [path.name], **({"unit": unit} if unit else {})}
        if at:
            source |= {"kind": "events", "csv": _write_events(Path(folder), path.name, at, length_s)}
        recipe = IngestRecipe.model_validate(
            {
                "stage": "ingest",
                "out": f"{folder}/store",
                "sources": [source],
                "workers": 0,
                "preprocessing": preprocessing,
                "storage": {
                    "record_s": min(_LONGEST_RECORD_S, max(_RECORD_S, window_s, length_s)),
                    # A good stretch that holds a window is used, and none can be that does not.
                    "min_record_s": min(window_s, _LONGEST_RECORD_S),
                },
            }
        )
        try:
            summary = ingest(recipe)
        except ValueError as error:
            raise ValueError(_in_options(str(error))) from error
        if not summary.ok:
            reasons = [entry.detail for entry in summary.quarantined] + summary.problems
            raise ValueError(_in_options(f"nothing of {path} can be used: {'; '.join(reasons)}"))
        yield Given(recipe.out, path, _left_out(Path(recipe.out)) if at else [])


def _in_options(message: str) -> str:
    """What an ingest recipe would have to state, as the option that a command has for it."""
    return re.sub(
        r"`unit:(?: (\S+))?`", lambda found: f"`--unit{' ' + found[1] if found[1] else ''}`", message
    )


def _write_events(folder: Path, recording: str, at: Sequence[float], length_s: float) -> str:
    table = folder / "trials.csv"
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["recording", "onset", "duration", "label"])
        # The onset is the label too: where a trial is left out, its label is what the reason is listed with.
        writer.writerows(
            [recording, repr(onset), repr(length_s), f"{onset!r} s"] for onset in sorted(set(at))
        )
    return str(table)


def _left_out(store: Path) -> list[str]:
    rejected = tables.read(store / layout.REJECTED, tables.REJECTED, ["detail"])["detail"].to_pylist()
    trials = [detail.removeprefix(TRIAL) for detail in rejected if (detail or "").startswith(TRIAL)]
    return [f"warning: the EEG from onset {trial} (nothing is made of it)" for trial in trials]
