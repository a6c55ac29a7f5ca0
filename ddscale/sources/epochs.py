"""Published sets of EEG that was cut into epochs before anybody could say how: one after another, as a recording.

Nothing is continuous across epochs, so each is a span of its own: filters, if a recipe asks for any, see 0.5 s at a
time. Shapes: C channels, L samples of an epoch, E epochs, T samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddscale.signal.channels import Channel
from ddscale.sources.recording import OpenRecording, Picture, Trial, UnitSource

SUFFIXES = ("png", "jpg", "jpeg")

IN_TIME = "in_time"
"""Key in a recording's meta: whether its trials lie in the order they were recorded in; without it they do."""


@dataclass(frozen=True)
class Shown:
    """What an epoch was recorded to."""

    image: str
    label: str | None = None
    caption: str | None = None


def recording_of_epochs(
    *,
    path: str,
    sfreq: float,
    channels: Sequence[Channel],
    shown: Sequence[Shown],
    samples: int,
    take: Callable[[int], np.ndarray],
    unit: str,
    unit_source: UnitSource,
    in_time: bool,
    meta: Mapping[str, Any],
    close: Callable[[], None] | None = None,
) -> OpenRecording:
    """Epochs as a recording in which each is a span and a trial.

    shown: one per epoch. samples: L. take(e): epoch e as (C, L), in µV or whatever `unit` says. in_time: the
    epochs come in the order they were recorded in; false where files do not say, as positions then are no times.
    """

    def read(start: int, stop: int) -> np.ndarray:
        pieces = []
        for epoch in range(start // samples, -(-stop // samples)):
            first = epoch * samples
            whole_CL = np.asarray(take(epoch), np.float64)
            if whole_CL.shape != (len(channels), samples):
                raise ValueError(
                    f"{path}: epoch {epoch} has the shape {whole_CL.shape}, others have {(len(channels), samples)}: "
                    "the file is not of the published layout."
                )
            pieces.append(whole_CL[:, max(start - first, 0) : stop - first])
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=1)

    seen: Counter[str] = Counter()
    trials = []
    for epoch, what in enumerate(shown):
        start = epoch * samples
        repetition = seen[what.image]
        trials.append(Trial(start, start + samples, what.image, what.label, what.caption, repetition))
        seen[what.image] += 1
    return OpenRecording(
        path=path,
        sfreq=sfreq,
        n_samples=len(shown) * samples,
        channels=channels,
        read=read,
        unit=unit,
        unit_source=unit_source,
        spans=[(trial.start, trial.stop) for trial in trials],
        trials=trials,
        meta=dict(meta) | {"epochs": len(shown), IN_TIME: in_time},
        close=close,
    )


def check_pictures(pictures: Iterable[Picture], where: str) -> list[Picture]:
    """The pictures, sorted; raises FileNotFoundError naming the first that are not there, and how many."""
    pictures = sorted(pictures, key=lambda picture: picture.image)
    missing = [picture for picture in pictures if not Path(picture.path).is_file()]
    if missing:
        named = ", ".join(f"{picture.image} ({picture.path})" for picture in missing[:3])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise FileNotFoundError(
            f"{where} was recorded to pictures that are missing: {named}{more}. Put them there, or correct `images:`."
        )
    strange = [picture for picture in pictures if picture.suffix not in SUFFIXES]
    if strange:
        raise ValueError(f"picture {strange[0].path} is not one of {', '.join(SUFFIXES)}: convert it.")
    return pictures


def suffix_of(path: Path | str) -> str:
    """`JPEG` of `a.JPEG`, in lower case."""
    return Path(path).suffix.lower().removeprefix(".")
