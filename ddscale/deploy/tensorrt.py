"""TensorRT engines from an exported folder: TensorRT-RTX on any machine, datacentre TensorRT on a host with its GPU.

Networks are strongly typed: the graphs say where half precision and integers are, no builder flag does. Both
libraries have nearly one interface; what differs is in Library. The datacentre side has not been run by the
project's own tests, which have no GPU.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ddscale.deploy.engines import (
    FOLDER,
    SYSTEM,
    EngineInfo,
    EngineRecord,
    Flavour,
    folder_name,
    sm_named,
)
from ddscale.deploy.manifest import GraphInfo, Manifest, sha256_of
from ddscale.deploy.publishing import published
from ddscale.deploy.runtime.tensorrt_engines import compute_capability, optional

_TIMING_CACHE = "timing.cache"
Batches = tuple[int, int, int]


class BuildError(ValueError):
    """TensorRT refused a graph or could not build it; the message says what it said."""


@dataclass(frozen=True)
class Library:
    """One of the two libraries."""

    flavour: Flavour
    module: Any

    @property
    def version(self) -> str:
        return str(self.module.__version__)

    def aim(self, config: Any, sm: str) -> None:
        """Choose the GPU. Raises BuildError for one that the library cannot build for here."""
        if self.flavour == "datacentre":
            if (here := _required_gpu()) != sm:
                raise BuildError(
                    f"datacentre TensorRT builds for the GPU it runs on ({here}), not for {sm}: run this there."
                )
            return
        known = {name for name in dir(self.module.ComputeCapability) if name.startswith("SM")}
        if sm.upper() not in known:
            advice = " Use --flavour datacentre on such a GPU." if sm in ("sm90", "sm100") else ""
            raise BuildError(
                f"TensorRT-RTX {self.version} does not build for {sm}, but for "
                f"{', '.join(sorted(known)).lower()}.{advice}"
            )
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(self.module.ComputeCapability, sm.upper()), 0)

    def load_timings(self, config: Any, path: Path) -> None:
        """Reuse measured kernels. TensorRT-RTX measures none when it builds."""
        if self.flavour == "datacentre":
            before = path.read_bytes() if path.is_file() else b""
            config.set_timing_cache(config.create_timing_cache(before), ignore_mismatch=False)

    def save_timings(self, config: Any, path: Path) -> None:
        if self.flavour == "datacentre" and (cache := config.get_timing_cache()) is not None:
            path.write_bytes(memoryview(cache.serialize()))


def build_engines(
    export: str | os.PathLike[str],
    flavour: Flavour = "rtx",
    target: str = "ada",
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Build an engine for each graph of an exported folder, with the manifest's profiles.

    target: a family of GPUs, a compute capability, or `here`. Replaces earlier engines of this flavour and target.
    Returns the folder of engines. Raises ManifestError when the export is damaged, BuildError when TensorRT is not
    there or refuses; earlier engines are then as they were.
    """
    root = Path(export)
    manifest = Manifest.load(root)
    manifest.check_files(root)
    built_by = library(flavour)
    sm = _required_gpu() if target == "here" else sm_named(target)
    name = folder_name(flavour, sm)
    folder = root / FOLDER / name
    with published(folder) as new:
        timings = folder / _TIMING_CACHE
        if timings.is_file():
            shutil.copy(timings, new)
        engines = {}
        for graph in manifest.graphs:
            say(f"{graph}: building for {name}")
            engines[graph] = _build_one(built_by, manifest, root, graph, sm, new)
        record = EngineRecord(
            flavour, built_by.version, sm, SYSTEM, manifest.precision, manifest.profiles, engines
        )
        record.save(new)
    return folder


def _build_one(
    library: Library, manifest: Manifest, root: Path, graph: str, sm: str, folder: Path
) -> EngineInfo:
    info = manifest.graph(graph)
    began = time.perf_counter()
    profiles = [manifest.batches(graph, profile) for profile in manifest.profiles]
    engine = build(library, root / info.file, sm, profile_shapes(info, profiles), folder / _TIMING_CACHE)
    path = folder / f"{graph}.engine"
    path.write_bytes(memoryview(engine))
    return EngineInfo(path.name, sha256_of(path), info.sha256, round(time.perf_counter() - began, 1))


def profile_shapes(info: GraphInfo, profiles: Sequence[Batches]) -> list[dict[str, list[tuple[int, ...]]]]:
    """For each profile: input -> smallest, likeliest and largest shape."""
    return [
        {
            tensor.name: [
                tuple(batch if isinstance(size, str) else size for size in tensor.shape) for batch in of
            ]
            for tensor in info.inputs
        }
        for of in profiles
    ]


def build(
    library: Library,
    path: Path,
    sm: str,
    profiles: Sequence[Mapping[str, Sequence[tuple[int, ...]]]],
    timings: Path,
) -> Any:
    """The serialised engine of one graph, a buffer. Raises BuildError with what TensorRT said."""
    trt = library.module
    heard: list[str] = []
    logger = _listener(trt, heard)
    builder = trt.Builder(logger)
    # TensorRT 10 has to be told; later ones know nothing else.
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        said = [_of_node(parser.get_error(i)) for i in range(parser.num_errors)]
        raise BuildError(_explain(library, path, "cannot read", said or heard))
    config = builder.create_builder_config()
    library.aim(config, sm)
    library.load_timings(config, timings)
    for shapes in profiles:
        profile = builder.create_optimization_profile()
        for name, (least, likeliest, most) in shapes.items():
            profile.set_shape(name, least, likeliest, most)
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise BuildError(_explain(library, path, "cannot build", heard))
    library.save_timings(config, timings)
    # Given back before the buffer is read, network and parser would take it with them.
    del parser, network
    return engine


def _of_node(error: Any) -> str:
    return f"{error.node_operator()} ({error.node_name() or 'without a name'}): {error.desc()}"


def _listener(trt: Any, heard: list[str]) -> Any:
    class Listener(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                heard.append(message)

    return Listener()


def _explain(library: Library, path: Path, cannot: str, heard: Sequence[str]) -> str:
    said = " | ".join(heard)[:800] or "nothing"
    remedy = "Export again with the `ddscale` that is installed; if that does not help, run this graph in ONNX Runtime."
    if "optimization profile" in said:
        remedy = "State `profiles` in the recipe, and export again."
    elif "ttention" in said:
        remedy = "Native attention needs fp16 and heads 40 to 256 wide: export again, which writes it out for others."
    return f"{library.flavour} TensorRT {library.version} {cannot} {path}: {said}. {remedy}"


def library(flavour: Flavour) -> Library:
    """The library of a flavour. Raises BuildError when it is not installed."""
    package, remedy = {
        "rtx": ("tensorrt_rtx", "pip install 'ddscale[tensorrt]'"),
        "datacentre": ("tensorrt", "use NVIDIA's TensorRT container, on a host with the GPU"),
    }[flavour]
    try:
        return Library(flavour, import_module(package))
    except ImportError as error:
        raise BuildError(f"{package} cannot be imported ({error}): {remedy}.") from None


def gpu_here() -> str | None:
    """Compute capability of this machine's first GPU, such as sm89; None when none can be seen.

    CUDA's own module is asked first: where engines are run there may be no PyTorch, or one for the CPU alone.
    """
    if (cuda := optional("cuda.bindings.runtime")) is not None:
        with contextlib.suppress(RuntimeError):
            return compute_capability(cuda)
    torch = optional("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"sm{major}{minor}"


def _required_gpu() -> str:
    if (sm := gpu_here()) is None:
        raise BuildError(
            "there is no CUDA GPU here. Engines of TensorRT-RTX are built without one: --flavour rtx --target ada."
        )
    return sm
