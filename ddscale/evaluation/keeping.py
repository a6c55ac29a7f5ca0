"""Where an evaluation's results lie, so that none replaces another that was made in another way."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from PIL import Image

from ddscale.deploy.manifest import FILE_NAME as MANIFEST
from ddscale.deploy.source import hash_source
from ddscale.diffusion.finetuning import PIPELINE
from ddscale.evaluation.results import write_json
from ddscale.store import Store

RESULTS = "metrics.json"
EARLIER = "earlier"


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
    stated = json.dumps(found.get("protocol") or found.get("settings"), sort_keys=True)
    digest = hashlib.sha256(stated.encode()).hexdigest()[:8]
    return f"{found.get('split', 'unknown')}-{found.get('trials', 0)}trials-{digest}"


def _free(path: Path) -> Path:
    """The path, or with a number behind it where it is taken."""
    candidate, number = path, 2
    while candidate.exists():
        candidate, number = path.with_name(f"{path.name}-{number}"), number + 1
    return candidate
