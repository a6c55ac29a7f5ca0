"""A part as an ONNX file, and what the file then really is."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data
from torch import Tensor
from torch.nn import functional

from ddscale.deploy.graphs import Part
from ddscale.deploy.manifest import GraphInfo, Precision, TensorInfo, sha256_of

BATCH = "batch"


def write_graph(part: Part, path: Path, example: Mapping[str, Tensor], half: bool) -> None:
    """Export the part's module, in whatever precision its weights are, to `path` and `path`.data.

    example: inputs with a batch of at least 2, for torch.export takes 1 to be a constant.
    Raises ValueError when any dimension but the batch is dynamic, or the batch is not.
    """
    batch = torch.export.Dim(BATCH, min=1, max=63)
    with _quiet(), _torchs_own_linear(), torch.no_grad():
        program = torch.onnx.export(
            part.module,
            tuple(example[name] for name in part.inputs),
            dynamo=True,
            opset_version=part.opset(half),
            input_names=list(part.inputs),
            output_names=list(part.outputs),
            dynamic_shapes=tuple({0: batch} for _ in part.inputs),
            verbose=False,
        )
    assert program is not None, "the exporter that works through torch.export returns a program"
    for node in program.model.graph:
        # Stack traces of the exporting machine: many times the graph's own size, and nobody else's business.
        node.metadata_props.clear()
    program.save(str(path), external_data=True)
    check_dimensions(path)


def check_dimensions(path: Path) -> None:
    """Raise ValueError unless all inputs and outputs have a dynamic batch and nothing else that is dynamic.

    The exporter writes a fixed batch without a word when an operation on the way cannot do otherwise.
    """
    model = onnx.load(path, load_external_data=False)
    wrong = []
    for tensor in (*model.graph.input, *model.graph.output):
        first, *others = shape_of(tensor)
        if first != BATCH:
            wrong.append(f"{tensor.name} has the batch {first!r}")
        wrong += [
            f"{tensor.name} has a dimension {other!r}" for other in others if not isinstance(other, int)
        ]
    if wrong:
        raise ValueError(
            f"{path.name} would be wrong for other batches than the one it was traced with: {'; '.join(wrong)}. Some "
            "operation fixes the batch while tracing (chunk does, slices do not)."
        )


def describe_graph(path: Path, precision: Precision, largest_activation: float | None) -> GraphInfo:
    """What an ONNX file holds, read from the file."""
    model = onnx.load(path, load_external_data=False)
    data = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert len(data) <= 1, f"{path} has its weights in {len(data)} files"
    data_file = data.pop() if data else None
    files = [path, path.parent / data_file] if data_file else [path]
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return GraphInfo(
        file=path.name,
        data_file=data_file,
        sha256=sha256_of(*files),
        inputs=tuple(_tensor(t) for t in model.graph.input),
        outputs=tuple(_tensor(t) for t in model.graph.output),
        opset=opset,
        precision=precision,
        parameters=sum(int(np.prod(t.dims)) for t in model.graph.initializer),
        largest_activation=largest_activation,
    )


def weight_names(part: Part, path: Path) -> dict[str, str]:
    """Initialiser -> parameter of the part's module, ` (transposed)` added where it was turned.

    Most initialisers lose their names and some are turned, so they are found by their bytes. Constants of the graph
    are in no module, and are left out.
    """
    state = part.module.state_dict()
    known: dict[bytes, str] = {}
    for name, value in state.items():
        array = value.detach().cpu().numpy()
        known.setdefault(_digest(array), name)
        if array.ndim == 2:
            known.setdefault(_digest(array.T), f"{name} (transposed)")
    model = onnx.load(path, load_external_data=False)
    found = {}
    for tensor in model.graph.initializer:
        if tensor.name in state:
            found[tensor.name] = tensor.name
            continue
        # One at a time: a U-Net's weights need not be in memory twice.
        if uses_external_data(tensor):
            load_external_data_for_tensor(tensor, str(path.parent))
        if (source := known.get(_digest(numpy_helper.to_array(tensor)))) is not None:
            found[tensor.name] = source
        tensor.ClearField("raw_data")
    return found


def shape_of(tensor: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    """Sizes of a graph's input or output, names for dynamic ones."""
    return tuple(
        d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.type.tensor_type.shape.dim
    )


def _tensor(tensor: onnx.ValueInfoProto) -> TensorInfo:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.type.tensor_type.elem_type)
    return TensorInfo(tensor.name, str(dtype), shape_of(tensor))


def _digest(array: np.ndarray) -> bytes:
    digest = hashlib.blake2b(repr((array.shape, str(array.dtype))).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


@contextlib.contextmanager
def _torchs_own_linear() -> Iterator[None]:
    """The same graph whatever this process did before: DeepSpeed's ZeRO 3 puts a `linear` of its own into PyTorch,
    leaves it there for good, and it would be written as a product with turned weights under other names."""
    before = functional.linear
    functional.linear = torch._C._nn.linear
    try:
        yield
    finally:
        functional.linear = before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports that torchvision's operators are not there, which concerns nobody here."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = registration.level
    registration.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        registration.setLevel(before)
