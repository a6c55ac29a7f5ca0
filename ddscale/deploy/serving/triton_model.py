"""The model `eeg_to_image` of a Triton repository (Python backend): the runtime, its graphs being Triton's models.

Written into the repository by ddscale.deploy.serving.triton, together with what it imports of ddscale.
"""

# ruff: noqa: E402 (what is imported lies beside this file)
from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(_HERE))

import numpy as np
import triton_python_backend_utils as pb_utils

from ddscale.deploy.manifest import DECODER, ENCODER, TINY_DECODER, UNET, GraphInfo, Manifest
from ddscale.deploy.runtime.generation import EEGToImage
from ddscale.deploy.runtime.graphs import Graph


class _CancelledError(Exception):
    """Nobody waits for the pictures any more."""


class TritonModel:
    """A model of the same server, behind the runtime's interface for graphs."""

    def __init__(self, name: str, info: GraphInfo, most_pictures: int) -> None:
        self._name, self._outputs = name, [tensor.name for tensor in info.outputs]
        # Triton has one dimension for a number of each sample, and takes it out before the graph.
        self._numbers = {tensor.name for tensor in info.inputs if len(tensor.shape) == 1}
        self.most_pictures: int | None = most_pictures

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Raises TritonModelException with the server's message when it refuses."""
        tensors = [
            pb_utils.Tensor(name, np.ascontiguousarray(array[:, None] if name in self._numbers else array))
            for name, array in inputs.items()
        ]
        response = pb_utils.InferenceRequest(
            model_name=self._name,
            requested_output_names=self._outputs,
            inputs=tensors,
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU),
        ).exec()
        if response.has_error():
            raise pb_utils.TritonModelException(f"{self._name}: {response.error().message()}")
        return {name: pb_utils.get_output_tensor_by_name(response, name).as_numpy() for name in self._outputs}

    def holding(self, constants: Mapping[str, np.ndarray]) -> Any:
        return lambda inputs: self.run({**constants, **inputs})


class TritonPythonModel:
    """What Triton's Python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load tables and constants. Raises TritonModelException when a graph is not the one that was exported."""
        export = _HERE / "export"
        _check_graphs(_HERE.parent.parent, export / "checksums.json")
        manifest = Manifest.load(export)
        parameters = json.loads(args["model_config"])["parameters"]
        decoder = parameters["decoder"]["string_value"]
        self._max_pictures = int(parameters["max_pictures"]["string_value"])
        names = (ENCODER, UNET, TINY_DECODER if decoder == "tiny" else DECODER)
        most = max(profile.max for profile in manifest.profiles)
        graphs: dict[str, Graph] = {name: TritonModel(name, manifest.graph(name), most) for name in names}
        self._model = EEGToImage(export, manifest, graphs, "triton")

    def execute(self, requests: list[Any]) -> list[Any]:
        """Draw for each request; what is wrong with one is its own answer."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        def check(done: int, of: int) -> None:
            if request.is_cancelled():
                raise _CancelledError("cancelled by the client")

        try:
            eeg = pb_utils.get_input_tensor_by_name(request, "eeg").as_numpy()
            settings = _settings(request)
            if (asked := len(eeg) * settings.get("samples", 1)) > self._max_pictures:
                raise ValueError(
                    f"{asked} pictures in one request, at most {self._max_pictures} are drawn: send several requests, "
                    "or raise max_pictures in config.pbtxt."
                )
            pictures = self._model.generate(eeg, **settings, on_step=check)
        except (ValueError, _CancelledError, pb_utils.TritonModelException) as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("images", pictures)])


def _check_graphs(repository: Path, checksums: Path) -> None:
    """Triton loads the graphs itself, and would run changed ones. Those in a repository that is not on this machine's
    disk are not seen from here."""
    for name, expected in json.loads(checksums.read_text(encoding="utf-8")).items():
        if not (repository / name).is_file():
            pb_utils.Logger.log_warn(
                f"{name} is not beside {_HERE.parent.name}: its checksum is not compared."
            )
            continue
        with (repository / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                raise pb_utils.TritonModelException(
                    f"{repository / name} is not what was exported: write the repository again."
                )


def _settings(request: Any) -> dict[str, Any]:
    """The optional inputs that a request has."""
    kinds: dict[str, Callable[[Any], Any]] = {
        "steps": int,
        "scheduler": _text,
        "guidance": float,
        "seed": int,
        "samples": int,
        "sfreq": float,
        "unit": _text,
    }
    settings = {}
    for name, kind in kinds.items():
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        if tensor is not None:
            settings[name] = kind(tensor.as_numpy().reshape(-1)[0])
    return settings


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
