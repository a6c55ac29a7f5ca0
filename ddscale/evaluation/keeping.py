"""Where results lie: no evaluation replaces another that was made otherwise, none is lost to an interruption.

Shape letters: G pictures drawn.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddscale.deploy.manifest import FILE_NAME as MANIFEST
from ddscale.deploy.source import hash_source
from ddscale.diffusion.finetuning import PIPELINE
from ddscale.evaluation.results import number, write_json
from ddscale.store import Store
from ddscale.store.layout import written_whole

RESULTS = "metrics.json"
EARLIER = "earlier"
UNFINISHED = "unfinished"


@dataclass(frozen=True)
class Done:
    """One condition, drawn and judged."""

    result: dict[str, Any]
    """For the results file."""
    values: dict[str, NDArray[np.float64]]
    """Metric -> (G,), of each picture drawn; NaN where it was not judged."""
    proportions: list[str]
    """Metrics from 0 to 1."""
    exported: dict[str, Any] | None
    """What is known of the export that drew."""
    examples: dict[str, Any]
    grids: dict[str, Image.Image]
    """File name -> picture; of the EEG alone."""


def protocol_of(
    run: Path, store: Store, settings: dict[str, Any], exported: str | Path | None
) -> dict[str, Any]:
    """All that decides what an evaluation finds: weights, store, settings."""
    graphs = None if exported is None else (Path(exported) / MANIFEST).read_bytes()
    return {
        "weights": hash_source(run / PIPELINE),
        "graphs": None if graphs is None else hashlib.sha256(graphs).hexdigest(),
        "store": store.fingerprint,
        "settings": settings,
    }


class Keeping:
    """The results folder of one evaluation."""

    def __init__(self, folder: Path, protocol: dict[str, Any]) -> None:
        self.folder, self.protocol = folder, protocol
        self._unfinished = folder / UNFINISHED / _digest(protocol)

    def done(self, condition: str) -> Done | None:
        """What an interrupted evaluation by the same protocol has found of a condition."""
        path = self._unfinished / f"{condition}.json"
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
            values = {name: np.array(of, np.float64) for name, of in tree.pop("values").items()}
            grids = {name: Image.open(self._unfinished / name).copy() for name in tree.pop("grids")}
            return Done(values=values, grids=grids, **tree)
        except (OSError, ValueError, KeyError, TypeError):
            return None  # not there, or not whole: it is drawn again

    def save(self, condition: str, done: Done) -> None:
        """Keep a condition until all are there."""
        self._unfinished.mkdir(parents=True, exist_ok=True)
        for name, grid in done.grids.items():
            with written_whole(self._unfinished / name) as temporary:
                grid.save(temporary, format="PNG")
        values = {name: [number(value) for value in of.tolist()] for name, of in done.values.items()}
        kept = {field.name: getattr(done, field.name) for field in fields(done)}
        write_json(
            self._unfinished / f"{condition}.json", {**kept, "values": values, "grids": list(done.grids)}
        )

    def finish(self, outcome: dict[str, Any], grids: dict[str, Image.Image]) -> dict[str, Any]:
        """Write the results and the pictures of examples, by file name.

        Results of another protocol that lie there go to a folder of their own, which is named.

        Returns what the file holds.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        moved = self._move_earlier()
        outcome = {
            **outcome,
            "protocol": self.protocol,
            "earlier_results_moved_to": str(moved) if moved else None,
        }
        for name, grid in grids.items():
            grid.save(self.folder / name)
        write_json(self.folder / RESULTS, outcome)
        shutil.rmtree(self._unfinished, ignore_errors=True)
        with contextlib.suppress(OSError):  # other evaluations are unfinished
            (self.folder / UNFINISHED).rmdir()
        return outcome

    def _move_earlier(self) -> Path | None:
        path = self.folder / RESULTS
        if not path.is_file():
            return None
        try:
            earlier = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            earlier = {}  # unreadable, but not ours to delete
        if earlier.get("protocol") == self.protocol:
            return None
        target = _free(self.folder / EARLIER / _name_of(earlier))
        target.mkdir(parents=True)
        for name in (earlier.get("examples") or {}).get("grids", {}).values():
            if (self.folder / name).is_file():
                shutil.copy2(self.folder / name, target / name)
        # Last: until then the folder holds them whole.
        path.replace(target / RESULTS)
        return target


def _name_of(found: dict[str, Any]) -> str:
    digest = _digest(found.get("protocol") or found.get("settings"))
    return f"{found.get('split', 'unknown')}-{found.get('trials', 0)}trials-{digest}"


def _digest(protocol: Any) -> str:
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:8]


def _free(path: Path) -> Path:
    """The path, or with a number behind it where it is taken."""
    candidate, number = path, 2
    while candidate.exists():
        candidate, number = path.with_name(f"{path.name}-{number}"), number + 1
    return candidate
