"""What PyTorch computes in fp32, before anything is exported: the measure of every graph, and the golden file.

Shape letters: G pictures, c, h, w a latent's sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from ddscale.deploy.graphs import Part, latent_shape
from ddscale.deploy.manifest import ENCODER, UNET
from ddscale.deploy.parity import Arrays
from ddscale.deploy.recipe import ExportRecipe
from ddscale.deploy.runtime.sampler import Table, replay
from ddscale.deploy.schedules import disagreement, tabulate
from ddscale.deploy.source import Source
from ddscale.diffusion.conditioning import Condition
from ddscale.diffusion.pipeline import scheduler_named

ROWS = 3
GUIDANCE = 3.0
# Two, so that a mix-up of windows with and without EEG cannot go unnoticed; one where pictures take minutes.
_PICTURES, _SMALL_LATENT = 2, 32
_GOLDEN_ROWS = 2

Predict = Callable[[Arrays], Arrays]


@dataclass
class PartReference:
    """One part's inputs and outputs, of one batch."""

    inputs: Arrays
    outputs: Arrays

    def rows(self, which: slice) -> PartReference:
        """Some rows of the batch."""
        inputs, outputs = ({n: v[which] for n, v in of.items()} for of in (self.inputs, self.outputs))
        return PartReference(inputs, outputs)


@dataclass
class EndToEnd:
    """Latents from EEG, drawn with guidance, and the pictures that each decoder makes of them."""

    table: Table
    eeg: np.ndarray
    initial: np.ndarray
    noises: np.ndarray
    """(Z, G, c, h, w): drawn on the way, in order."""
    final: np.ndarray
    images: Arrays
    calls: list[PartReference]
    """Of the U-Net, on the way: all of them, or of large latents the first, a middle and the last, one row of each."""

    @property
    def large(self) -> bool:
        """Whether one call of a network takes seconds."""
        return max(self.initial.shape[2:]) > _SMALL_LATENT


@dataclass
class Reference:
    """Everything that exported graphs are compared with."""

    parts: dict[str, PartReference] = field(default_factory=dict)
    """With a batch of ROWS."""
    tables: list[tuple[Table, float]] = field(default_factory=list)
    """Each with its largest relative difference from diffusers."""
    constants: Arrays = field(default_factory=dict)
    end_to_end: EndToEnd | None = None


def refer(source: Source, parts: list[Part], recipe: ExportRecipe, say: Callable[[str], None]) -> Reference:
    """Run every part, and the pipeline as a whole when there is one.

    Raises ValueError for a scheduler that has no table.
    """
    reference = Reference()
    for part in parts:
        say(f"{part.name}: PyTorch in fp32")
        reference.parts[part.name] = refer_part(part, recipe.seed)
    if source.pipeline is None:
        return reference
    reference.constants = constants_of(source)
    for wanted in recipe.schedules:
        scheduler = scheduler_named(wanted.name, source.pipeline.scheduler)
        table = tabulate(scheduler, wanted.steps, wanted.name)
        reference.tables.append((table, disagreement(table, scheduler)))
    # The shortest is enough to show that all graphs work together.
    shortest = min((table for table, _ in reference.tables), key=lambda table: table.calls)
    say(f"end to end: PyTorch, {shortest.scheduler} with {shortest.steps} steps")
    pictures = _PICTURES if max(latent_shape(source.pipeline)[1:]) <= _SMALL_LATENT else 1
    eeg = reference.parts[ENCODER].inputs["eeg"][:pictures]
    reference.end_to_end = draw_pictures(source, parts, shortest, eeg, recipe.seed)
    return reference


@torch.no_grad()
def refer_part(part: Part, seed: int) -> PartReference:
    """A part's inputs as they occur in use, and its outputs."""
    inputs = part.draw(ROWS, torch.Generator().manual_seed(seed))
    outputs = part.module(**inputs)
    named = zip(part.outputs, outputs if isinstance(outputs, tuple) else (outputs,), strict=True)
    return PartReference({n: t.numpy() for n, t in inputs.items()}, {n: t.numpy() for n, t in named})


@torch.no_grad()
def draw_pictures(source: Source, parts: list[Part], table: Table, eeg: np.ndarray, seed: int) -> EndToEnd:
    """The pipeline itself, with its own scheduler, from windows of EEG to latents and pictures."""
    pipeline = source.pipeline
    assert pipeline is not None, "an encoder alone draws no pictures"
    encoder = next(part for part in parts if part.name == ENCODER)
    states = encoder.module(torch.from_numpy(eeg))
    condition = Condition(states[0], states[1] if len(states) > 1 else None, None)
    shape = (len(eeg), *latent_shape(pipeline))
    initial = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    # The sampler's noises are drawn from a generator of their own, so that they can be drawn again for the file.
    own, again = (torch.Generator().manual_seed(seed + 1) for _ in range(2))
    before = pipeline.scheduler
    pipeline.scheduler = scheduler_named(table.scheduler, before)
    calls: list[PartReference] = []
    watching = pipeline.unet.register_forward_hook(partial(_note_call, calls), with_kwargs=True)
    try:
        final = pipeline(
            condition=condition,
            num_inference_steps=table.steps,
            guidance_scale=GUIDANCE,
            latents=initial.clone(),
            generator=own,
            output_type="latent",
        ).images
    finally:
        watching.remove()
        pipeline.scheduler = before
    noises = [torch.randn(shape, generator=again).numpy() for _ in range(table.noises)]
    images = {part.name: part.module(final).numpy() for part in parts if part.inputs == ("latent",)}
    drawn = EndToEnd(
        table,
        eeg,
        initial.numpy(),
        np.stack(noises) if noises else np.zeros((0, *shape), np.float32),
        final.numpy(),
        images,
        calls,
    )
    if drawn.large:
        # Rows with EEG follow those without.
        chosen = sorted({0, len(calls) // 2, len(calls) - 1})
        drawn.calls = [calls[i].rows(slice(-1, None)) for i in chosen]
    return drawn


def _note_call(calls: list[PartReference], unet: Any, given: Any, named: Any, predicted: Any) -> None:
    """A hook: what the U-Net was given and gave, under the names of its graph."""
    sample, timestep = given
    inputs = {
        "sample": sample,
        "timestep": timestep.float().expand(len(sample)),
        "encoder_hidden_states": named["encoder_hidden_states"],
        "class_labels": named["class_labels"],
    }
    arrays = {name: value.numpy().copy() for name, value in inputs.items() if value is not None}
    calls.append(PartReference(arrays, {"noise_pred": predicted[0].numpy().copy()}))


def draw_latents(reference: EndToEnd, constants: Arrays, graphs: Mapping[str, Predict]) -> np.ndarray:
    """The same latents by way of exported graphs and the sampler's table, as the runtime draws them."""
    conditioned = graphs[ENCODER]({"eeg": reference.eeg})
    pictures = len(reference.eeg)
    hidden = _doubled(constants["null_hidden_states"], conditioned["encoder_hidden_states"])
    beside = {}
    if "time" in conditioned:
        beside["class_labels"] = _doubled(constants["null_time"], conditioned["time"])
    noises = iter(reference.noises)

    def predict(latents: np.ndarray, timestep: float) -> np.ndarray:
        inputs = {
            "sample": np.concatenate([latents, latents]),
            "timestep": np.full(2 * pictures, timestep, np.float32),
            "encoder_hidden_states": hidden,
            **beside,
        }
        predicted = graphs[UNET](inputs)["noise_pred"]
        without, given = predicted[:pictures], predicted[pictures:]
        guided: np.ndarray = without + np.float32(GUIDANCE) * (given - without)
        return guided

    return replay(reference.table, reference.initial, predict, lambda: next(noises))


def _doubled(null: np.ndarray, given: np.ndarray) -> np.ndarray:
    return np.concatenate([np.repeat(null, len(given), axis=0), given])


@torch.no_grad()
def constants_of(source: Source) -> Arrays:
    """What stands for 'no EEG'."""
    assert source.pipeline is not None, "an encoder alone has none"
    without = source.pipeline.conditioner.without_eeg(1)
    constants: dict[str, Any] = {"null_hidden_states": without.hidden_states.float().numpy()}
    if without.time is not None:
        constants["null_time"] = without.time.float().numpy()
    return constants


def golden_arrays(reference: Reference) -> Arrays:
    """What golden.npz holds: `graph/tensor` for inputs and outputs, and `end_to_end/...`."""
    arrays = {}
    for name, part in reference.parts.items():
        for tensor, value in (*part.inputs.items(), *part.outputs.items()):
            arrays[f"{name}/{tensor}"] = value[:_GOLDEN_ROWS]
    if (end_to_end := reference.end_to_end) is not None:
        arrays |= {
            "end_to_end/eeg": end_to_end.eeg,
            "end_to_end/initial_latents": end_to_end.initial,
            "end_to_end/noises": end_to_end.noises,
            "end_to_end/final_latents": end_to_end.final,
        }
        arrays |= {f"end_to_end/{name}/image": image for name, image in end_to_end.images.items()}
    return arrays
