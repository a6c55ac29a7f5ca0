"""EEG for a generator: the trials of a store, or windows of a recording file, prepared as its encoder expects.

Shape letters: B windows of a batch, T samples, C channels.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pydantic import TypeAdapter

from ddscale.diffusion.conditioning import EEGConditioner
from ddscale.diffusion.generate import EEGWindow
from ddscale.ingest import IngestRecipe
from ddscale.ingest import run as ingest
from ddscale.store import layout, open_store
from ddscale.stream.device import materialise
from ddscale.stream.loader import Loader
from ddscale.stream.pictures import StorePictures
from ddscale.stream.settings import Normalisation, StreamSettings

_BATCH = 32
_EVERYTHING = 2**62


@dataclass(frozen=True)
class Trial:
    """One window and which picture was shown."""

    window: EEGWindow
    image: int
    """Row of the shown picture in `Trials.pictures`; -1 where none was shown."""
    microvolts_TC: torch.Tensor
    """(T, C) float32 in the recording's own channels, as it lies in the store."""


class Trials:
    """Windows of one split of a store, for one conditioner, in an order that is always the same."""

    def __init__(
        self,
        conditioner: EEGConditioner,
        store: str | Path,
        split: str,
        limit: int | None,
        blocklist: Sequence[str] = (),
        with_pictures: bool = True,
    ) -> None:
        """limit: how many windows, drawn at random from the split; None: all. with_pictures: decode what was shown.

        Trials where the store has pictures, else windows that slide through the recordings.
        Raises ValueError when the store's windows are not what the conditioner was trained on.
        """
        config: Any = conditioner.config
        self._store = open_store(store)
        paired = self._store.images is not None
        sizes = config.encoder_sizes
        self._settings = StreamSettings(
            stores=[str(store)],
            window_samples=sizes["n_samples"],
            n_channels=sizes["n_channels"],
            cut="trials" if paired else "sliding",
            short_trials=config.short_trials or "pad",
            sfreq=config.sfreq,
            normalisation=TypeAdapter(Normalisation).validate_python(config.normalisation)
            if config.normalisation
            else StreamSettings.model_fields["normalisation"].default,
            reader_threads=0,
            blocklist=list(blocklist),
        )
        self._loader = Loader.fixed(
            self._settings, split, windows=limit or _EVERYTHING, micro_batch_size=_BATCH, stores=[self._store]
        )
        self._count = min(limit or _EVERYTHING, self._loader.windows_per_epoch)
        wanted = config.preprocessing
        if wanted is not None and wanted != self._loader.preprocessing:
            different = sorted(k for k in {*wanted, *self._loader.preprocessing}
                               if wanted.get(k) != self._loader.preprocessing.get(k))  # fmt: skip
            raise ValueError(
                f"{store} was ingested with other preprocessing than the generator was trained on: "
                + "; ".join(
                    f"{k} is {self._loader.preprocessing.get(k)!r}, not {wanted.get(k)!r}" for k in different
                )
                + ". Ingest it again with the same."
            )
        self.pictures: StorePictures | None = self._loader.pictures
        self.split = split
        self._with_pictures = with_pictures
        self._names = self._store.table(["key", "dataset", "subject"])

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Trial]:
        data = self._settings
        for (batch,) in self._loader:
            x_BTC = materialise(batch, "cpu", self._loader.step_uv, data.n_channels, data.normalisation)
            known = self._facts(batch.positions[batch.positions >= 0])
            for number, facts in enumerate(known):
                if not batch.valid[number]:
                    continue
                image = int(batch.images[number])
                seen = self._seen(image, facts)
                # Copied: the loader fills the batch's buffer again.
                microvolts_TC = batch.window(number).float() * self._loader.step_uv
                yield Trial(EEGWindow(facts["key"], x_BTC[number], facts, seen), image, microvolts_TC)

    def _facts(self, positions_B: torch.Tensor) -> list[dict[str, Any]]:
        located = self._loader.locate(positions_B.numpy())
        table = self._names
        facts = []
        for row, start in zip(located.row.tolist(), located.start.tolist(), strict=True):
            of_record = {name: str(table[name][row].as_py()) for name in ("key", "dataset", "subject")}
            key = of_record.pop("key")
            name = key if self._settings.cut == "trials" else f"{key}-{start:06d}"
            facts.append(
                {"key": name, "record": key, "start_sample": start, "split": self.split, **of_record}
            )
        return facts

    def _seen(self, image: int, facts: dict[str, Any]) -> Image.Image | None:
        if image < 0 or self.pictures is None:
            return None
        facts["image"] = self.pictures.names[image]
        facts["label"] = self.pictures.labels[image]
        facts["caption"] = self.pictures.captions[image]
        if not self._with_pictures:
            return None
        return Image.open(io.BytesIO(self.pictures.read(image))).convert("RGB")


@contextlib.contextmanager
def store_of(eeg: str | Path, conditioner: EEGConditioner, unit: str | None) -> Iterator[Path]:
    """The store at `eeg`, or one made for the while of a recording file, filtered as in training.

    unit: of the file's numbers, where its header is silent or wrong.
    Raises FileNotFoundError, or ValueError naming the file and why nothing of it can be used.
    """
    path = Path(eeg)
    if (path / layout.MANIFEST).is_file():
        yield path
        return
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: give a recording file or a store's folder.")
    with tempfile.TemporaryDirectory(prefix="ddscale-") as folder:
        source: dict[str, Any] = {"kind": "files", "dataset": "given", "folder": str(path.parent)}
        source |= {"include": [path.name], **({"unit": unit} if unit else {})}
        wanted = conditioner.config.preprocessing
        recipe = IngestRecipe.model_validate(
            {
                "stage": "ingest",
                "out": f"{folder}/store",
                "sources": [source],
                "workers": 0,
                **({"preprocessing": wanted} if wanted else {}),
            }
        )
        summary = ingest(recipe)
        if not summary.ok:
            reasons = [entry.detail for entry in summary.quarantined] + summary.problems
            raise ValueError(f"nothing of {path} can be used: {'; '.join(reasons)}")
        yield Path(recipe.out)
