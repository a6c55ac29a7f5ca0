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
from ddscale.deploy.runtime.folder import checked_manifest, load_constants
from ddscale.deploy.runtime.graphs import Graph, open_graph
from ddscale.deploy.runtime.noise import Noise, picture_seed
from ddscale.deploy.runtime.sampler import Table, replay
from ddscale.deploy.runtime.windows import checked

_USUAL_BATCH = 8


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

    @classmethod
    def load(cls, folder: str | os.PathLike[str], provider: str = "cpu", threads: int = 0) -> Encoder:
        """Raises as EEGToImage.load does."""
        manifest = checked_manifest(folder, [ENCODER])
        return cls(manifest, open_graph(Path(folder), manifest.graph(ENCODER), provider, threads))

    def encode(self, eeg: object, sfreq: float | None = None, unit: str = "uV") -> dict[str, np.ndarray]:
        """The graph's outputs by name, for windows (B, C, T) or (C, T); float32.

        Raises EEGError when the windows are not as the model takes them.
        """
        return self._graph.run({"eeg": checked(eeg, self.manifest, sfreq, unit)})


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
        (self._decoder,) = (graphs[name] for name in (DECODER, TINY_DECODER) if name in graphs)
        self._constants = load_constants(folder, manifest)
        self._tables: dict[tuple[str, int], Table] = {}
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
        Raises EEGError for EEG that the model must not be given, ManifestError for a sampler that was not exported,
        ValueError for other numbers out of range.
        """
        batch_size = self._largest_batch() if batch_size is None else batch_size
        for name, number in (("samples", samples), ("batch_size", batch_size), ("guidance", guidance)):
            if not 1 <= number < float("inf"):
                raise ValueError(f"{name} is {number}: give 1 or more.")
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
        """Draw the export's golden latents on this machine and engine, of one picture.

        Returns their relative L2 to PyTorch's. Raises ManifestError when that is more than the export allows: then
        pictures made here would be wrong without looking wrong.
        """
        golden, end = self.manifest.golden, self.manifest.golden.end_to_end
        if end is None:
            return 0.0
        self.manifest.check_files(self._folder, [golden.file])
        with np.load(self._folder / golden.file, allow_pickle=False) as file:
            eeg, initial, final = (
                file[f"end_to_end/{n}"][:1] for n in ("eeg", "initial_latents", "final_latents")
            )
            draws = iter([initial, *file["end_to_end/noises"][:, :1]])
        with self._busy:
            condition = self._encoder.run({"eeg": eeg})
            table = self.table(end.scheduler, end.steps)
            drawn = self._latents(
                condition, lambda: next(draws), table, end.guidance, _Progress(None, 0), Timings()
            )
        error = float(np.linalg.norm(drawn - final) / np.linalg.norm(final))
        if not error <= end.tolerance:
            raise ManifestError(
                f"{self._folder} on {self.provider} draws other latents than PyTorch did: {error:.1e} apart "
                f"(relative), {end.tolerance:.0e} is allowed. Do not use it here: update driver and engine, or "
                "choose another provider or precision."
            )
        return error

    def table(self, scheduler: str | None = None, steps: int | None = None) -> Table:
        """A sampler that was exported; what is not given is that of the first exported which fits."""
        fitting = [
            schedule
            for schedule in self.manifest.schedules
            if scheduler in (None, schedule.name) and steps in (None, schedule.steps)
        ]
        chosen = fitting[0] if fitting else self.manifest.schedule(str(scheduler), steps or 0)
        key = (chosen.name, chosen.steps)
        if key not in self._tables:
            self._tables[key] = Table.load(self._folder / chosen.file)
        return self._tables[key]

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
