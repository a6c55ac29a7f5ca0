"""Whether a network survives half precision: ONNX Runtime on a CPU cannot tell, for it computes in fp32 between.

So the largest number inside is looked for in fp32, and the network is run once in true fp16 by PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from ddscale.deploy.graphs import Normaliser, Part
from ddscale.deploy.manifest import UNET
from ddscale.deploy.parity import relative_l2
from ddscale.deploy.reference import EndToEnd, PartReference

ACTIVATION_LIMIT = 16_000.0
"""A quarter of fp16's largest number: what real data may still add to the audit's."""


@dataclass(frozen=True)
class Range:
    """The largest absolute value met, and what made it."""

    largest: float
    where: str


@dataclass(frozen=True)
class Half:
    """How a part does in true half precision."""

    range: Range
    error: float
    """Relative L2 of PyTorch in fp16 to PyTorch in fp32, of the worst row."""


def examine_half(part: Part, own: PartReference, drawn: EndToEnd | None) -> Half:
    """Look at a part on inputs that it meets in use: `own`, and those of a drawing from noise to picture.

    Leaves the part's module in fp16.
    """
    ranged, exact = _met_in_use(part, own, drawn)
    largest = audit_activations(part.module, [_tensors(one.inputs) for one in ranged])
    part.module.half()
    errors = []
    for one in exact:
        outputs = run_half(part.module, _tensors(one.inputs))
        for name, value in zip(part.outputs, outputs, strict=True):
            errors.append(relative_l2(value.numpy(), one.outputs[name]))
    return Half(largest, float(np.max(errors)))  # NaN if any is


def _met_in_use(
    part: Part, own: PartReference, drawn: EndToEnd | None
) -> tuple[list[PartReference], list[PartReference]]:
    """What to look for the largest number on, and what to compare with fp32."""
    first = own.rows(slice(0, 1))
    if drawn is not None and part.inputs == ("latent",):
        # What decoders are given in use; beside one of noise, for pictures take long.
        return [first, PartReference({"latent": drawn.final}, {})], [first]
    if drawn is not None and part.name == UNET:
        # Signal and noise are mixed as made-up rows never are. Large ones: no more rows than `own` has.
        return (
            (drawn.calls, drawn.calls[-1:]) if drawn.large else ([own, *drawn.calls], [first, *drawn.calls])
        )
    return [own], [first]


def _tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in arrays.items()}


@torch.no_grad()
def audit_activations(module: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> Range:
    """Run the module in fp32 and look at the result of every operation, those inside attention included.

    What the Normaliser does is left out: it stays in fp32. A value that is not finite counts as infinite.
    """
    watch = _Watch()
    with _told_where(module, watch), sdpa_kernel(SDPBackend.MATH):
        for inputs in batches:
            with watch:
                module(**inputs)
    return Range(watch.largest, watch.where)


class _Watch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.largest, self.where = 0.0, "nothing"
        self.path: list[str] = []
        self.paused = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.paused:
            return result
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.numel():
                low, high = tensor.aminmax()
                largest = max(abs(float(low)), abs(float(high)))
                # A NaN is smaller than nothing when compared.
                if not largest <= self.largest:
                    self.largest = largest if largest == largest else float("inf")
                    self.where = (
                        f"{func.overloadpacket.__name__} in {self.path[-1] if self.path else 'the graph'}"
                    )
        return result


@torch.no_grad()
def run_half(module: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Run a module whose weights are fp16: every result is fp16, and overflows as on a GPU.

    Products and convolutions are summed in fp32 before they are rounded, as tensor cores do; a CPU's own fp16
    convolutions take hundreds of times as long.
    """
    with _WideSums():
        outputs = module(**inputs)
    return outputs if isinstance(outputs, tuple) else (outputs,)


class _WideSums(TorchDispatchMode):
    _SUMMING = {
        torch.ops.aten.convolution.default,
        torch.ops.aten.addmm.default,
        torch.ops.aten.mm.default,
        torch.ops.aten.bmm.default,
        torch.ops.aten.baddbmm.default,
    }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in self._SUMMING or not any(_is_half(a) for a in args):
            return func(*args, **(kwargs or {}))
        wide = func(*(a.float() if _is_half(a) else a for a in args), **(kwargs or {}))
        return wide.half()


def _is_half(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float16


@contextmanager
def _told_where(module: nn.Module, watch: _Watch) -> Iterator[None]:
    def enter(name: str, submodule: nn.Module) -> Any:
        def hook(*_: Any) -> None:
            watch.path.append(name)
            watch.paused += isinstance(submodule, Normaliser)

        return hook

    def leave(submodule: nn.Module) -> Any:
        def hook(*_: Any) -> None:
            watch.path.pop()
            watch.paused -= isinstance(submodule, Normaliser)

        return hook

    handles = []
    for name, submodule in module.named_modules():
        handles.append(submodule.register_forward_pre_hook(enter(name or "the graph", submodule)))
        handles.append(submodule.register_forward_hook(leave(submodule), always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
