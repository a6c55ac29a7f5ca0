"""Everything that can run an export's graphs here: PyTorch on the weights they came from, and the runtime's engines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ddscale.deploy.graphs import Part, parts_of
from ddscale.deploy.manifest import TINY_DECODER, Manifest
from ddscale.deploy.recipe import ExportRecipe
from ddscale.deploy.runtime.graphs import PROVIDERS, Graph, Runner, open_graph
from ddscale.deploy.source import Source, hash_source, load_source

EAGER, COMPILED = "torch eager", "torch.compile"
# Of what PyTorch gives on the manifest's source, from what was exported from it.
_SAME_WEIGHTS = 0.02


@dataclass(frozen=True)
class Engine:
    """One way to run all graphs of an export."""

    name: str
    precision: str
    folder: Path
    graphs: dict[str, Graph]


class TorchGraph:
    """A module of PyTorch behind the runtime's interface."""

    most_pictures: int | None = None

    def __init__(self, part: Part, compiled: bool) -> None:
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        module: nn.Module = part.module.to(self._device)
        self._module = torch.compile(module, dynamic=False) if compiled else module
        self._inputs, self._outputs = part.inputs, part.outputs

    @torch.inference_mode()
    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        tensors = [
            torch.from_numpy(np.ascontiguousarray(inputs[name])).to(self._device) for name in self._inputs
        ]
        outputs = self._module(*tensors)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return {name: output.cpu().numpy() for name, output in zip(self._outputs, outputs, strict=True)}

    def holding(self, constants: Mapping[str, np.ndarray]) -> Runner:
        return lambda inputs: self.run({**constants, **inputs})


def load_weights(
    manifest: Manifest, conditioner: str | None = None, tiny_decoder: str | None = None
) -> Source:
    """The weights that an export was made from.

    conditioner, tiny_decoder: the folders that its recipe named besides. Raises FileNotFoundError when weights are
    not there, ValueError when a folder is not given or not the one that was exported.
    """
    beside = {"conditioner": conditioner, "tiny_decoder": tiny_decoder}
    for name, folder in beside.items():
        _check_beside(name, folder, manifest)
    given = {
        name: getattr(manifest, name) for name in ("channels", "sfreq", "normalisation", "preprocessing")
    }
    recipe = {"source": manifest.source.path, "out": "unused", "eeg": given, **beside}
    return load_source(ExportRecipe.model_validate(recipe))


def _check_beside(name: str, folder: str | None, manifest: Manifest) -> None:
    exported, option = manifest.source.beside.get(name), f"--{name.replace('_', '-')}"
    if folder is None:
        # Without the tiny decoder PyTorch still runs all the rest.
        if exported is not None and name == "conditioner":
            raise ValueError(
                f"{manifest.source.path} was exported with a {name} from another folder: give it with {option}."
            )
        return
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{option} {folder} is not there: give the folder that the recipe named.")
    if name == TINY_DECODER and TINY_DECODER not in manifest.graphs:
        raise ValueError(f"{option}: nothing was exported from one, leave it out.")
    # Exports made before the manifest had this are compared by what the weights give.
    if manifest.source.beside and hash_source(Path(folder)) != exported:
        raise ValueError(
            f"{option} {folder} is not what was exported: give the folder that the recipe named, or export again."
        )


def torch_engines(folder: Path, source: Source, compiled: bool) -> Iterator[Engine]:
    """PyTorch in fp32, eager and compiled."""
    parts = parts_of(source)
    for name, compile_ in ((EAGER, False), (COMPILED, True))[: 2 if compiled else 1]:
        yield Engine(name, "fp32", folder, {part.name: TorchGraph(part, compile_) for part in parts})


def runtime_engines(folder: Path, threads: int) -> Iterator[Engine | tuple[str, str]]:
    """Each of the runtime's providers on one precision, or (name, why it is left out)."""
    manifest = Manifest.load(folder)
    for provider in PROVIDERS:
        try:
            graphs = {
                name: open_graph(folder, info, provider, threads) for name, info in manifest.graphs.items()
            }
        except ValueError as error:
            yield f"{provider} {manifest.precision}", str(error)
            continue
        yield Engine(f"{provider} {manifest.precision}", manifest.precision, folder, graphs)


def check_same_weights(engine: Engine, manifest: Manifest, golden: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError when PyTorch on the source does not give the golden outputs: then it is another network."""
    for name, graph in engine.graphs.items():
        info = manifest.graphs[name]
        outputs = graph.run({tensor.name: golden[f"{name}/{tensor.name}"] for tensor in info.inputs})
        for tensor in info.outputs:
            expected = golden[f"{name}/{tensor.name}"]
            error = np.linalg.norm(outputs[tensor.name] - expected) / np.linalg.norm(expected)
            if not error <= _SAME_WEIGHTS:
                raise ValueError(
                    f"{manifest.source.path} is not what {name} was exported from: PyTorch's {tensor.name} differs by "
                    f"{error:.1%}. Export again, then compare."
                )
