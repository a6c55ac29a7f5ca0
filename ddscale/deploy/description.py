"""Everything beside the graphs: golden file, tables, constants, names of weights, and the manifest over all."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ddscale.deploy import manifest as m
from ddscale.deploy.graphs import latent_shape
from ddscale.deploy.parity import END_TO_END_LIMITS, golden_limit
from ddscale.deploy.quantisation import QUANTISED
from ddscale.deploy.recipe import ExportRecipe
from ddscale.deploy.reference import GUIDANCE, Reference, golden_arrays
from ddscale.deploy.source import Source, hash_source

_PACKAGES = ("ddscale", "torch", "diffusers", "onnx", "onnxscript", "onnxruntime", "numpy")
_MODELOPT = "nvidia-modelopt"


@dataclass(frozen=True)
class Compared:
    """A precision's graphs after they held."""

    graphs: dict[str, m.GraphInfo]
    limits: dict[str, float]
    checks: tuple[m.ParityCheck, ...]
    weight_names: dict[str, dict[str, str]]
    notes: tuple[str, ...] = ()


def facts_of(source: Source, recipe: ExportRecipe) -> dict[str, Any]:
    """The manifest's fields that are the same for every precision, taken before the weights are let go."""
    windows, pipeline = source.windows, source.pipeline
    latent = None
    if pipeline is not None:
        channels, height, width = latent_shape(pipeline)
        latent = m.LatentInfo(channels, height, width, pipeline.codec.downsampling)
    named = {"conditioner": recipe.conditioner, "tiny_decoder": recipe.tiny_decoder}
    beside = {name: hash_source(Path(folder)) for name, folder in named.items() if folder}
    packages = {name: version_of(name) for name in _PACKAGES}
    return {
        "kind": "encoder" if pipeline is None else "pipeline",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "sfreq": windows.sfreq,
        "channels": windows.channels,
        "samples": windows.samples,
        "preprocessing": windows.preprocessing,
        "normalisation": windows.normalisation,
        "latent": latent,
        "vae_scale": None if pipeline is None else pipeline.codec.scale,
        "prediction_type": None
        if pipeline is None
        else pipeline.scheduler.config.get("prediction_type", "epsilon"),
        "profiles": tuple(m.Profile(p.name, p.min, p.opt, p.max) for p in recipe.profiles),
        "versions": {**packages, "python": platform.python_version()},
        "source": m.SourceInfo(str(source.path), hash_source(source.path), beside),
    }


def version_of(package: str) -> str:
    """An installed package's version. onnxruntime has several distributions, such as onnxruntime-gpu, for one module.

    Raises ModuleNotFoundError when it is not installed.
    """
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return str(importlib.import_module(package).__version__)


def describe(
    folder: Path, precision: m.Precision, compared: Compared, reference: Reference, facts: dict[str, Any]
) -> None:
    """Write a precision's remaining files, the manifest last."""
    arrays: dict[str, Any] = golden_arrays(reference)
    np.savez(folder / "golden.npz", **arrays)
    names = json.dumps(compared.weight_names, indent=1, ensure_ascii=False)
    (folder / "weight_names.json").write_text(names + "\n", encoding="utf-8")
    constants: dict[str, Any] = reference.constants
    if constants:
        np.savez(folder / "constants.npz", **constants)
    schedules = []
    for table, difference in reference.tables:
        file = f"schedules/{table.scheduler}-{table.steps}.npz"
        (folder / "schedules").mkdir(exist_ok=True)
        table.save(folder / file)
        schedules.append(m.ScheduleInfo(table.scheduler, table.steps, file, difference))
    end_to_end = None
    if reference.end_to_end is not None:
        table = reference.end_to_end.table
        limit = golden_limit(precision, END_TO_END_LIMITS[precision])
        end_to_end = m.EndToEndGolden(table.scheduler, table.steps, GUIDANCE, limit)
    # Each of its own precision: decoders beside quantised graphs are as exact as in an fp32 export.
    tolerances = {
        name: golden_limit(compared.graphs[name].precision, limit) for name, limit in compared.limits.items()
    }
    if precision in QUANTISED:
        facts = facts | {"versions": facts["versions"] | {_MODELOPT: version_of(_MODELOPT)}}
    files = {
        path.relative_to(folder).as_posix(): m.FileInfo(m.sha256_of(path), path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    m.Manifest(
        precision=precision,
        graphs=compared.graphs,
        files=files,
        constants="constants.npz" if constants else None,
        schedules=tuple(schedules),
        golden=m.GoldenInfo("golden.npz", tolerances, end_to_end),
        parity=compared.checks,
        weight_names="weight_names.json",
        notes=compared.notes,
        **facts,
    ).save(folder)
