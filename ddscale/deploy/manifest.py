"""manifest.json: what an exported folder holds, down to the checksum of every file, and what it was checked against.

Standard library only: the runtime reads it where neither torch nor pydantic is. An export has one folder for each
precision, each complete in itself:

    manifest.json          this
    eeg_encoder.onnx       eeg (batch, channels, samples) µV -> encoder_hidden_states (batch, L, W) [, time (batch, W)]
    unet.onnx              sample, timestep, encoder_hidden_states [, class_labels] -> noise_pred
    vae_decoder.onnx       latent -> image (batch, 3, H, W), about -1..1; scaling inside
    tiny_decoder.onnx      the same, smaller and faster, when the recipe names one
    *.onnx.data            the weights of the graph of that name
    constants.npz          null_hidden_states (1, L, W) [, null_time (1, W)]: what guidance starts from
    schedules/NAME-STEPS.npz   a sampler's table
    golden.npz             inputs and outputs to replay
    weight_names.json      graph -> initialiser -> the parameter it came from

A pretrained encoder alone has eeg_encoder.onnx (eeg -> tokens (batch, N, D), pooled (batch, D)) and no generator.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ddscale.deploy.manifest_reading import check_possible, decode, read_json

# Raised when a key changes its meaning. One that is new has a default, and exports without it stay readable.
SCHEMA_VERSION = 1
FILE_NAME = "manifest.json"
ENCODER, UNET, DECODER, TINY_DECODER = "eeg_encoder", "unet", "vae_decoder", "tiny_decoder"
Precision = Literal["fp32", "fp16", "int8", "fp8"]


class ManifestError(ValueError):
    """An exported folder that must not be used as it is; the message says why and what to do."""


@dataclass(frozen=True)
class TensorInfo:
    """One input or output of a graph."""

    name: str
    dtype: str
    """As NumPy calls it; all are float32, whatever the precision inside."""
    shape: tuple[int | str, ...]
    """A number for a fixed dimension, a name for a dynamic one; only `batch` is dynamic."""


@dataclass(frozen=True)
class GraphInfo:
    """One ONNX graph."""

    file: str
    data_file: str | None
    """External weights beside it; None when they are inside."""
    sha256: str
    """Of graph and weights together, in that order: engines are built for exactly this."""
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    opset: int
    precision: Precision
    parameters: int
    """Numbers in its weights."""
    largest_activation: float | None
    """Largest absolute value inside the graph, in fp32, over the audit's inputs; None when not audited."""


@dataclass(frozen=True)
class FileInfo:
    """One file of the folder."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class LatentInfo:
    """The latents that U-Net and decoders work on, and the pictures they become."""

    channels: int
    height: int
    width: int
    downsampling: int
    """Pixels a side for one latent a side."""


@dataclass(frozen=True)
class ScheduleInfo:
    """One sampler's table."""

    name: str
    steps: int
    file: str
    largest_difference: float
    """From diffusers' own scheduler on the same noise predictions, relative."""


@dataclass(frozen=True)
class EndToEndGolden:
    """How the golden latents were drawn, all the way from golden `eeg` and `initial_latents` to `final_latents`."""

    scheduler: str
    steps: int
    guidance: float
    tolerance: float
    """Relative L2 of `final_latents` that a replay may differ by."""


@dataclass(frozen=True)
class GoldenInfo:
    """Inputs with the outputs that PyTorch gave in fp32; names in the file are `graph/tensor`."""

    file: str
    tolerances: dict[str, float]
    """Graph -> relative L2 that each of its outputs may differ by."""
    end_to_end: EndToEndGolden | None


@dataclass(frozen=True)
class ParityCheck:
    """One comparison made at export; every one held, or there would be no folder."""

    name: str
    graph: str | None
    value: float
    limit: float


@dataclass(frozen=True)
class Profile:
    """Batch sizes that an engine is built for, in pictures; sizes are fixed by the graphs."""

    name: str
    min: int
    opt: int
    max: int


@dataclass(frozen=True)
class SourceInfo:
    """Where the weights came from."""

    path: str
    sha256: str
    """Over the files in `path`, names and contents."""
    beside: dict[str, str] = field(default_factory=dict)
    """The same of folders that the recipe named besides: `conditioner`, `tiny_decoder`."""


@dataclass(frozen=True)
class Manifest:
    """Everything that is known of an exported folder."""

    kind: Literal["pipeline", "encoder"]
    precision: Precision
    created: str
    """UTC, ISO 8601."""
    graphs: dict[str, GraphInfo]
    files: dict[str, FileInfo]
    sfreq: float | None
    """Sampling rate that EEG must have, Hz; None when the source did not say."""
    channels: int
    samples: int
    preprocessing: dict[str, Any] | None
    """Filtering that the encoder's training data had had; None when the source did not say."""
    normalisation: dict[str, Any] | None
    """What the graph does to µV; None: it takes normalised windows."""
    latent: LatentInfo | None
    vae_scale: float | None
    """Inside the decoders already; for whoever encodes pictures."""
    prediction_type: str | None
    """What noise_pred is: epsilon, v_prediction or sample. The tables know it already."""
    constants: str | None
    schedules: tuple[ScheduleInfo, ...]
    profiles: tuple[Profile, ...]
    golden: GoldenInfo
    parity: tuple[ParityCheck, ...]
    versions: dict[str, str]
    """Package -> version that exported."""
    source: SourceInfo
    weight_names: str
    unit: str = "uV"
    schema_version: int = SCHEMA_VERSION
    notes: tuple[str, ...] = field(default=())
    """What a user should know of this export, such as layers that were kept in another precision."""

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Manifest:
        """Read a folder's manifest; the files it names are not looked at, see check_files.

        Raises FileNotFoundError when there is none, ManifestError when it is damaged or of another version.
        """
        path = Path(folder) / FILE_NAME
        if not path.is_file():
            raise FileNotFoundError(_nothing_here(Path(folder)))
        try:
            tree = read_json(path)
            version = tree["schema_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise ManifestError(f"{path} is damaged ({error!r}): export again.") from None
        if version != SCHEMA_VERSION:
            newer = isinstance(version, int) and version > SCHEMA_VERSION
            remedy = "update ddscale here" if newer else "export again with this ddscale"
            raise ManifestError(
                f"{path} is of schema version {version!r}, this ddscale reads version {SCHEMA_VERSION}: {remedy}."
            )
        try:
            manifest = decode(cls, tree, "manifest")
            check_possible(manifest)
        except ValueError as error:
            raise ManifestError(
                f"{path} is damaged, or of a newer ddscale ({error}): export again, or update ddscale here."
            ) from None
        return manifest

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write manifest.json, atomically. Returns its path."""
        path = Path(folder) / FILE_NAME
        temporary = path.with_name(f".{FILE_NAME}.tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.write(
                json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
            )
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        return path

    def check_files(self, folder: str | os.PathLike[str], names: Iterable[str] | None = None) -> None:
        """Compare size and SHA-256 of every file, or of those named, with what was exported.

        Graphs are compared together with their weights: a manifest that names no weights, or others, is found out.
        Raises ManifestError naming each file that is missing or changed.
        """
        root = Path(folder)
        wanted = dict.fromkeys(sorted(self.files) if names is None else names)
        graphs = {name: graph for name, graph in self.graphs.items() if graph.file in wanted}
        wanted |= dict.fromkeys(file for graph in graphs.values() for file in _files_of(graph))
        problems = {name: said for name in wanted if (said := self._size_problem(root, name))}
        held: set[str] = set()
        for name, graph in graphs.items():
            files = _files_of(graph)
            if problems.keys() & {*files}:
                continue
            # Large: read once, unless something is wrong.
            if sha256_of(*(root / file for file in files)) == graph.sha256:
                held |= {*files}
            elif not (
                changed := {file: said for file in files if (said := self._content_problem(root, file))}
            ):
                problems[name] = f"{' with '.join(files)} is not what the manifest says of {name}"
            else:
                problems |= changed
        for name in wanted:
            if name not in held and name not in problems and (said := self._content_problem(root, name)):
                problems[name] = said
        if problems:
            raise ManifestError(
                f"{folder} is not what was exported: {'; '.join(problems.values())}. Copy the folder again, or "
                "export again."
            )

    def _size_problem(self, root: Path, name: str) -> str | None:
        if not (root / name).is_file():
            return f"{name} is missing"
        if (size := (root / name).stat().st_size) != self.files[name].bytes:
            return f"{name} has {size} bytes instead of {self.files[name].bytes}"
        return None

    def _content_problem(self, root: Path, name: str) -> str | None:
        sha256, expected = sha256_of(root / name), self.files[name].sha256
        return (
            None
            if sha256 == expected
            else f"{name} has SHA-256 {sha256[:12]}... instead of {expected[:12]}..."
        )

    def graph(self, name: str) -> GraphInfo:
        """A graph by name; ManifestError naming those there are."""
        if name not in self.graphs:
            raise ManifestError(f"this export has no {name}: it has {', '.join(sorted(self.graphs))}.")
        return self.graphs[name]

    def schedule(self, name: str, steps: int) -> ScheduleInfo:
        """The table of a sampler and number of steps; ManifestError naming those there are."""
        for schedule in self.schedules:
            if (schedule.name, schedule.steps) == (name, steps):
                return schedule
        there = ", ".join(f"{s.name} with {s.steps} steps" for s in self.schedules) or "none"
        raise ManifestError(
            f"this export has no table for {name} with {steps} steps; it has {there}. Use one of these, or add "
            f"{{name: {name}, steps: {steps}}} to the recipe's `schedules` and export again."
        )

    def batches(self, graph: str, profile: Profile) -> tuple[int, int, int]:
        """Smallest, likeliest and largest batch of a graph in a profile: with guidance the U-Net sees all twice."""
        if graph == UNET:
            return profile.min, 2 * profile.opt, 2 * profile.max
        return profile.min, profile.opt, profile.max


def sha256_of(*paths: Path) -> str:
    """SHA-256 of the files' contents, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(2**22):
                digest.update(block)
    return digest.hexdigest()


def _files_of(graph: GraphInfo) -> list[str]:
    return [graph.file] if graph.data_file is None else [graph.file, graph.data_file]


def listed_files(folder: Path) -> list[str] | None:
    """Names of an exported folder's files, whatever version of ddscale wrote it; None when it is none.

    It is named as its precision; other folders with a manifest.json, such as EEG stores, are not.
    """
    try:
        tree = read_json(folder / FILE_NAME)
        if tree["precision"] == folder.name and isinstance(tree["graphs"], dict):
            return list(map(str, tree["files"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _nothing_here(folder: Path) -> str:
    below = sorted(path.parent.name for path in folder.glob(f"*/{FILE_NAME}"))
    if below:
        return f"no {FILE_NAME} in {folder}; its exports are {', '.join(below)}: give {folder / below[0]}."
    return f"no {FILE_NAME} in {folder}: give a folder that export/to_onnx.py has written."
