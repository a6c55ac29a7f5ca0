"""What the runtime asks of an inference engine, and ONNX Runtime behind it.

An engine that silently falls back to the CPU is an error here: it costs a factor of a hundred, and nobody notices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np

from ddscale.deploy.manifest import GraphInfo

Arrays = Mapping[str, np.ndarray]
Runner = Callable[[Arrays], dict[str, np.ndarray]]
Provider = Literal["cpu", "cuda", "tensorrt", "openvino"]
PROVIDERS: tuple[str, ...] = get_args(Provider)

# Parts of the names of operators, fused ones too, that arithmetic on shapes never needs.
_HEAVY = (
    "Conv",
    "MatMul",
    "Gemm",
    "Attention",
    "Softmax",
    "Norm",
    "Resize",
    "Einsum",
    "Gelu",
    "Sigmoid",
    "Tanh",
)
_ONNX_RUNTIME = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class ProviderError(ValueError):
    """An inference engine that is not there, or will not run this graph; the message says what to install or do."""


class Graph(Protocol):
    """One network, loaded and ready; for one thread at a time."""

    most_pictures: int | None
    """Pictures that it can take at once; None when there is no such limit."""

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Outputs by name, float32, in memory of the host."""

    def holding(self, constants: Arrays) -> Runner:
        """The network with some inputs given once for many runs, kept where it computes."""


def open_graph(folder: Path, info: GraphInfo, provider: str, threads: int = 0) -> Graph:
    """A graph of an exported folder on an engine.

    threads: of the CPU; 0 leaves it to the engine. Raises ProviderError when the engine is not there or refuses,
    EngineError (a ManifestError) when there is no TensorRT engine of it that may run here.
    """
    if provider == "openvino":
        from ddscale.deploy.runtime.openvino_graphs import OpenVINOGraph

        return OpenVINOGraph(folder / info.file, info, threads)
    if provider == "tensorrt":
        from ddscale.deploy.runtime.tensorrt_engines import TensorRTGraph

        return TensorRTGraph(folder, info)
    if provider not in _ONNX_RUNTIME:
        raise ProviderError(f"provider {provider!r} is not known: use one of {', '.join(PROVIDERS)}.")
    return OnnxRuntimeGraph(folder / info.file, info, _ONNX_RUNTIME[provider], threads)


def check_interface(path: Path, info: GraphInfo, inputs: set[str], outputs: set[str]) -> None:
    """Raises ProviderError when a loaded graph has other inputs or outputs than its manifest says."""
    for kind, found, stated in (("inputs", inputs, info.inputs), ("outputs", outputs, info.outputs)):
        if found != {tensor.name for tensor in stated}:
            raise ProviderError(
                f"{path} has the {kind} {', '.join(sorted(found))}, its manifest says "
                f"{', '.join(sorted(tensor.name for tensor in stated))}: export again."
            )


class OnnxRuntimeGraph:
    """A graph in ONNX Runtime, on the CPU or, with inputs kept on the device, on a CUDA GPU."""

    most_pictures: int | None = None

    def __init__(self, path: Path, info: GraphInfo, provider: str, threads: int = 0) -> None:
        """Raises ProviderError when ONNX Runtime, its provider or a readable graph is missing."""
        try:
            import onnxruntime
        except ImportError:
            raise ProviderError("onnxruntime is not installed: pip install onnxruntime.") from None
        there = onnxruntime.get_available_providers()
        if provider not in there:
            raise ProviderError(
                f"onnxruntime {onnxruntime.__version__} here has no {provider} (it has {', '.join(there)}): install "
                "onnxruntime-gpu in place of onnxruntime, on a machine with an NVIDIA GPU."
            )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        # Read below; versions before 1.24 do not know it and ignore it.
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        self._runtime = onnxruntime
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
        except Exception as error:
            # ONNX Runtime's exceptions have no common class below Exception.
            raise ProviderError(
                f"onnxruntime cannot load {path}: {_first_line(error)} Export again."
            ) from None
        # Asked for CUDA, ONNX Runtime gives the CPU and says nothing when a library is missing.
        if (got := self._session.get_providers()[0]) != provider:
            raise ProviderError(
                f"onnxruntime was asked for {provider} and gives {got}: CUDA or cuDNN of the version that "
                f"onnxruntime-gpu {onnxruntime.__version__} needs is not there. Install them, or use provider cpu."
            )
        if provider != _ONNX_RUNTIME["cpu"] and (found := heavy_on_cpu(self._session)):
            raise ProviderError(
                f"{path} on {provider}: onnxruntime {onnxruntime.__version__} would run {', '.join(found)} on the CPU, "
                "for it has no kernel of them there. Use another version of onnxruntime-gpu, another precision or "
                "another provider."
            )
        check_interface(
            path,
            info,
            {tensor.name for tensor in self._session.get_inputs()},
            {tensor.name for tensor in self._session.get_outputs()},
        )
        self._outputs = [tensor.name for tensor in info.outputs]
        self._device = None if provider == _ONNX_RUNTIME["cpu"] else "cuda"

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs)), strict=True))

    def holding(self, constants: Arrays) -> Runner:
        if (device := self._device) is None:
            return lambda inputs: self.run({**constants, **inputs})
        kept = {
            name: self._runtime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), device, 0)
            for name, array in constants.items()
        }
        binding: Any = self._session.io_binding()
        for name, value in kept.items():
            binding.bind_ortvalue_input(name, value)

        def run(inputs: Arrays) -> dict[str, np.ndarray]:
            for name, array in inputs.items():
                binding.bind_cpu_input(name, np.ascontiguousarray(array))
            for name in self._outputs:
                binding.bind_output(name)
            self._session.run_with_iobinding(binding)
            return dict(zip(self._outputs, binding.copy_outputs_to_cpu(), strict=True))

        return run


def heavy_on_cpu(session: Any) -> list[str]:
    """Kinds of nodes with real work that a session has put on the CPU; nothing where this cannot be asked.

    `session.disable_cpu_ep_fallback` would refuse too much: ONNX Runtime computes shapes on the CPU on purpose.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return []
    on_cpu = {
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == _ONNX_RUNTIME["cpu"]
        for node in part.get_nodes()
    }
    return sorted(kind for kind in on_cpu if any(word in kind for word in _HEAVY))


def _first_line(error: Exception) -> str:
    line = str(error).strip().splitlines()[0][:300]
    return line if line.endswith(".") else f"{line}."
