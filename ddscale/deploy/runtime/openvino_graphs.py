"""OpenVINO behind the runtime's interface: reads the same ONNX files, often faster on Intel CPUs."""

from __future__ import annotations

import contextlib
import functools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ddscale.deploy.manifest import GraphInfo
from ddscale.deploy.runtime.graphs import Arrays, ProviderError, Runner, check_interface


class OpenVINOGraph:
    """A graph compiled by OpenVINO for the CPU, in float32."""

    most_pictures: int | None = None

    def __init__(self, path: Path, info: GraphInfo, threads: int = 0) -> None:
        """Raises ProviderError when OpenVINO is not installed or cannot compile the graph."""
        try:
            import openvino
        except ImportError:
            raise ProviderError(
                "openvino is not installed: pip install openvino, or use provider cpu."
            ) from None
        # Without the hint OpenVINO computes in bfloat16 where the CPU has it, and pictures differ from machine to
        # machine.
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            with _plain_files(path, info) as plain:
                self._model = _core(openvino).compile_model(str(plain), "CPU", settings)
        except Exception as error:
            # OpenVINO raises RuntimeError and its own kinds, with a trace over many lines.
            reason = " ".join(str(error).split())[:300]
            raise ProviderError(f"openvino cannot compile {path}: {reason}. Use provider cpu.") from None
        check_interface(
            path,
            info,
            _names(self._model.inputs, {tensor.name for tensor in info.inputs}),
            _names(self._model.outputs, {tensor.name for tensor in info.outputs}),
        )
        self._request = self._model.create_infer_request()
        self._outputs = [tensor.name for tensor in info.outputs]

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        contiguous = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        # Copied: the next run writes into the same memory.
        self._request.infer(contiguous, share_inputs=True)
        return {name: self._request.get_tensor(name).data.copy() for name in self._outputs}

    def holding(self, constants: Arrays) -> Runner:
        return lambda inputs: self.run({**constants, **inputs})


@functools.cache
def _core(openvino: Any) -> Any:
    """One for the process, and never given back.

    Each that compiles for the CPU sets a stack for signal handlers, and when it goes puts back the one before, even
    if that went first: then the next signal that Python handles, a Ctrl-C or SIGTERM, is a segmentation fault.
    """
    return openvino.Core()


@contextlib.contextmanager
def _plain_files(path: Path, info: GraphInfo) -> Iterator[Path]:
    """The graph's path, or that of one beside its weights, where they are symbolic links into another folder.

    OpenVINO refuses weights elsewhere, which is how download caches keep them. What it has mapped stays readable.
    """
    files = [path, *([] if info.data_file is None else [path.with_name(info.data_file)])]
    if not any(file.is_symlink() for file in files):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        for file in files:
            shutil.copyfile(file, Path(folder) / file.name)
        yield Path(folder) / path.name


def _names(ports: Any, stated: set[str]) -> set[str]:
    """What the graph calls its tensors: of several names that one has, those the manifest knows it by."""
    found: set[str] = set()
    for port in ports:
        names = set(port.names)
        found |= (names & stated) or names
    return found
