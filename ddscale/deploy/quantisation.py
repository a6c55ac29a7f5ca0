"""int8 and fp8 graphs: NVIDIA ModelOpt puts quantise and dequantise nodes into fp32 ones, after looking at real inputs.

ModelOpt is installed without its `onnx` extra, which pins older versions of onnx and of ONNX Runtime. Quantised are
encoder and U-Net; decoders are left alone, for they are run once a picture and coarse colours are seen.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ddscale.deploy.manifest import DECODER, ENCODER, TINY_DECODER, UNET, Precision
from ddscale.deploy.parity import Arrays, run, session
from ddscale.deploy.reference import Reference, draw_latents

QUANTISED: tuple[Precision, ...] = ("int8", "fp8")
KEPT = (DECODER, TINY_DECODER)
# More add time and memory, and change scales little: the largest value counts.
_MOST_ROWS = 48


def quantise_graphs(source: Path, target: Path, precision: Precision, reference: Reference) -> None:
    """Write a quantised folder beside an fp32 one: encoder and U-Net quantised, the rest copied.

    Raises ModuleNotFoundError when ModelOpt is not there.
    """
    target.mkdir()
    inputs = calibration_inputs(source, reference)
    for name in reference.parts:
        file = f"{name}.onnx"
        if name in KEPT:
            for path in source.glob(f"{file}*"):
                shutil.copy2(path, target)
        else:
            _quantise(source / file, target / file, precision, inputs[name])


def calibration_inputs(source: Path, reference: Reference) -> dict[str, Arrays]:
    """For encoder and U-Net, what they are given: the checks' inputs, and all of a drawing from noise to picture."""
    rows: dict[str, list[Mapping[str, np.ndarray]]] = {
        name: [part.inputs] for name, part in reference.parts.items() if name not in KEPT
    }
    if reference.end_to_end is not None:
        with session(source / f"{ENCODER}.onnx") as encoder, session(source / f"{UNET}.onnx") as unet:

            def seen(inputs: Arrays) -> Arrays:
                rows[UNET].append(inputs)
                return run(unet, inputs)

            graphs = {ENCODER: lambda inputs: run(encoder, inputs), UNET: seen}
            draw_latents(reference.end_to_end, reference.constants, graphs)
    return {
        name: _spread({n: np.concatenate([b[n] for b in of]) for n in of[0]}) for name, of in rows.items()
    }


def quantised_names(names: Mapping[str, str], path: Path) -> dict[str, str]:
    """weight_names of a quantised graph: ModelOpt keeps an initialiser's name, numbering copies."""
    model = onnx.load(path, load_external_data=False)
    found = {}
    for tensor in model.graph.initializer:
        original = tensor.name if tensor.name in names else re.sub(r"_\d+$", "", tensor.name)
        if original in names:
            found[tensor.name] = names[original]
    return found


def _spread(inputs: Arrays) -> Arrays:
    """At most _MOST_ROWS rows, spread over all: steps of a drawing differ most from its start to its end."""
    count = len(next(iter(inputs.values())))
    chosen = np.unique(np.linspace(0, count - 1, min(count, _MOST_ROWS)).round().astype(int))
    return {name: value[chosen] for name, value in inputs.items()}


def _quantise(source: Path, target: Path, precision: Precision, inputs: Arrays) -> None:
    quantize = _modelopt()
    with tempfile.TemporaryDirectory(dir=target.parent) as folder, _quiet():
        # ModelOpt names nodes in the file that it is given: it gets a copy.
        copy, rough = Path(folder) / source.name, Path(folder) / f"quantised-{source.name}"
        for path in source.parent.glob(f"{source.name}*"):
            shutil.copy(path, folder)
        quantize(
            str(copy),
            quantize_mode=precision,
            calibration_data=inputs,
            calibration_method="max",
            calibration_eps=["cpu"],
            output_path=str(rough),
            # The rest stays fp32: turned to fp16, the normalisation's squared µV would overflow.
            high_precision_dtype="fp32",
            use_external_data_format=True,
            # Weights are stored quantised, at a quarter of the size.
            dq_only=True,
            log_level="CRITICAL",
        )
        model = onnx.load(rough)
        onnx.save_model(model, target, save_as_external_data=True, location=f"{target.name}.data")


def _modelopt() -> Any:
    try:
        with _quiet():
            from modelopt.onnx.quantization import quantize
    except ImportError as error:
        raise ModuleNotFoundError(
            f"int8 and fp8 need NVIDIA ModelOpt ({error}): pip install 'ddscale[quantisation]', or leave them out of "
            "the recipe's `precisions`."
        ) from None
    return quantize


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """ModelOpt and its graph surgeon report missing GPUs and colours on every channel there is."""
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
