"""EEG for a generator: trials, or windows that slide through recordings, prepared as its encoder expects.

Shape letters: B windows of a batch, T samples, C channels.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from ddscale.diffusion.conditioning import EEGConditioner
from ddscale.diffusion.generate import EEGWindow
from ddscale.evaluation.given import needs_of_conditioner
from ddscale.store import open_store
from ddscale.stream.collation import HostBatch
from ddscale.stream.device import materialise
from ddscale.stream.in_order import batches_in_order
from ddscale.stream.loader import Loader
from ddscale.stream.pictures import StorePictures
from ddscale.stream.windows import Located, WindowIndex

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
        file: Path | None = None,
    ) -> None:
        """limit: how many windows, drawn at random from the split; None: all. with_pictures: decode what was shown.
        file: the recording that the store was made of for the while; windows are then known by their place in it, and
        all of them come in the order of time.

        Trials where the store has any, else windows that slide through the recordings.
        Raises ValueError when the store's windows are not what the conditioner was trained on.
        """
        needs = needs_of_conditioner(conditioner)
        self.store = open_store(store)
        cut: Literal["sliding", "trials"] = "trials" if self.store.is_trial.any() else "sliding"
        self._settings = needs.settings(store, cut, reader_threads=0, blocklist=list(blocklist))
        self._loader = Loader.fixed(
            self._settings, split, windows=limit or _EVERYTHING, micro_batch_size=_BATCH, stores=[self.store]
        )
        self._count = min(limit or _EVERYTHING, self._loader.windows_per_epoch)
        needs.check(self.store, store)
        self.at_onsets = cut == "trials"
        self.window_s = self._loader.window_s
        self.pictures: StorePictures | None = self._loader.pictures
        self.split = split
        self._with_pictures = with_pictures
        self._file = file
        self._in_time = file is not None and limit is None
        self._names = self.store.table(["key", "dataset", "subject"])

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Trial]:
        data = self._settings
        for batch, located in self._batches():
            x_BTC = materialise(batch, "cpu", self._loader.step_uv, data.n_channels, data.normalisation)
            known = self._facts(located)
            for number, facts in enumerate(known):
                if not batch.valid[number]:
                    continue
                image = int(batch.images[number])
                seen = self._seen(image, facts)
                # Copied: the loader fills the batch's buffer again.
                microvolts_TC = batch.window(number).float() * self._loader.step_uv
                yield Trial(EEGWindow(facts["key"], x_BTC[number], facts, seen), image, microvolts_TC)

    def _batches(self) -> Iterator[tuple[HostBatch, Located]]:
        if self._in_time:
            index = WindowIndex([self.store], self.split, self._settings)
            yield from batches_in_order(index, [self.store], self._settings, _BATCH)
            return
        for (batch,) in self._loader:
            yield batch, self._loader.locate(batch.positions[batch.positions >= 0].numpy())

    def _facts(self, located: Located) -> list[dict[str, Any]]:
        table = self._names
        facts = []
        for row, start in zip(located.row.tolist(), located.start.tolist(), strict=True):
            of_record = {name: str(table[name][row].as_py()) for name in ("key", "dataset", "subject")}
            key = of_record.pop("key")
            name = key if self._settings.cut == "trials" else f"{key}-{start:06d}"
            of_window: dict[str, Any] = {"key": name, "onset_s": self.store.onset_s(row, start)}
            if self._file is not None:
                # Record, split and subject are those of a store that is gone afterwards.
                facts.append({**of_window, "file": str(self._file), "dataset": of_record["dataset"]})
            else:
                of_window |= {"record": key, "start_sample": start, "split": self.split}
                facts.append({**of_window, **of_record})
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
