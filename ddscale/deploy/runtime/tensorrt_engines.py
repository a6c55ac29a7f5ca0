"""TensorRT engines behind the runtime's interface: inputs that stay the same stay on the GPU.

Needs TensorRT or TensorRT-RTX, cuda-python and an NVIDIA GPU. What does not fit is refused before TensorRT sees it.
"""

from __future__ import annotations

import importlib
import math
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ddscale.deploy.engines import Device, Flavour, check_batch, usable_engines
from ddscale.deploy.manifest import GraphInfo, Manifest
from ddscale.deploy.runtime.graphs import Arrays, ProviderError, Runner, check_interface

_LESS = "If the GPU's memory is short, free some, or build engines with profiles for fewer pictures."
_PACKAGES: tuple[tuple[str, Flavour], ...] = (("tensorrt", "datacentre"), ("tensorrt_rtx", "rtx"))


def this_device(export: Path) -> tuple[Any, Any, Device]:
    """TensorRT's module, CUDA's runtime module, and the first GPU.

    Where both kinds of TensorRT are installed, the one that the export has engines for.
    Raises ProviderError when TensorRT, cuda-python or a GPU is missing.
    """
    installed = [(module, flavour) for name, flavour in _PACKAGES if (module := optional(name)) is not None]
    if not installed:
        raise ProviderError(
            "TensorRT is not installed: pip install tensorrt-rtx, or use NVIDIA's TensorRT container."
        )
    cuda = optional("cuda.bindings.runtime")
    if cuda is None:
        raise ProviderError("cuda-python is not installed: pip install cuda-python.")
    try:
        sm = compute_capability(cuda)
    except RuntimeError as error:
        raise ProviderError(
            f"no NVIDIA GPU can be used here ({error}): use provider cpu or openvino."
        ) from None
    built = {path.name for path in (export / "engines").glob("*")}
    module, flavour = next((pair for pair in installed if f"{pair[1]}-{sm}" in built), installed[0])
    return module, cuda, Device(flavour, module.__version__, sm)


class TensorRTGraph:
    """One engine on the first GPU.

    Memory for the largest batch is taken when it is loaded, so addresses stay, and a captured CUDA graph stays right.
    Profiles of exactly one number of pictures run as CUDA graphs: TensorRT-RTX captures by itself, when its kernels
    are ready; for datacentre TensorRT it is done here.
    """

    def __init__(self, export: Path, info: GraphInfo) -> None:
        """info: of the export's manifest. Raises ProviderError without TensorRT, a GPU or enough memory on it,
        EngineError when the export has no engine of this graph that may run on it."""
        self._module, cuda, device = this_device(export)
        manifest = Manifest.load(export)
        name = next(name for name, graph in manifest.graphs.items() if graph.sha256 == info.sha256)
        folder, self._record = usable_engines(export, device, {name: info})
        path = folder / self._record.engines[name].file
        logger = self._module.Logger(self._module.Logger.ERROR)
        # Kept: engines are only valid as long as the runtime that made them.
        self._runtime = self._module.Runtime(logger)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise ProviderError(f"TensorRT cannot load {path}, its messages above say why.")
        tensors = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        is_input = {t: self._engine.get_tensor_mode(t) == self._module.TensorIOMode.INPUT for t in tensors}
        check_interface(
            path, info, {t for t in tensors if is_input[t]}, {t for t in tensors if not is_input[t]}
        )
        self._manifest, self._name, self._info = manifest, name, info
        self._ranges = [manifest.batches(name, profile) for profile in self._record.profiles]
        self._static = [profile.min == profile.max for profile in self._record.profiles]
        self.most_pictures: int | None = max(profile.max for profile in self._record.profiles)
        self._captures = any(self._static) and device.flavour == "datacentre"
        self._context = self._new_context(path, any(self._static) and device.flavour == "rtx")
        self._held = _OnDevice(cuda)
        # Not at the end of the process: the driver may be gone before.
        weakref.finalize(self, self._held.give_back).atexit = False
        largest = max(most for _, _, most in self._ranges)
        for tensor in (*info.inputs, *info.outputs):
            size = largest * math.prod(map(int, tensor.shape[1:])) * np.dtype(tensor.dtype).itemsize
            try:
                self._held.take(tensor.name, size)
            except RuntimeError as error:
                raise ProviderError(f"{path}: {size} bytes for {tensor.name}: {error}. {_LESS}") from None
        self._run_as: tuple[int, int] | None = None
        """Profile and batch that the context is set to and has been run with."""

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        for name, array in inputs.items():
            self._upload(name, array)
        return self._execute(len(next(iter(inputs.values()))))

    def holding(self, constants: Arrays) -> Runner:
        for name, array in constants.items():
            self._upload(name, array)
        return self.run

    def _new_context(self, path: Path, graphs_of_its_own: bool) -> Any:
        if graphs_of_its_own:
            config = self._engine.create_runtime_config()
            config.cuda_graph_strategy = self._module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = self._engine.create_execution_context(config)
        else:
            context = self._engine.create_execution_context()
        if context is None:
            raise ProviderError(f"TensorRT cannot prepare {path}, its messages above say why. {_LESS}")
        return context

    def _fitting(self, rows: int) -> int:
        """The batch that so many rows are run as: profiles may begin above it, or have gaps."""
        batch = min((max(rows, least) for least, _, most in self._ranges if rows <= most), default=rows)
        check_batch(self._record, self._manifest, self._name, batch)
        return batch

    def _upload(self, name: str, array: np.ndarray) -> None:
        missing = self._fitting(len(array)) - len(array)
        self._held.upload(name, np.concatenate([array, *[array[-1:]] * missing]) if missing else array)

    def _execute(self, rows: int) -> dict[str, np.ndarray]:
        self._launch(self._fitting(rows))
        outputs = {
            tensor.name: np.empty((rows, *map(int, tensor.shape[1:])), np.dtype(tensor.dtype))
            for tensor in self._info.outputs
        }
        self._held.download(outputs)
        return outputs

    def _launch(self, batch: int) -> None:
        profile = check_batch(self._record, self._manifest, self._name, batch)
        if self._run_as != (profile, batch):
            # A captured graph is only good for the context as it was: one at a time, for this batch.
            self._held.forget_captured()
            self._run_as = None
            context, stream = self._context, self._held.stream
            if context.active_optimization_profile != profile:
                context.set_optimization_profile_async(profile, stream)
            for tensor in self._info.inputs:
                context.set_input_shape(tensor.name, (batch, *tensor.shape[1:]))
            for name, (address, _) in self._held.memory.items():
                context.set_tensor_address(name, address)
            self._enqueue_alone()
            self._run_as = (profile, batch)
        elif not (self._captures and self._static[profile]):
            self._enqueue_alone()
        elif self._held.captured or self._held.capture(self._enqueue):
            self._held.launch_captured()
        else:
            self._captures = False
            warnings.warn(
                f"{self._name} cannot be captured as a CUDA graph, TensorRT's messages above say why: it runs "
                "without, a little slower.",
                stacklevel=2,
            )
            self._enqueue_alone()

    def _enqueue(self) -> bool:
        return bool(self._context.execute_async_v3(self._held.stream))

    def _enqueue_alone(self) -> None:
        if not self._enqueue():
            raise RuntimeError(f"TensorRT failed to run {self._name}; its messages above say why.")


class _OnDevice:
    """What one engine has on the GPU beside itself: a stream, memory of its tensors, and a captured graph."""

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda
        # One that does not wait for the default stream: others' work there would break a capture.
        self.stream = self._call(cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking))
        self.memory: dict[str, tuple[int, int]] = {}
        """Tensor -> address and size."""
        self.captured: Any = None

    def take(self, name: str, size: int) -> None:
        """Memory for a tensor. Raises RuntimeError when there is none."""
        self.memory[name] = (int(self._call(self._cuda.cudaMalloc(size))), size)

    def upload(self, name: str, array: np.ndarray) -> None:
        array = np.ascontiguousarray(array)
        address, size = self.memory[name]
        if array.nbytes > size:
            raise ValueError(
                f"{name} of shape {array.shape} and type {array.dtype} is larger than the manifest says."
            )
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        # Of pageable memory: the copy has left the array when the call returns.
        self._copy(address, array.ctypes.data, array.nbytes, kind)

    def download(self, arrays: dict[str, np.ndarray]) -> None:
        """Fill the arrays, after all that is under way."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        for name, array in arrays.items():
            self._copy(array.ctypes.data, self.memory[name][0], array.nbytes, kind)
        self._call(self._cuda.cudaStreamSynchronize(self.stream))

    def capture(self, enqueue: Callable[[], bool]) -> bool:
        """Note what is enqueued, without running it; False when something in it cannot be captured."""
        cuda = self._cuda
        # Thread-local: what other threads do meanwhile is no concern of this one.
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call(cuda.cudaStreamBeginCapture(self.stream, mode))
        try:
            enqueued = enqueue()
        finally:
            # Whatever happened: a stream left capturing runs nothing any more.
            ended, graph = cuda.cudaStreamEndCapture(self.stream)
        if ended == cuda.cudaError_t.cudaSuccess:
            if enqueued:
                made, executable = cuda.cudaGraphInstantiate(graph, 0)
                self.captured = executable if made == cuda.cudaError_t.cudaSuccess else None
            cuda.cudaGraphDestroy(graph)
        if self.captured is None:
            cuda.cudaGetLastError()  # or TensorRT takes it for one of its next run
        return self.captured is not None

    def launch_captured(self) -> None:
        self._call(self._cuda.cudaGraphLaunch(self.captured, self.stream))

    def forget_captured(self) -> None:
        if self.captured is not None:
            self._call(self._cuda.cudaGraphExecDestroy(self.captured))
            self.captured = None

    def give_back(self) -> None:
        if self.captured is not None:
            self._cuda.cudaGraphExecDestroy(self.captured)
        for address, _ in self.memory.values():
            self._cuda.cudaFree(address)
        self._cuda.cudaStreamDestroy(self.stream)

    def _copy(self, target: int, source: int, size: int, kind: Any) -> None:
        self._call(self._cuda.cudaMemcpyAsync(target, source, size, kind, self.stream))

    def _call(self, returned: tuple[Any, ...]) -> Any:
        return _checked(self._cuda, returned)


def compute_capability(cuda: Any) -> str:
    """The first GPU's, such as sm89, from CUDA's runtime module. Raises RuntimeError when there is none."""
    attributes = cuda.cudaDeviceAttr
    major, minor = (
        _checked(cuda, cuda.cudaDeviceGetAttribute(attribute, 0))
        for attribute in (
            attributes.cudaDevAttrComputeCapabilityMajor,
            attributes.cudaDevAttrComputeCapabilityMinor,
        )
    )
    return f"sm{major}{minor}"


def _checked(cuda: Any, returned: tuple[Any, ...]) -> Any:
    error, *values = returned
    if error != cuda.cudaError_t.cudaSuccess:
        raise RuntimeError(f"CUDA: {getattr(error, 'name', error)}")
    return values[0] if values else None


def optional(name: str) -> Any:
    """A module, or None where it cannot be imported."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
