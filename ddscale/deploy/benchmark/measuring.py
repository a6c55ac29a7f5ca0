"""What is measured: each graph by batch, and whole pictures by sampler, steps and decoder, on every engine at once."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddscale.deploy.benchmark.engines import (
    EAGER,
    Engine,
    check_same_weights,
    load_weights,
    runtime_engines,
    torch_engines,
)
from ddscale.deploy.benchmark.timing import Timed, interleaved
from ddscale.deploy.manifest import DECODER, ENCODER, FILE_NAME, TINY_DECODER, UNET, Manifest
from ddscale.deploy.runtime import EEGToImage
from ddscale.diffusion.pipeline import EEGToImagePipeline, scheduler_named

ORIGINAL = "original"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """How much is measured."""

    batches: tuple[int, ...] = (1,)
    """Pictures at once; with guidance the U-Net sees twice as many."""
    rounds: int = 15
    """Calls of each engine that are counted."""
    budget_s: float = 60.0
    """For one comparison; at least three rounds are made."""
    guidance: float = 3.0
    """Of whole pictures; 1 is none."""
    threads: int = 0
    """Of the CPU, for all engines; 0: as PyTorch takes by itself."""
    compiled: bool = True
    """Whether torch.compile is measured too; compiling takes minutes for large networks."""
    original: bool = False
    """Whether the original's recipe (250 PLMS steps, full VAE, eager) is measured too; it takes long."""
    original_rounds: int = 3
    """Rounds of that."""
    conditioner: str | None = None
    """Folder of the weights that the EEG conditioner was exported from, when the recipe named one."""
    tiny_decoder: str | None = None
    """Folder of the weights that tiny_decoder was exported from, for PyTorch to run them."""


@dataclass(frozen=True)
class Row:
    """One thing on one engine."""

    stage: str
    """A graph's name, or `picture`, or `original`."""
    engine: str
    pictures: int
    median_ms: float
    quartiles_ms: tuple[float, float]
    rounds: int
    to_eager: float | None
    """Times PyTorch eager's median, in the same rounds; less is faster."""
    scheduler: str | None = None
    steps: int | None = None
    decoder: str | None = None


@dataclass
class Result:
    """All that was measured, and what was not."""

    folder: str
    machine: dict[str, Any]
    settings: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    """Engine -> why."""

    def find(self, stage: str, engine: str, **facts: Any) -> list[Row]:
        """Rows of a stage on an engine."""
        rows = [row for row in self.rows if (row.stage, row.engine) == (stage, engine)]
        return [row for row in rows if all(getattr(row, name) == value for name, value in facts.items())]

    def speedup_over_original(self) -> tuple[Row, float] | None:
        """The fastest picture of one, and how many times faster it is than the original's recipe; None unmeasured."""
        original = [row for row in self.rows if row.stage == ORIGINAL]
        pictures = [row for row in self.rows if row.stage == "picture" and row.pictures == 1]
        if not original or not pictures:
            return None
        best = min(pictures, key=lambda row: row.median_ms)
        return best, original[0].median_ms / best.median_ms

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Result:
        """Read what `save` wrote. Raises FileNotFoundError without a file, ValueError for another kind of file."""
        try:
            tree = json.loads(Path(path).read_text(encoding="utf-8"))
            rows = [Row(**{**row, "quartiles_ms": tuple(row["quartiles_ms"])}) for row in tree.pop("rows")]
            return cls(rows=rows, **tree)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is not a benchmark's JSON ({error!r}): give the file that export/benchmark.py wrote."
            ) from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON."""
        Path(path).write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")


def benchmark(folder: str | os.PathLike[str], settings: Settings, say: Say = lambda line: None) -> Result:
    """Measure one export: a precision's folder, or the folder above with several.

    Raises FileNotFoundError when there is no export, ValueError when the weights it came from are others or not there.
    """
    root = Path(folder)
    folders = (
        [root] if (root / FILE_NAME).is_file() else sorted(p.parent for p in root.glob(f"*/{FILE_NAME}"))
    )
    if not folders:
        Manifest.load(root)
    # What the others are compared with comes first.
    folders.sort(key=lambda path: path.name != "fp32")
    manifest = Manifest.load(folders[0])
    before = torch.get_num_threads()
    threads = settings.threads or before
    torch.set_num_threads(threads)
    try:
        return _measure(root, folders, manifest, threads, settings, say)
    finally:
        torch.set_num_threads(before)


def _measure(
    root: Path, folders: list[Path], manifest: Manifest, threads: int, settings: Settings, say: Say
) -> Result:
    first = folders[0]
    result = Result(str(root), _machine(threads), dataclasses.asdict(settings))
    with np.load(first / manifest.golden.file, allow_pickle=False) as file:
        golden = {name: file[name] for name in file.files}
    source = load_weights(manifest, settings.conditioner, settings.tiny_decoder)
    engines = list(torch_engines(first, source, settings.compiled))
    check_same_weights(engines[0], manifest, golden)
    for one in (engine for f in folders for engine in runtime_engines(f, threads)):
        if isinstance(one, Engine):
            engines.append(one)
        else:
            name, reason = one
            result.left_out[name] = reason
    say(f"engines: {', '.join(engine.name for engine in engines)}")
    _stages(engines, manifest, golden, settings, result, say)
    if manifest.kind == "pipeline":
        _pictures(engines, golden, settings, result, say)
        if settings.original and source.pipeline is not None:
            _original(source.pipeline, golden, manifest, settings, result, say)
    return result


def _stages(
    engines: list[Engine],
    manifest: Manifest,
    golden: dict[str, np.ndarray],
    settings: Settings,
    result: Result,
    say: Say,
) -> None:
    for name, info in manifest.graphs.items():
        for pictures in settings.batches:
            batch = 2 * pictures if name == UNET and settings.guidance > 1 else pictures
            inputs = {t.name: _repeated(golden[f"{name}/{t.name}"], batch) for t in info.inputs}
            say(f"{name}, batch {batch}")
            ways = {e.name: _run(e, name, inputs) for e in engines if name in e.graphs}
            _record(result, ways, settings, stage=name, pictures=pictures)


def _pictures(
    engines: list[Engine], golden: dict[str, np.ndarray], settings: Settings, result: Result, say: Say
) -> None:
    manifests = {engine.folder: Manifest.load(engine.folder) for engine in engines}
    decoders = {"full": DECODER, "tiny": TINY_DECODER}
    eeg = golden[f"{ENCODER}/eeg"]
    for decoder, graph in decoders.items():
        models = {}
        for engine in engines:
            if graph in engine.graphs:
                graphs = {name: engine.graphs[name] for name in (ENCODER, UNET, graph)}
                models[engine.name] = EEGToImage(engine.folder, manifests[engine.folder], graphs, engine.name)
        if not models:
            continue
        for schedule in manifests[engines[0].folder].schedules:
            for pictures in settings.batches:
                say(
                    f"pictures: {schedule.name}, {schedule.steps} steps, {decoder} decoder, {pictures} at once"
                )
                windows = _repeated(eeg, pictures)
                ways = {
                    name: _draw(model, windows, schedule.name, schedule.steps, settings.guidance)
                    for name, model in models.items()
                }
                facts: dict[str, Any] = {
                    "scheduler": schedule.name,
                    "steps": schedule.steps,
                    "decoder": decoder,
                }
                _record(result, ways, settings, stage="picture", pictures=pictures, **facts)


def _original(
    pipeline: EEGToImagePipeline,
    golden: dict[str, np.ndarray],
    manifest: Manifest,
    settings: Settings,
    result: Result,
    say: Say,
) -> None:
    """DreamDiffusion's recipe, 250 steps of PLMS without guidance and the full VAE, by diffusers' own loop."""
    say(f"the original's recipe: 250 PLMS steps, full VAE, eager, {settings.original_rounds} rounds")
    pipeline.scheduler = scheduler_named("pndm", pipeline.scheduler)
    config = pipeline.conditioner.encoder.config
    random = np.random.default_rng(0)
    windows = torch.from_numpy(random.standard_normal((1, config.n_samples, config.n_channels), np.float32))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline.to(device)

    def draw() -> object:
        return pipeline(windows, num_inference_steps=250, guidance_scale=1.0, output_type="np")

    few = dataclasses.replace(settings, rounds=settings.original_rounds)
    _record(
        result, {EAGER: draw}, few, stage=ORIGINAL, pictures=1, scheduler="pndm", steps=250, decoder="full"
    )


def _record(
    result: Result,
    ways: dict[str, Callable[[], object]],
    settings: Settings,
    warm_up: bool = True,
    **facts: Any,
) -> None:
    working = {}
    for name, way in ways.items():
        try:
            if warm_up:
                way()
        except Exception as error:
            if name == EAGER:
                raise
            # An engine that cannot run one thing, such as torch.compile without a compiler, is told and left out.
            result.left_out[f"{name}: {facts['stage']}"] = " ".join(str(error).split())[:300]
        else:
            working[name] = way
    timed = interleaved(working, settings.rounds, settings.budget_s, at_least=min(3, settings.rounds))
    eager: Timed | None = timed.get(EAGER)
    for name, own in timed.items():
        ratio = None if eager is None else own.median_ms / eager.median_ms
        result.rows.append(
            Row(
                engine=name,
                median_ms=own.median_ms,
                quartiles_ms=own.quartiles_ms,
                rounds=own.rounds,
                to_eager=ratio,
                **facts,
            )
        )


def _run(engine: Engine, name: str, inputs: dict[str, np.ndarray]) -> Callable[[], object]:
    return lambda: engine.graphs[name].run(inputs)


def _draw(
    model: EEGToImage, windows: np.ndarray, scheduler: str, steps: int, guidance: float
) -> Callable[[], object]:
    return lambda: model.generate(
        windows, steps=steps, scheduler=scheduler, guidance=guidance, batch_size=len(windows)
    )


def _repeated(rows: np.ndarray, batch: int) -> np.ndarray:
    return np.ascontiguousarray(rows[np.arange(batch) % len(rows)])


def _machine(threads: int) -> dict[str, Any]:
    versions = {}
    for package in ("torch", "onnxruntime", "openvino", "tensorrt_rtx"):
        try:
            versions[package] = str(__import__(package).__version__)
        except ImportError:
            continue
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": _cpu_name(), "cores": os.cpu_count(), "threads": threads, "gpu": gpu, "versions": versions}


def _cpu_name() -> str:
    lines: Iterable[str] = ()
    if (path := Path("/proc/cpuinfo")).is_file():
        lines = path.read_text(encoding="utf-8").splitlines()
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
