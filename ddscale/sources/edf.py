"""EDF, EDF+, BDF and BDF+ read directly.

MNE reads these too, but runs the stretches of a discontinuous EDF+D together as if nothing were missing,
resamples channels of other rates anew in every block (so that the result depends on the block), takes nV for V,
and reads the whole file once to open it. Here the file is read record by record, at the rate of its EEG channels.

Shapes: C channels, T samples, R data records, S samples of one channel in a record.
"""

from __future__ import annotations

import io
import itertools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_FIELDS = {  # signal header: bytes per channel, in this order
    "label": 16, "transducer": 80, "unit": 8, "physical_min": 8, "physical_max": 8,
    "digital_min": 8, "digital_max": 8, "prefilter": 80, "samples": 8, "reserved": 32,
}  # fmt: skip


_READ_BYTES = 4 << 20  # of records at a time


@dataclass(frozen=True)
class Signal:
    """One signal of the file. offset: in samples within a record; gain, bias: physical = gain * digital + bias."""

    label: str
    unit: str
    transducer: str
    prefilter: str
    samples: int
    offset: int
    gain: float
    bias: float

    @property
    def is_annotation(self) -> bool:
        return self.label in ("EDF Annotations", "BDF Annotations")


@dataclass(frozen=True)
class EdfFile:
    """The header of one EDF or BDF file. record_s: seconds per data record."""

    path: Path
    sample_bytes: int
    header_bytes: int
    continuous: bool
    n_records: int
    record_s: float
    signals: list[Signal]

    @property
    def record_samples(self) -> int:
        """Samples of all signals in one record."""
        return sum(signal.samples for signal in self.signals)

    def rate(self, signal: Signal) -> float:
        """Sampling rate in Hz."""
        return signal.samples / self.record_s


def read_header(path: Path) -> EdfFile:
    """Parse the header of an EDF(+) or BDF(+) file.

    Raises ValueError when it is malformed, or promises more data than the file holds.
    """
    with path.open("rb") as file:
        fixed = file.read(256)
        if len(fixed) < 256:
            raise ValueError(f"{path} has {len(fixed)} bytes, an EDF header alone has 256: copy it again.")
        bdf = fixed[:1] == b"\xff"
        n_signals = int(_number(path, "number of signals", fixed[252:256]))
        header_bytes = 256 * (n_signals + 1)
        block = file.read(256 * n_signals)
    if n_signals <= 0 or len(block) < 256 * n_signals:
        raise ValueError(
            f"{path}: its header announces {n_signals} signals, {header_bytes} bytes, and the file has "
            f"{path.stat().st_size}. Copy it again from its origin."
        )
    fields: dict[str, list[bytes]] = {}
    position = 0
    for name, width in _FIELDS.items():
        fields[name] = [block[position + width * i : position + width * (i + 1)] for i in range(n_signals)]
        position += width * n_signals

    signals: list[Signal] = []
    offset = 0
    for i, label in enumerate(_unique([_text(raw) for raw in fields["label"]])):
        samples = int(_number(path, f"samples per record of {label}", fields["samples"][i]))
        gain, bias = _scale(path, label, {name: fields[name][i] for name in _FIELDS})
        signals.append(
            Signal(
                label=label,
                unit=_text(fields["unit"][i]),
                transducer=_text(fields["transducer"][i]),
                prefilter=_text(fields["prefilter"][i]),
                samples=samples,
                offset=offset,
                gain=gain,
                bias=bias,
            )
        )
        offset += samples
    record_s = _number(path, "duration of a record", fixed[244:252])
    if record_s <= 0 or offset <= 0:
        raise ValueError(f"{path} holds annotations only (its records last {record_s:g} s): exclude it.")
    sample_bytes = 3 if bdf else 2
    return EdfFile(
        path=path,
        sample_bytes=sample_bytes,
        header_bytes=header_bytes,
        continuous=not _text(fixed[192:236]).startswith(("EDF+D", "BDF+D")),
        n_records=_count_records(path, fixed[236:244], header_bytes, sample_bytes * offset),
        record_s=record_s,
        signals=signals,
    )


def _count_records(path: Path, stated: bytes, header_bytes: int, record_bytes: int) -> int:
    """Records to read: what the header says, or what the file holds when the recorder never wrote the count (-1)."""
    size = path.stat().st_size
    promised = int(_number(path, "number of records", stated))
    held = (size - header_bytes) // record_bytes
    if promised <= 0:
        return held
    if held < promised:
        raise ValueError(
            f"{path} is truncated: its header promises {promised} records, {header_bytes + promised * record_bytes} "
            f"bytes, and the file has {size}. Copy it again from its origin; if this is all there is, write "
            f"{held} into its header as the number of records (bytes 236 to 243)."
        )
    return promised


def choose_rate(rates: list[float]) -> float:
    """The rate most channels have; of equally frequent ones the highest."""
    count = Counter(rates)
    return max(count, key=lambda rate: (count[rate], rate))


def read_signals(
    file: EdfFile, chosen: list[Signal], start: int, stop: int, gains_C: np.ndarray, biases_C: np.ndarray
) -> np.ndarray:
    """Samples [start, stop) of signals that share one rate, as (C, T) float64: gain * digital + bias of each."""
    samples = chosen[0].samples
    out_CT = np.empty((len(chosen), stop - start))
    record_bytes = file.record_samples * file.sample_bytes
    per_read = _READ_BYTES // record_bytes
    # Whole records, many at a time; of a record that is too large for that, only the samples asked for.
    edges = range(start // samples * samples, stop, samples * max(per_read, 1))
    with file.path.open("rb", buffering=0) as stream:
        for edge in edges:
            begin, end = max(start, edge), min(stop, edge + edges.step)
            if per_read:
                first, last = begin // samples, -(-end // samples)
                raw = _read(stream, file, first * record_bytes, (last - first) * record_bytes)
                records_RS = raw.reshape(last - first, file.record_samples)
                block_CRS = np.empty((len(chosen), last - first, samples), raw.dtype)
                for c, signal in enumerate(chosen):
                    block_CRS[c] = records_RS[:, signal.offset : signal.offset + samples]
                block_CT = block_CRS.reshape(len(chosen), -1)[
                    :, begin - first * samples : end - first * samples
                ]
            else:
                within = edge // samples * file.record_samples + begin - edge
                offsets = [(within + signal.offset) * file.sample_bytes for signal in chosen]
                block_CT = np.stack(
                    [_read(stream, file, at, (end - begin) * file.sample_bytes) for at in offsets]
                )
            part_CT = out_CT[:, begin - start : end - start]
            np.multiply(block_CT, gains_C[:, None], out=part_CT)
            part_CT += biases_C[:, None]
    return out_CT


def _read(stream: io.FileIO, file: EdfFile, offset: int, n_bytes: int) -> np.ndarray:
    """Integers from `n_bytes` at `offset` into the data records."""
    stream.seek(file.header_bytes + offset)
    raw = stream.read(n_bytes)
    if len(raw) < n_bytes:
        raise OSError(
            f"{file.path} ends before its header says: it is being written, or was cut short. Copy it again."
        )
    if file.sample_bytes == 2:
        return np.frombuffer(raw, "<i2")
    # 24-bit two's complement: placed in the upper three bytes, so that the shift back extends the sign.
    wide = np.zeros((n_bytes // 3, 4), np.uint8)
    wide[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
    return wide.view("<i4").reshape(-1) >> 8


def record_onsets(file: EdfFile) -> np.ndarray | None:
    """Start of each record in seconds, from the time-keeping annotation that begins each one; None if there is none."""
    keeper = next((signal for signal in file.signals if signal.is_annotation), None)
    if keeper is None:
        return None
    record_bytes = file.record_samples * file.sample_bytes
    onsets_R = np.empty(file.n_records)
    with file.path.open("rb") as stream:
        for record in range(file.n_records):
            stream.seek(file.header_bytes + record * record_bytes + keeper.offset * file.sample_bytes)
            onset = stream.read(keeper.samples * file.sample_bytes).split(b"\x14")[0]
            try:
                onsets_R[record] = float(onset)
            except ValueError:
                raise ValueError(
                    f"{file.path} says it is discontinuous (EDF+D), but record {record} does not say when it begins "
                    f"(found {onset[:16]!r}): the stretches cannot be told apart. Export it again as EDF+C."
                ) from None
    return onsets_R


def continuous_spans(file: EdfFile, samples: int) -> list[tuple[int, int]]:
    """[start, stop) sample ranges without interruption, for a signal of `samples` per record."""
    n_samples = file.n_records * samples
    onsets_R = None if file.continuous else record_onsets(file)
    if onsets_R is None:
        return [(0, n_samples)]
    gaps = np.abs(np.diff(onsets_R) - file.record_s) > 0.5 * file.record_s / samples
    edges = [0, *((np.flatnonzero(gaps) + 1) * samples).tolist(), n_samples]
    return list(itertools.pairwise(edges))


def _scale(path: Path, label: str, raw: dict[str, bytes]) -> tuple[float, float]:
    """(gain, bias); NaN where the header leaves the scale undefined."""
    if label in ("EDF Annotations", "BDF Annotations"):
        return 1.0, 0.0
    low, high = (_number(path, f"{name} of {label}", raw[name]) for name in ("physical_min", "physical_max"))
    bottom, top = (_number(path, f"{name} of {label}", raw[name]) for name in ("digital_min", "digital_max"))
    if top == bottom or high == low:
        return float("nan"), float("nan")
    gain = (high - low) / (top - bottom)
    return gain, low - gain * bottom


def _text(raw: bytes) -> str:
    return raw.split(b"\x00")[0].decode("latin-1").strip()


def _number(path: Path, what: str, raw: bytes) -> float:
    text = _text(raw).replace(",", ".")
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{path}: the {what} in its header is {text!r}, not a number: repair it.") from None


def _unique(labels: list[str]) -> list[str]:
    """Labels with `-0`, `-1`... where several signals share one, as MNE names them; annotation signals keep theirs."""
    count = Counter(labels)
    seen: Counter[str] = Counter()
    unique = []
    for label in labels:
        if count[label] > 1 and label not in ("EDF Annotations", "BDF Annotations"):
            unique.append(f"{label}-{seen[label]}")
            seen[label] += 1
        else:
            unique.append(label)
    return unique
