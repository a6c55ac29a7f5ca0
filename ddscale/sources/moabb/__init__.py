"""The `moabb` source: public datasets that MOABB knows by name, downloaded subject by subject when they are opened.

`python -m ddscale.sources.moabb` writes the recipe with all of them.
Shapes: C channels, T samples.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from ddscale.sources.provenance import Provenance, Unit, Whereabouts
from ddscale.sources.recording import Listing, Mark, OpenRecording, Recording
from ddscale.sources.selection import Statements

_CHUNK_S = 60  # of a run at a time, when it is set down beside the others


class MoabbSource(Provenance):
    """One dataset of MOABB (https://moabb.neurotechx.com)."""

    kind: Literal["moabb"]

    name: str
    """The dataset's class in `moabb.datasets`, such as `BNCI2014_001`."""

    subjects: Annotated[list[int] | None, Whereabouts] = Field(None, min_length=1)
    """Subjects by MOABB's numbers; left out: all."""

    downloads: Annotated[str | None, Whereabouts] = None
    """Folder that downloads are kept in; left out: MNE's (`MNE_DATA`, or mne_data in the home folder)."""

    unit: Unit | None = None
    """Unit of the numbers that MOABB takes for µV, to correct a dataset it scales wrongly."""


def list_moabb(source: MoabbSource) -> Listing:
    """One recording per subject, of all sessions and runs; nothing is downloaded.

    Raises ValueError when MOABB is not installed, or has no such dataset or subject.
    """
    from ddscale.sources.moabb.catalogue import describe

    dataset = open_dataset(source.name)
    known = list(dataset.subject_list)
    subjects = known if source.subjects is None else source.subjects
    if unknown := [subject for subject in subjects if subject not in known]:
        raise ValueError(
            f"{source.name} has no subject {', '.join(map(str, unknown))}: MOABB numbers them {known[0]} to "
            f"{known[-1]} ({len(known)} in all)."
        )
    width = len(str(max(map(int, known))))
    gigabytes = describe(dataset)["gigabytes"] or 0.0
    recordings = [
        Recording(
            dataset=source.dataset,
            subject=f"{int(subject):0{width}d}",
            id=f"subject{int(subject):0{width}d}",
            path=f"MOABB {source.name}, subject {subject}",
            size_bytes=int(gigabytes * 1e9 / len(known)),
            opener=partial(_open, source, int(subject)),
        )
        for subject in subjects
    ]
    return Listing(sorted(recordings, key=lambda recording: recording.id), [])


def _open(source: MoabbSource, subject: int) -> OpenRecording:
    from ddscale.sources.mne_files import quiet

    path = f"MOABB {source.name}, subject {subject}"
    dataset = open_dataset(source.name)
    with quiet(), _downloading_to(source.downloads):
        try:
            sessions = dataset.get_data(subjects=[subject])[subject]
        except (
            Exception
        ) as error:  # of pooch, requests, zipfile, scipy: whatever the dataset's own loader meets
            cause = " ".join(str(error).split())[:300] or type(error).__name__
            raise OSError(
                f"{path} could not be had: {cause} Check the network (a login or proxy?) and try again; what has "
                "been downloaded is kept. Or leave the subject out with `subjects:`."
            ) from error
    runs = [
        (f"{session}/{run}", raw)
        for session, its_runs in sorted(sessions.items(), key=lambda item: str(item[0]))
        for run, raw in sorted(its_runs.items(), key=lambda item: str(item[0]))
    ]
    if not runs:
        raise ValueError(f"{path} has no runs. Leave the subject out with `subjects:`.")
    return _concatenated(path, dataset, source.unit, runs)


def _concatenated(path: str, dataset: Any, unit: Unit | None, runs: list[tuple[str, Any]]) -> OpenRecording:
    """Runs of the same channels and rate as one recording, interrupted between them.

    MOABB hands runs over in memory; they are set down on disk one after the other, so that they need not stay.
    """
    from ddscale.sources.mne_files import from_raw

    layouts: dict[Any, list[int]] = defaultdict(list)
    for i, (_, raw) in enumerate(runs):
        layouts[(tuple(raw.ch_names), raw.info["sfreq"])].append(i)
    kept = max(layouts.values(), key=lambda members: (sum(runs[i][1].n_times for i in members), -members[0]))
    statements = Statements(unit=unit, meta=_meta(dataset), reference=_reference(dataset))
    scratch = tempfile.TemporaryDirectory(prefix="ddscale-")
    table = Path(scratch.name) / "signal"
    spans: list[tuple[int, int]] = []
    marks: list[Mark] = []
    first: OpenRecording | None = None
    dropped = {name: "other channels or rate than the subject's other runs" for name, _ in runs}
    try:
        with table.open("wb") as file:
            for i in kept:
                name, raw = runs[i]
                dropped.pop(name)
                # A factor of 1e6 says that the Raw is in V; MOABB has datasets in µV, with a factor of 1.
                units: list[tuple[str | None, float]] = [("uV", 1.0 / dataset.unit_factor)] * len(
                    raw.ch_names
                )
                opened = from_raw(raw, f"{path}, run {name}", "MOABB", units, statements)
                offset = spans[-1][1] if spans else 0
                for start in range(0, opened.n_samples, chunk := round(_CHUNK_S * opened.sfreq)):
                    block_CT = opened.read(start, min(start + chunk, opened.n_samples))
                    file.write(np.ascontiguousarray(block_CT.T, dtype=np.float32).tobytes())
                spans += [(offset + start, offset + stop) for start, stop in opened.spans]
                marks += [
                    Mark(offset + mark.start, offset + mark.stop, mark.channels) for mark in opened.marks
                ]
                first = first or opened
                runs[i] = (name, None)
                del raw
    except BaseException:
        scratch.cleanup()
        raise
    assert first is not None
    shape = (spans[-1][1], len(first.channels))

    def read(start: int, stop: int) -> np.ndarray:
        return np.array(np.memmap(table, np.float32, "r", shape=shape)[start:stop]).T

    return OpenRecording(
        path=path,
        sfreq=first.sfreq,
        n_samples=shape[0],
        channels=first.channels,
        read=read,
        unit=first.unit,
        unit_source=first.unit_source,
        reference=first.reference,
        spans=spans,
        marks=marks,
        meta=first.meta | ({"dropped_runs": dropped} if dropped else {}),
        close=scratch.cleanup,
    )


@contextlib.contextmanager
def _downloading_to(folder: str | None) -> Iterator[None]:
    if folder is None:
        yield
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    before = os.environ.get("MNE_DATA")
    os.environ["MNE_DATA"] = str(Path(folder).resolve())
    try:
        yield
    finally:
        if before is None:
            del os.environ["MNE_DATA"]
        else:
            os.environ["MNE_DATA"] = before


def package() -> ModuleType:
    """`moabb.datasets`. Raises ValueError when MOABB is not installed."""
    from ddscale.sources.mne_files import quiet

    try:
        with quiet():
            import moabb.datasets
    except ImportError as error:
        raise ValueError(
            f"A source of kind `moabb` needs the package moabb ({error}): pip install 'ddscale[moabb]'."
        ) from error
    return moabb.datasets


def open_dataset(name: str) -> Any:
    """MOABB's object for a dataset, which lists subjects without downloading. Raises ValueError when unknown."""
    import difflib

    datasets = package()
    found = getattr(datasets, name, None)
    if not (isinstance(found, type) and hasattr(found, "get_data")):
        names = [
            key
            for key, value in vars(datasets).items()
            if isinstance(value, type) and hasattr(value, "get_data")
        ]
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(near)}?" if near else "recipes/ingest/moabb.yaml lists them."
        raise ValueError(f"MOABB has no dataset {name}. {hint}")
    return found()


def _meta(dataset: Any) -> dict[str, Any]:
    acquisition = getattr(getattr(dataset, "metadata", None), "acquisition", None)
    meta: dict[str, Any] = {}
    if acquisition is not None:
        if acquisition.line_freq:
            meta["line_freq"] = float(acquisition.line_freq)
        if acquisition.hardware:
            meta["device"] = str(acquisition.hardware)
        if acquisition.filters:
            meta["prefilter"] = [str(acquisition.filters)]
    return meta


def _reference(dataset: Any) -> str | None:
    acquisition = getattr(getattr(dataset, "metadata", None), "acquisition", None)
    return str(acquisition.reference) if acquisition is not None and acquisition.reference else None
