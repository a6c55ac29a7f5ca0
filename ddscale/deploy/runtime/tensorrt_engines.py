"""TensorRT engines behind the runtime's interface: inputs that stay the same stay on the GPU.

Needs TensorRT or TensorRT-RTX, cuda-python and an NVIDIA GPU. What does not fit is refused before TensorRT sees it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from ddscale.deploy.engines import Device, EngineRecord, Flavour, check_batch, usable_engines
from ddscale.deploy.manifest import GraphInfo, Manifest
from ddscale.deploy.runtime.graphs import Arrays, ProviderError, Runner, check_interface

_PACKAGES: tuple[tuple[str, Flavour], ...] = (("tensorrt", "datacentre"), ("tensorrt_rtx", "rtx"))


def this_device(export: Path) -> tuple[Any, Any, Device]:
    """TensorRT's module, CUDA's runtime module, and the first GPU.

    Where both kinds of TensorRT are installed, the one that the export has engines for.
    Raises ProviderError when TensorRT, cuda-python or a GPU is missing.
    """
    installed = [(module, flavour) for name, flavour in _PACKAGES if (module := _optional(name)) is not None]
    if not installed:
        raise ProviderError(
            "TensorRT is not installed: pip install tensorrt-rtx, or use NVIDIA's TensorRT container."
        )
    cuda = _optional("cuda.bindings.runtime")
    if cuda is None:
        raise ProviderError("cuda-python is not installed: pip install cuda-python.")
    try:
        numbers = [
            _checked(cuda, cuda.cudaDeviceGetAttribute(attribute, 0))
            for attribute in (
                cuda.cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor,
                cuda.cudaDeviceAttr.cudaDevAttrComputeCapabilityMinor,
            )
        ]
    except RuntimeError as error:
        raise ProviderError(
            f"no NVIDIA GPU can be used here ({error}): use provider cpu or openvino."
        ) from None
    sm = f"sm{numbers[0]}{numbers[1]}"
    built = {path.name for path in (export / "engines").glob("*")}
    module, flavour = next((pair for pair in installed if f"{pair[1]}-{sm}" in built), installed[0])
    return module, cuda, Device(flavour, module.__version__, sm)


class TensorRTGraph:
    """One engine on the first GPU."""

    def __init__(self, export: Path, info: GraphInfo) -> None:
        """info: of the export's manifest. Raises ProviderError without TensorRT or a GPU, EngineError when the export
        has no engine of this graph that may run on it."""
        self._module, self._cuda, device = this_device(export)
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
        self._context = self._engine.create_execution_context()
        self._stream = self._call(self._cuda.cudaStreamCreate())
        self._manifest, self._name, self._info = manifest, name, info
        self._memory: dict[str, tuple[int, int]] = {}
        self.most_pictures: int | None = _most_pictures(self._record)

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        for name, array in inputs.items():
            self._upload(name, array)
        return self._execute(len(next(iter(inputs.values()))))

    def holding(self, constants: Arrays) -> Runner:
        for name, array in constants.items():
            self._upload(name, array)
        return self.run

    def _upload(self, name: str, array: np.ndarray) -> None:
        array = np.ascontiguousarray(array)
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        address = self._room(name, array.nbytes)
        # Of pageable memory: the copy has left the array when the call returns.
        self._call(self._cuda.cudaMemcpyAsync(address, array.ctypes.data, array.nbytes, kind, self._stream))

    def _execute(self, batch: int) -> dict[str, np.ndarray]:
        profile = check_batch(self._record, self._manifest, self._name, batch)
        context = self._context
        if context.active_optimization_profile != profile:
            context.set_optimization_profile_async(profile, self._stream)
        for tensor in self._info.inputs:
            context.set_input_shape(tensor.name, (batch, *tensor.shape[1:]))
            context.set_tensor_address(tensor.name, self._memory[tensor.name][0])
        outputs = {}
        for tensor in self._info.outputs:
            shape = (batch, *(int(size) for size in tensor.shape[1:]))
            outputs[tensor.name] = np.empty(shape, np.dtype(tensor.dtype))
            address = self._room(tensor.name, outputs[tensor.name].nbytes)
            context.set_tensor_address(tensor.name, address)
        if not context.execute_async_v3(self._stream):
            raise RuntimeError(f"TensorRT failed to run {self._name}; its messages above say why.")
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        for name, array in outputs.items():
            address, _ = self._memory[name]
            self._call(
                self._cuda.cudaMemcpyAsync(array.ctypes.data, address, array.nbytes, kind, self._stream)
            )
        self._call(self._cuda.cudaStreamSynchronize(self._stream))
        return outputs

    def _room(self, name: str, size: int) -> int:
        """Address of at least `size` bytes on the device that belong to a tensor."""
        address, there = self._memory.get(name, (0, 0))
        if there < size:
            if address:
                self._call(self._cuda.cudaFree(address))
            address = int(self._call(self._cuda.cudaMalloc(size)))
            self._memory[name] = (address, size)
        return address

    def _call(self, returned: tuple[Any, ...]) -> Any:
        return _checked(self._cuda, returned)


def _most_pictures(record: EngineRecord) -> int:
    return max(profile.max for profile in record.profiles)


def _checked(cuda: Any, returned: tuple[Any, ...]) -> Any:
    error, *values = returned
    if error != cuda.cudaError_t.cudaSuccess:
        raise RuntimeError(f"CUDA: {getattr(error, 'name', error)}")
    return values[0] if values else None


def _optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
