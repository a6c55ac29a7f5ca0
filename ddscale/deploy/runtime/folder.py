"""An exported folder as the runtime opens it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ddscale.deploy.manifest import UNET, Manifest, ManifestError
from ddscale.deploy.runtime.sampler import Table


def checked_manifest(folder: str | os.PathLike[str], names: list[str]) -> Manifest:
    """The manifest of a folder, every file checked that these graphs and their use need.

    Raises FileNotFoundError without a manifest, ManifestError when the folder must not be used.
    """
    manifest = Manifest.load(folder)
    if UNET in names and (
        manifest.kind != "pipeline" or manifest.latent is None or manifest.constants is None
    ):
        raise ManifestError(
            f"{folder} is the export of an encoder alone and draws no pictures: export a fine-tuned run, or use "
            "ddscale.deploy.runtime.Encoder."
        )
    graphs = [manifest.graph(name) for name in names]
    used = [file for graph in graphs for file in (graph.file, graph.data_file) if file is not None]
    if UNET in names:
        used += [schedule.file for schedule in manifest.schedules]
        used += [manifest.constants] if manifest.constants is not None else []
        if not manifest.schedules:
            raise ManifestError(
                f"{folder} has no sampler: list some under `schedules` in the recipe, export again."
            )
    if unlisted := [file for file in used if file not in manifest.files]:
        raise ManifestError(f"{folder}: the manifest has no checksum of {', '.join(unlisted)}: export again.")
    manifest.check_files(folder, used)
    return manifest


def load_constants(folder: Path, manifest: Manifest) -> dict[str, np.ndarray]:
    """What guidance starts from, by name."""
    with np.load(folder / str(manifest.constants), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def load_tables(folder: Path, manifest: Manifest) -> dict[tuple[str, int], Table]:
    """Every sampler that was exported, by name and steps, so that none can be exchanged later.

    Raises ManifestError when a file holds another sampler than the manifest says.
    """
    tables = {}
    for schedule in manifest.schedules:
        table = Table.load(folder / schedule.file)
        if (table.scheduler, table.steps) != (schedule.name, schedule.steps):
            raise ManifestError(
                f"{folder / schedule.file} holds {table.scheduler} with {table.steps} steps, the manifest says "
                f"{schedule.name} with {schedule.steps}: copy the folder again, or export again."
            )
        tables[schedule.name, schedule.steps] = table
    return tables
