"""EEG to pictures from an exported folder: what EEGToImagePipeline does, with NumPy and an inference engine.

Shape letters: B windows, G pictures (B times samples), C channels, T samples in time, L and W a condition's length
and width, c, h, w a latent's sizes, H and W a picture's.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from ddscale.deploy.manifest import DECODER, ENCODER, TINY_DECODER, UNET, Manifest, ManifestError
from ddscale.deploy.runtime.folder import checked_manifest, load_constants, load_tables
from ddscale.deploy.runtime.graphs import Graph, open_graph
from ddscale.deploy.runtime.noise import Noise, picture_seed
from ddscale.deploy.runtime.sampler import Table, replay
from ddscale.deploy.runtime.windows import checked

_USUAL_BATCH = 8
_WINDOWS_AT_ONCE = 256


class SamplerError(ManifestError):
    """A sampler or a number of steps that was not exported; the message says which were."""


@dataclass
class Timings:
    """Seconds that one call of `generate` spent, by stage."""

    encoder: float = 0.0
    unet: float = 0.0
    sampler: float = 0.0
    """Noise, sums and guidance, in NumPy."""
    decoder: float = 0.0
    total: float = 0.0
    unet_calls: int = 0
    pictures: int = 0


class Encoder:
    """The EEG encoder of an exported folder: a generator's, or a pretrained one alone."""

    def __init__(self, manifest: Manifest, graph: Graph) -> None:
        self.manifest = manifest
        self._graph = graph
        self._busy = threading.Lock()

    @classmethod
    def load(cls, folder: str | os.PathLike[str], provider: str = "cpu", threads: int = 0) -> Encoder:
        """Raises as EEGToImage.load does."""
        manifest = checked_manifest(folder, [ENCODER])
        return cls(manifest, open_graph(Path(folder), manifest.graph(ENCODER), provider, threads))

    def encode(self, eeg: object, sfreq: float | None = None, unit: str = "uV") -> dict[str, np.ndarray]:
        """The graph's outputs by name, for windows (B, C, T) or (C, T); float32. One call at a time, others wait.

        Raises EEGError when the windows are not as the model takes them.
        """
        windows_BCT = checked(eeg, self.manifest, sfreq, unit)
        size = self._graph.most_pictures or _WINDOWS_AT_ONCE
        with self._busy:
            parts = [
                self._graph.run({"eeg": windows_BCT[first : first + size]})
                for first in range(0, len(windows_BCT), size)
            ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class EEGToImage:
    """A generator of pictures; one call of `generate` at a time, others wait."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        graphs: dict[str, Graph],
        provider: str,
    ) -> None:
        self.manifest = manifest
        self.provider = provider
        self.timings = Timings()
        self._folder = folder
        self._encoder, self._unet = graphs[ENCODER], graphs[UNET]
        (self._decoder_name,) = (name for name in (DECODER, TINY_DECODER) if name in graphs)
        self._decoder = graphs[self._decoder_name]
        self._constants = load_constants(folder, manifest)
        self._tables = load_tables(folder, manifest)
        self._busy = threading.Lock()
        assert manifest.latent is not None, "a generator's manifest has it, see checked_manifest"
        self._latent_shape = (manifest.latent.channels, manifest.latent.height, manifest.latent.width)
        (self._time_dtype,) = (
            np.dtype(tensor.dtype) for tensor in manifest.graph(UNET).inputs if tensor.name == "timestep"
        )
        self._takes_vector = any(tensor.name == "class_labels" for tensor in manifest.graph(UNET).inputs)

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        provider: str = "cpu",
        decoder: Literal["full", "tiny"] = "full",
        threads: int = 0,
    ) -> EEGToImage:
        """Load a folder that export/to_onnx.py wrote, after checking every file that will be used.

        provider: cpu, cuda (ONNX Runtime), tensorrt (engines of export/to_tensorrt.py) or openvino. decoder: `tiny`
        is the small decoder, when it was exported. threads: of the CPU; 0 leaves it to the engine.
        Raises FileNotFoundError without a manifest, ManifestError (a ValueError) when it is of another version, when
        a file is corrupted or the folder holds no generator, ProviderError (a ValueError) when the engine is not
        there, does not run here, or was built from other graphs or for another GPU.
        """
        decoder_name = {"full": DECODER, "tiny": TINY_DECODER}.get(decoder)
        if decoder_name is None:
            raise ValueError(f"decoder {decoder!r} is not known: use full or tiny.")
        names = [ENCODER, UNET, decoder_name]
        manifest = checked_manifest(folder, names)
        root = Path(folder)
        graphs = {name: open_graph(root, manifest.graph(name), provider, threads) for name in names}
        return cls(root, manifest, graphs, provider)

    def generate(
        self,
        eeg: object,
        steps: int | None = None,
        scheduler: str | None = None,
        guidance: float = 3.0,
        seed: int = 0,
        samples: int = 1,
        sfreq: float | None = None,
        unit: str = "uV",
        first_window: int = 0,
        batch_size: int | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """Pictures uint8 (B x samples, H, W, 3), those of one window beside each other.

        eeg: (B, C, T) or (C, T), µV at the manifest's rate. scheduler, steps: a sampler that was exported; by default
        the first. guidance: 1 is without, at half the cost. seed: with a window's and a sample's number it decides
        the starting noise, whatever the batch. first_window: number of the first window. batch_size: pictures drawn
        together; by default 8, or what the engines were built for. on_step(done, all): after each U-Net call; what
        it raises ends the drawing.
        Raises EEGError for EEG that the model must not be given, SamplerError for a sampler that was not exported,
        ValueError for other numbers out of range.
        """
        batch_size = self._largest_batch() if batch_size is None else batch_size
        for name, number in (("samples", samples), ("batch_size", batch_size)):
            if not isinstance(number, (int, np.integer)) or number < 1:
                raise ValueError(f"{name} is {number!r}: give a whole number, 1 or more.")
        if not isinstance(guidance, (int, float, np.number)) or not 1 <= guidance < float("inf"):
            raise ValueError(f"guidance is {guidance!r}: give a number, 1 or more.")
        if not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**63:
            raise ValueError(f"seed is {seed!r}: give a whole number from 0 to 2**63 - 1.")
        windows_BCT = checked(eeg, self.manifest, sfreq, unit)
        table = self.table(scheduler, steps)
        pictures = [(window, sample) for window in range(len(windows_BCT)) for sample in range(samples)]
        groups = [pictures[i : i + batch_size] for i in range(0, len(pictures), batch_size)]
        progress = _Progress(on_step, table.calls * len(groups))
        with self._busy:
            timings = Timings(pictures=len(pictures))
            began = time.perf_counter()
            images = []
            for group in groups:
                # A window whose pictures fall into two groups is encoded twice: cheap, and no batch is too large.
                windows, rows = np.unique([window for window, _ in group], return_inverse=True)
                with _timed(timings, "encoder"):
                    encoded = self._encoder.run({"eeg": windows_BCT[windows]})
                condition = {name: array[rows] for name, array in encoded.items()}
                seeds = [picture_seed(seed, first_window + window, sample) for window, sample in group]
                draw = partial(Noise(seeds).draw, self._latent_shape)
                latents_Gchw = self._latents(condition, draw, table, guidance, progress, timings)
                with _timed(timings, "decoder"):
                    images.append(as_pixels(self._decoder.run({"latent": latents_Gchw})["image"]))
            timings.total = time.perf_counter() - began
            timings.sampler = timings.total - timings.encoder - timings.unet - timings.decoder
            self.timings = timings
        return np.concatenate(images)

    def check(self) -> float:
        """Draw the export's golden picture on this machine and engine.

        Returns the relative L2 of its latents to PyTorch's. Raises ManifestError when latents or picture are further
        off than the export allows: then pictures made here would be wrong without looking wrong.
        """
        golden, end = self.manifest.golden, self.manifest.golden.end_to_end
        if end is None:
            return 0.0
        self.manifest.check_files(self._folder, [golden.file])
        with np.load(self._folder / golden.file, allow_pickle=False) as file:
            eeg, initial, final, image = (
                file[f"end_to_end/{name}"][:1]
                for name in ("eeg", "initial_latents", "final_latents", f"{self._decoder_name}/image")
            )
            draws = iter([initial, *file["end_to_end/noises"][:, :1]])
        with self._busy:
            condition = self._encoder.run({"eeg": eeg})
            table = self.table(end.scheduler, end.steps)
            drawn = self._latents(
                condition, lambda: next(draws), table, end.guidance, _Progress(None, 0), Timings()
            )
            # Of the golden latents, so that the decoder answers for itself alone.
            decoded = self._decoder.run({"latent": final})["image"]
        errors = {
            "latents": (_distance(drawn, final), end.tolerance),
            f"pictures ({self._decoder_name})": (
                _distance(decoded, image),
                golden.tolerances[self._decoder_name],
            ),
        }
        for what, (error, tolerance) in errors.items():
            if not error <= tolerance:
                raise ManifestError(
                    f"{self._folder} on {self.provider} draws other {what} than PyTorch did: {error:.1e} apart "
                    f"(relative), {tolerance:.0e} is allowed. Do not use it here: update driver and engine, or "
                    "choose another provider or precision."
                )
        return errors["latents"][0]

    def table(self, scheduler: str | None = None, steps: int | None = None) -> Table:
        """A sampler that was exported; what is not given is that of the first exported which fits."""
        fitting = [
            schedule
            for schedule in self.manifest.schedules
            if scheduler in (None, schedule.name) and steps in (None, schedule.steps)
        ]
        if not fitting:
            there = ", ".join(f"{s.name} with {s.steps} steps" for s in self.manifest.schedules)
            asked = scheduler or "a sampler"
            raise SamplerError(
                f"this export has no table for {asked}{'' if steps is None else f' with {steps} steps'}; it has "
                f"{there}. Use one of these, or add the sampler and steps to the recipe's `schedules` and export again."
            )
        return self._tables[fitting[0].name, fitting[0].steps]

    def _largest_batch(self) -> int:
        limits = [graph.most_pictures for graph in (self._encoder, self._unet, self._decoder)]
        return min([_USUAL_BATCH, *(limit for limit in limits if limit is not None)])

    def _latents(
        self,
        condition: dict[str, np.ndarray],
        draw: Callable[[], np.ndarray],
        table: Table,
        guidance: float,
        progress: _Progress,
        timings: Timings,
    ) -> np.ndarray:
        guided = guidance > 1
        unet = self._unet.holding(self._unet_constants(condition, guided))

        def predict(latents_Gchw: np.ndarray, timestep: float) -> np.ndarray:
            # Both halves in one batch, those without EEG first, as in the pipeline.
            entering = np.concatenate([latents_Gchw] * 2) if guided else latents_Gchw
            times = np.full(len(entering), timestep, self._time_dtype)
            with _timed(timings, "unet"):
                predicted = unet({"sample": entering, "timestep": times})["noise_pred"]
            timings.unet_calls += 1
            progress.advance()
            if not guided:
                return predicted
            without, with_eeg = np.split(predicted, 2)
            return without + np.float32(guidance) * (with_eeg - without)

        return replay(table, draw(), predict, draw)

    def _unet_constants(self, condition: dict[str, np.ndarray], guided: bool) -> dict[str, np.ndarray]:
        taken = {"encoder_hidden_states": ("encoder_hidden_states", "null_hidden_states")}
        if self._takes_vector:
            taken["class_labels"] = ("time", "null_time")
        given = {}
        for name, (of_eeg, of_null) in taken.items():
            array = condition[of_eeg]
            if guided:
                null = np.broadcast_to(self._constants[of_null], array.shape)
                array = np.concatenate([null, array])
            given[name] = np.ascontiguousarray(array, dtype=np.float32)
        return given


def _distance(given: np.ndarray, golden: np.ndarray) -> float:
    return float(np.linalg.norm(given - golden) / np.linalg.norm(golden))


def as_pixels(images_G3HW: np.ndarray) -> np.ndarray:
    """Decoded pictures, about -1..1, as uint8 (G, H, W, 3), rounded as diffusers' image processor rounds.

    Raises ValueError when a picture has NaN: an overflow, which would look like black.
    """
    bad_G = ~np.isfinite(images_G3HW).all(axis=(1, 2, 3))
    if bad_G.any():
        raise ValueError(
            f"picture {int(np.argmax(bad_G))} of the batch came out with NaN or infinite values: the graph overflows, "
            "as fp16 graphs do. Use the fp32 export, or export again and look at the largest activations."
        )
    unit_G3HW = np.clip(images_G3HW * np.float32(0.5) + np.float32(0.5), 0, 1)
    return np.ascontiguousarray((unit_G3HW.transpose(0, 2, 3, 1) * 255).round().astype(np.uint8))


class _Progress:
    def __init__(self, on_step: Callable[[int, int], None] | None, total: int) -> None:
        self._on_step, self._total, self._done = on_step, total, 0

    def advance(self) -> None:
        self._done += 1
        if self._on_step is not None:
            self._on_step(self._done, self._total)


@contextmanager
def _timed(timings: Timings, stage: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    setattr(timings, stage, getattr(timings, stage) + time.perf_counter() - began)
