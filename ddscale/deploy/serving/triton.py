"""A Triton model repository from an exported folder: each graph a model with dynamic batching, and one that draws.

REPOSITORY/
  eeg_encoder/ unet/ vae_decoder/     config.pbtxt, 1/ with the graph, or with its TensorRT engine
  eeg_to_image/                       config.pbtxt, 1/model.py (Python backend): EEG in, pictures out
    1/export/                         manifest, tables, constants
    1/ddscale/                        the runtime's modules, so that the server needs NumPy alone

tritonserver --model-repository REPOSITORY
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from ddscale.deploy.engines import FOLDER, Device, EngineError, EngineRecord, mismatches
from ddscale.deploy.manifest import (
    DECODER,
    ENCODER,
    TINY_DECODER,
    UNET,
    GraphInfo,
    Manifest,
    ManifestError,
    TensorInfo,
    sha256_of,
)

PIPELINE = "eeg_to_image"
CHECKSUMS = "checksums.json"
MAX_PICTURES = 64
"""Windows times samples that one request may ask for."""
_PACKAGE = Path(__file__).resolve().parents[2]
# What the runtime imports of ddscale; a test runs the copy.
_MODULES = (
    "__init__.py",
    "deploy/__init__.py",
    "deploy/manifest.py",
    "deploy/manifest_reading.py",
    "deploy/runtime/__init__.py",
    "deploy/runtime/folder.py",
    "deploy/runtime/generation.py",
    "deploy/runtime/graphs.py",
    "deploy/runtime/noise.py",
    "deploy/runtime/sampler.py",
    "deploy/runtime/windows.py",
    "signal/__init__.py",
    "signal/units.py",
)
_TYPES = {"float32": "TYPE_FP32", "int64": "TYPE_INT64", "float16": "TYPE_FP16"}
_WAIT_US = 2000
# Requests drawn at once: their steps meet in the U-Net's batches.
_DRAWN_AT_ONCE = 4


def write_repository(
    folder: str | os.PathLike[str],
    repository: str | os.PathLike[str],
    provider: str = "cpu",
    decoder: str = "full",
) -> Path:
    """Write the repository, graphs and all, so that it can be moved to the server.

    provider: cpu or cuda (Triton's onnxruntime backend), or tensorrt (its tensorrt backend, on the engines of
    export/to_tensorrt.py --flavour datacentre). Returns the repository's path.
    Raises ManifestError when the folder is damaged or has no engines, FileExistsError when the repository is there.
    """
    export, target = Path(folder), Path(repository)
    manifest = Manifest.load(export)
    if manifest.kind != "pipeline" or manifest.latent is None or manifest.constants is None:
        raise ManifestError(f"{export} is the export of an encoder alone and draws no pictures.")
    manifest.check_files(export)
    names = (ENCODER, UNET, {"full": DECODER, "tiny": TINY_DECODER}[decoder])
    graphs = {name: manifest.graph(name) for name in names}
    engines = _engines(export, graphs) if provider == "tensorrt" else None
    if provider not in ("cpu", "cuda", "tensorrt"):
        raise ValueError(
            f"provider {provider!r} has no backend in Triton's images: use cpu, cuda or tensorrt."
        )
    if target.exists():
        raise FileExistsError(f"{target} is there already: remove it, or give another path.")
    building = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    for name, info in graphs.items():
        version = building / name / "1"
        version.mkdir(parents=True)
        if engines is None:
            for file in (info.file, info.data_file):
                if file is not None:
                    _copy(export / file, version / file)
            config = _graph_config(name, info, manifest, info.file, "onnxruntime", provider)
        else:
            engine_folder, record = engines
            file = record.engines[name].file
            _copy(engine_folder / file, version / file)
            config = _graph_config(name, info, manifest, file, "tensorrt", "cuda", len(record.profiles))
        (building / name / "config.pbtxt").write_text(config, encoding="utf-8")
    checksums = {
        path.relative_to(building).as_posix(): sha256_of(path)
        for name in names
        for path in sorted((building / name / "1").iterdir())
    }
    _write_pipeline(building / PIPELINE, export, manifest, checksums)
    building.replace(target)
    return target


def _engines(export: Path, graphs: dict[str, GraphInfo]) -> tuple[Path, EngineRecord]:
    there = sorted((export / FOLDER).glob("datacentre-*"))
    if len(there) != 1:
        found = ", ".join(path.name for path in there) or "none"
        raise EngineError(
            f"{export} needs engines of datacentre TensorRT for one GPU, it has {found}: build them with "
            f"python export/to_tensorrt.py {export} --flavour datacentre, or remove those not meant."
        )
    record = EngineRecord.load(there[0])
    own = Device(record.flavour, record.version, record.sm, record.system)
    if problems := mismatches(record, own, graphs):
        raise EngineError(
            f"the engines in {there[0]} cannot be used: {'; '.join(problems)}. Build them again."
        )
    return there[0], record


def _graph_config(
    name: str,
    info: GraphInfo,
    manifest: Manifest,
    file: str,
    backend: str,
    provider: str,
    engine_profiles: int = 0,
) -> str:
    batches = [manifest.batches(name, profile) for profile in manifest.profiles]
    preferred = sorted({likeliest for _, likeliest, _ in batches})
    profiles = f" profile: [ {_quoted(range(engine_profiles))} ]" if engine_profiles else ""
    kind = "KIND_CPU" if provider == "cpu" else "KIND_GPU"
    return "\n".join(
        [
            f'name: "{name}"',
            f'backend: "{backend}"',
            f'default_model_filename: "{file}"',
            f"max_batch_size: {max(most for _, _, most in batches)}",
            *(f"input [ {_tensor(tensor)} ]" for tensor in info.inputs),
            *(f"output [ {_tensor(tensor)} ]" for tensor in info.outputs),
            f"instance_group [ {{ count: 1 kind: {kind}{profiles} }} ]",
            f"dynamic_batching {{ preferred_batch_size: [ {', '.join(map(str, preferred))} ] "
            f"max_queue_delay_microseconds: {_WAIT_US} }}",
            "",
        ]
    )


def _tensor(tensor: TensorInfo) -> str:
    # The batch is Triton's own and not among the dimensions. A number for each sample is one dimension of 1, which is
    # taken out again before the graph sees it.
    sizes = [int(size) for size in tensor.shape[1:]]
    dims = f"dims: [ {', '.join(map(str, sizes or [1]))} ]"
    reshape = "" if sizes else " reshape { shape: [ ] }"
    return f'{{ name: "{tensor.name}" data_type: {_TYPES[tensor.dtype]} {dims}{reshape} }}'


def _write_pipeline(folder: Path, export: Path, manifest: Manifest, checksums: dict[str, str]) -> None:
    assert manifest.latent is not None, "checked by write_repository"
    assert manifest.constants is not None, "checked by write_repository"
    version = folder / "1"
    for module in _MODULES:
        _copy(_PACKAGE / module, version / "ddscale" / module)
    _copy(Path(__file__).with_name("triton_model.py"), version / "model.py")
    for file in (manifest.constants, *(schedule.file for schedule in manifest.schedules)):
        _copy(export / file, version / "export" / file)
    manifest.save(version / "export")
    (version / "export" / CHECKSUMS).write_text(json.dumps(checksums, indent=2) + "\n", encoding="utf-8")
    latent = manifest.latent
    height, width = latent.height * latent.downsampling, latent.width * latent.downsampling
    decoder = "tiny" if (folder.parent / TINY_DECODER).exists() else "full"
    optional = [
        ("steps", "TYPE_INT32"),
        ("scheduler", "TYPE_STRING"),
        ("guidance", "TYPE_FP32"),
        ("seed", "TYPE_INT64"),
        ("samples", "TYPE_INT32"),
        ("sfreq", "TYPE_FP32"),
        ("unit", "TYPE_STRING"),
    ]
    config = [
        f'name: "{PIPELINE}"',
        'backend: "python"',
        "max_batch_size: 0",
        f'input [ {{ name: "eeg" data_type: TYPE_FP32 dims: [ -1, {manifest.channels}, {manifest.samples} ] }} ]',
        *(
            f'input [ {{ name: "{name}" data_type: {kind} dims: [ 1 ] optional: true }} ]'
            for name, kind in optional
        ),
        f'output [ {{ name: "images" data_type: TYPE_UINT8 dims: [ -1, {height}, {width}, 3 ] }} ]',
        f"instance_group [ {{ count: {_DRAWN_AT_ONCE} kind: KIND_CPU }} ]",
        f'parameters {{ key: "decoder" value: {{ string_value: "{decoder}" }} }}',
        f'parameters {{ key: "max_pictures" value: {{ string_value: "{MAX_PICTURES}" }} }}',
        "",
    ]
    (folder / "config.pbtxt").write_text("\n".join(config), encoding="utf-8")


def _quoted(numbers: range) -> str:
    return ", ".join(f'"{number}"' for number in numbers)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
