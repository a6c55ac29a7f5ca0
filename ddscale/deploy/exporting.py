"""From a recipe to a published folder: run PyTorch, write graphs, compare them, describe and publish."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import get_args

import torch

from ddscale.deploy.description import Compared, describe, facts_of
from ddscale.deploy.graphs import Part, parts_of
from ddscale.deploy.manifest import ENCODER, UNET, Precision
from ddscale.deploy.parity import (
    END_TO_END_LIMITS,
    LIMITS,
    Checks,
    check_pictures,
    compare_graph,
    limit_for,
    relative_l2,
    run,
    session,
)
from ddscale.deploy.precision import ACTIVATION_LIMIT, Half, examine_half
from ddscale.deploy.publishing import check_is_export, published
from ddscale.deploy.quantisation import KEPT, QUANTISED, quantise_graphs, quantised_names
from ddscale.deploy.recipe import ExportRecipe
from ddscale.deploy.reference import Reference, draw_latents, refer
from ddscale.deploy.schedules import TOLERANCE as TABLE_TOLERANCE
from ddscale.deploy.source import Source, load_source
from ddscale.deploy.writing import describe_graph, weight_names, write_graph

Say = Callable[[str], None]


@dataclass
class Written:
    """What is known of the graphs beside their files."""

    tolerances: dict[str, float] = field(default_factory=dict)
    names: dict[Precision, dict[str, dict[str, str]]] = field(default_factory=dict)
    half: dict[str, Half] = field(default_factory=dict)


def export(recipe: ExportRecipe, say: Say = lambda line: None) -> list[Path]:
    """Write the recipe's folder. Returns the folder of each precision.

    say: told what is being done, a line each. Raises ValueError (ParityError when graphs compute something else than
    PyTorch) and FileNotFoundError; nothing has then been published, and what was in `out` is as it was.
    """
    out = Path(recipe.out)
    with published(out, check_is_export) as folder:
        source = load_source(recipe)
        parts, facts = parts_of(source), facts_of(source, recipe)
        reference = refer(source, parts, recipe, say)
        written = _write(source, parts, reference, folder, _in_order(recipe), say)
        for precision in _in_order(recipe):
            if precision in QUANTISED:
                say(f"{precision}: calibrating")
                quantise_graphs(folder / "fp32", folder / precision, precision, reference)
            compared = _compare(folder / precision, precision, written, reference, say)
            describe(folder / precision, precision, compared, reference, facts)
        for path in folder.iterdir():
            if path.name not in recipe.precisions:
                shutil.rmtree(path)
    return [out / precision for precision in recipe.precisions]


def _in_order(recipe: ExportRecipe) -> list[Precision]:
    """Quantised graphs are made from fp32 ones, which then have to hold as well."""
    wanted: set[Precision] = {*recipe.precisions}
    if wanted & {*QUANTISED}:
        wanted.add("fp32")
    return [precision for precision in get_args(Precision) if precision in wanted]


def _write(
    source: Source,
    parts: list[Part],
    reference: Reference,
    folder: Path,
    precisions: list[Precision],
    say: Say,
) -> Written:
    """Every part in every precision. Empties `parts`: weights are let go before ONNX Runtime needs the memory."""
    written = Written()
    while parts:
        part = parts.pop(0)
        own = reference.parts[part.name]
        example = {name: torch.from_numpy(value) for name, value in own.inputs.items()}
        written.tolerances[part.name] = part.tolerance
        for precision in [p for p in precisions if p not in QUANTISED]:
            half = precision == "fp16"
            if half:
                say(f"{part.name}: activations, and PyTorch in fp16")
                written.half[part.name] = examine_half(part, own, reference.end_to_end)
            say(f"{part.name}: writing {precision}")
            (folder / precision).mkdir(exist_ok=True)
            path = folder / precision / f"{part.name}.onnx"
            write_graph(part, path, example, half)
            written.names.setdefault(precision, {})[part.name] = weight_names(part, path)
        if part.name == UNET and source.pipeline is not None:
            source.pipeline.unet = None  # type: ignore[assignment]
        del part
        gc.collect()
    source.encoder = source.pipeline = source.tiny = None
    _give_memory_back()
    return written


def _give_memory_back() -> None:
    """What was freed goes back to the system, where the C library can: ONNX Runtime is about to need it."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _compare(
    folder: Path, precision: Precision, written: Written, reference: Reference, say: Say
) -> Compared:
    checks = Checks()
    graphs, limits = {}, {}
    for name, own in reference.parts.items():
        say(f"{name}: {precision} in ONNX Runtime")
        half = written.half.get(name)
        own_precision: Precision = "fp32" if precision in QUANTISED and name in KEPT else precision
        largest = half.range.largest if half else None
        graphs[name] = describe_graph(folder / f"{name}.onnx", own_precision, largest)
        limits[name] = limit_for(own_precision, written.tolerances[name])
        if precision == "fp16" and half is not None:
            where = f"largest activation in fp32 ({half.range.where})"
            checks.hold(where, half.range.largest, ACTIVATION_LIMIT, name)
            checks.hold("PyTorch in fp16, relative L2 to fp32", half.error, LIMITS["fp16"], name)
        compare_graph(checks, name, folder / graphs[name].file, own.inputs, own.outputs, limits[name])
        _give_memory_back()
    _compare_end_to_end(checks, folder, precision, reference, say)
    for table, difference in reference.tables:
        label = f"table of {table.scheduler} with {table.steps} steps, relative L2 to diffusers"
        checks.hold(label, difference, TABLE_TOLERANCE)
    names = written.names.get(precision) or {
        name: quantised_names(written.names["fp32"][name], folder / f"{name}.onnx") for name in graphs
    }
    notes: tuple[str, ...] = ()
    if precision in QUANTISED:
        kept = ", ".join(name for name in graphs if name in KEPT) or "nothing else"
        notes = (f"{precision}: matrix products and convolutions of encoder and U-Net; in fp32: {kept}",)
    return Compared(graphs, limits, checks.finish(precision), names, notes)


def _compare_end_to_end(
    checks: Checks, folder: Path, precision: Precision, reference: Reference, say: Say
) -> None:
    expected = reference.end_to_end
    if expected is None:
        return
    say(f"end to end: {precision} in ONNX Runtime")
    with ExitStack() as stack:
        graphs = {
            name: partial(run, stack.enter_context(session(folder / f"{name}.onnx")))
            for name in (ENCODER, UNET)
        }
        final = draw_latents(expected, reference.constants, graphs)
    checks.hold(
        "latents, relative L2 to PyTorch", relative_l2(final, expected.final), END_TO_END_LIMITS[precision]
    )
    for name, pictures in expected.images.items():
        with session(folder / f"{name}.onnx") as decoder:
            check_pictures(checks, name, run(decoder, {"latent": final})["image"], pictures)
