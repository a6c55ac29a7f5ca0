"""`ddscale encode`: EEG through a pretrained encoder into features.npy, and a table that says whose each row is.

Shape letters: B windows of a batch, N windows, D features.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from ddscale.diffusion.conditioning import EEGConditioner
from ddscale.diffusion.finetuning import PIPELINE
from ddscale.evaluation.encoding import Features, features_of
from ddscale.evaluation.given import Given, WindowNeeds, given_eeg, needs_of_conditioner, needs_of_encoder
from ddscale.models.encoder import EEGEncoder
from ddscale.models.encoder_folder import DESCRIPTION, describe, load_encoder
from ddscale.store import Store, layout, open_store, tables
from ddscale.store.identity import SPLITS, Split
from ddscale.stream.device import materialise
from ddscale.stream.in_order import batches_in_order
from ddscale.stream.settings import StreamSettings
from ddscale.stream.windows import Located, WindowIndex

FEATURES = "features.npy"
WINDOWS = "windows.parquet"
_OF_RECORD = ("dataset", "subject", "recording", "key", "split", "label", "image")
_SCHEMA = pa.schema(
    [
        pa.field(name, kind, metadata={"about": about})
        for name, kind, about in (
            ("dataset", pa.string(), "dataset"),
            ("subject", pa.string(), "salted hash of the subject; null: a file by itself"),
            ("recording", pa.string(), "recording"),
            ("record", pa.string(), "key of the record in its store"),
            ("onset_s", pa.float64(), "the window's first sample, seconds from the recording's beginning"),
            ("split", pa.string(), "train, val or test; null: a file by itself"),
            ("label", pa.string(), "trials: class; null: none"),
            ("image", pa.string(), "trials: picture that was shown; null: none"),
            ("file", pa.string(), "the recording file that was given; null: it was a store"),
        )
    ]
)
_ROWS_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class EncodeSettings:
    """How EEG is encoded.

    features: of a window the mean of its tokens, mean and standard deviation, or the tokens themselves. split: of a
    store; None: all. cut: None: trials where there are any, else windows that slide. overlap: of those, 0 to below 1.
    """

    features: Features = "mean"
    split: Split | None = None
    cut: Literal["sliding", "trials"] | None = None
    overlap: float = 0.0
    batch_size: int = 64


@dataclass(frozen=True)
class Encoded:
    """What was written. shape: of features.npy. sliding: whether windows follow each other, whatever happened when.
    left_out: warnings of onsets that were asked for and cannot be had."""

    shape: tuple[int, ...]
    sliding: bool
    left_out: list[str]


def encode(
    model: str | Path,
    eeg: str | Path,
    out: str | Path,
    settings: EncodeSettings | None = None,
    *,
    unit: str | None = None,
    at: Sequence[float] = (),
    trial_s: float | None = None,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> Encoded:
    """Write OUT/features.npy (N, D) float32, or (N, tokens, D), and OUT/windows.parquet, a row for each of the N.

    model: an encoder's folder, or that of a pretraining or fine-tuning run. eeg: a store, or a recording file, which
    is filtered as the encoder's stores were. Windows come split by split, then by dataset, recording and time.
    Both files appear whole, the table last: where it is, both are of one call. Memory does not grow with N.
    unit, at, trial_s: of a recording file, see `given_eeg`.
    Raises ValueError or OSError for an encoder or EEG that cannot be used, naming the remedy, and for records that
    cannot be read.
    """
    asked = settings or EncodeSettings()
    encoder, needs, facts = open_encoder(Path(model))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder.to(device)
    with given_eeg(eeg, needs, unit, at, trial_s) as given:
        store = open_store(given.address)
        needs.check(store, eeg)
        cut = asked.cut or ("trials" if store.is_trial.any() else "sliding")
        stream = needs.settings(given.address, cut, overlap=asked.overlap)
        indexes = [WindowIndex([store], split, stream) for split in _splits(store, stream, asked.split)]
        total = sum(len(index) for index in indexes)
        facts |= {"eeg": str(eeg), "store_fingerprint": store.fingerprint, "features": asked.features}
        facts |= {"stream": stream.model_dump(mode="json", exclude={"stores", "cache"})}
        target = Path(out)
        shape: tuple[int, ...] = ()
        with (
            layout.written_whole(target / WINDOWS) as table,
            layout.written_whole(target / FEATURES) as array,
        ):
            # Written one after another: a disk that is full is then an error, and not a crash as through a memory map.
            with array.open("wb") as file, _TableWriter(table, store, given, facts) as windows:
                for features, located in _batches(encoder, store, stream, indexes, asked, device):
                    if not shape:
                        shape = (total, *features.shape[1:])
                        _write_header(file, shape)
                    file.write(features.tobytes())
                    windows.add(located)
                    on_progress(windows.rows, total)
            # Where only one of the two could be put in place, no older table is left to go with it.
            (target / WINDOWS).unlink(missing_ok=True)
        store.close()
        return Encoded(shape, cut == "sliding", given.left_out)


def open_encoder(folder: Path) -> tuple[EEGEncoder, WindowNeeds, dict[str, Any]]:
    """The encoder of its own folder or of a run's, what windows it takes, and where it is from.

    Raises FileNotFoundError when there is none, ValueError when it is damaged.
    """
    if (folder / PIPELINE / "conditioner").is_dir():
        conditioner = EEGConditioner.from_pretrained(folder / PIPELINE / "conditioner")
        return conditioner.encoder.eval(), needs_of_conditioner(conditioner), {"encoder": str(folder)}
    if not (folder / DESCRIPTION).is_file() and (folder / "encoder").is_dir():
        folder = folder / "encoder"
    description = describe(folder)
    encoder = load_encoder(folder)
    return (
        encoder,
        needs_of_encoder(folder, description),
        {"encoder": str(folder), "encoder_sha256": description.sha256},
    )


def _splits(store: Store, stream: StreamSettings, asked: Split | None) -> list[Split]:
    """The splits that have windows; where none has, one, for the index to say why."""
    if asked is not None:
        return [asked]
    usable = store.is_trial if stream.cut == "trials" else store.samples >= stream.window_samples
    there = set(np.unique(store.split[usable]).tolist())
    return [name for code, name in enumerate(SPLITS) if code in there] or [SPLITS[0]]


def _batches(
    encoder: EEGEncoder,
    store: Store,
    stream: StreamSettings,
    indexes: Sequence[WindowIndex],
    asked: EncodeSettings,
    device: torch.device,
) -> Iterator[tuple[NDArray[np.float32], Located]]:
    step_uv = float(store.step) if store.dtype == "int16" else 1.0
    for index in indexes:
        for batch, located in batches_in_order(index, [store], stream, asked.batch_size):
            x_BTC = materialise(batch, device, step_uv, stream.n_channels, stream.normalisation)
            features = features_of(encoder, x_BTC, asked.features)[: len(located.row)]
            yield features.float().cpu().numpy(), located


def _write_header(file: IO[bytes], shape: tuple[int, ...]) -> None:
    description = np.lib.format.dtype_to_descr(np.dtype("<f4"))
    header = {"descr": description, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


class _TableWriter:
    """windows.parquet as it grows. What is known of records is read group by group of the index, never all of it."""

    def __init__(self, path: Path, store: Store, given: Given, facts: dict[str, Any]) -> None:
        self.rows = 0
        self._store, self._given = store, given
        schema = _SCHEMA.with_metadata({"ddscale": json.dumps(facts, ensure_ascii=False)})
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._schema = schema
        self._waiting: list[dict[str, Any]] = []
        self._records = tables.Groups(store.path / layout.RECORDS, _OF_RECORD)

    def __enter__(self) -> _TableWriter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._flush()
        self._writer.close()

    def add(self, located: Located) -> None:
        for row, start in zip(located.row.tolist(), located.start.tolist(), strict=True):
            known = self._records[row]
            onset_s = self._store.onset_s(row, start)
            about = {**known, "record": known["key"], "onset_s": onset_s, "file": None}
            if self._given.file is not None:
                # Subject and split are those of a store that is gone afterwards.
                about |= {"file": str(self._given.file), "subject": None, "split": None, "label": None}
            self._waiting.append({name: about[name] for name in self._schema.names})
        self.rows += len(located.row)
        if len(self._waiting) >= _ROWS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.Table.from_pylist(self._waiting, self._schema))
            self._waiting = []
