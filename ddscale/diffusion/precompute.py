"""What a training step would otherwise compute again and again: VAE latents and CLIP features of all pictures.

Written once as Zarr, in a folder whose name carries the fingerprint of weights, settings and the list of pictures,
so others never find these. A row is done when its picture's identity is there, which is written last; run again,
it does the rows that are missing or whose picture or caption has changed.
Shape letters: n pictures, K crops, C, h, w a latent's, D CLIP's width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from zarr.codecs import BloscCodec

from ddscale.diffusion.clip import Clip
from ddscale.diffusion.codec import LatentCodec
from ddscale.diffusion.pictures import as_tensor, crops_of, decode
from ddscale.recipes import Settings

_ROWS_PER_SHARD = 64
_OF_PICTURES = ("mean", "std", "image", "caption")
# On each rank; beyond it a picture costs some milliseconds of reading in the step.
_IN_MEMORY = 2**32


class PrecomputeSettings(Settings):
    """Which views of the pictures are encoded, and how exactly the results are kept."""

    image_size: int = Field(default=512, ge=8)
    """Side in pixels that pictures are resized to before the VAE; 512 for Stable Diffusion 1.5."""
    crops: int = Field(default=1, ge=1)
    """Views of each picture: the whole centred square, then random crops of it. Storage grows with it."""
    crop_share: float = Field(default=0.8, gt=0, le=1)
    """Side of the random crops over that of the picture; the original cuts 410 of 512 pixels."""
    dtype: Literal["float16", "float32"] = "float32"
    """Of latents and features on disk: float16 halves the space, at a rounding of 5e-4."""
    batch_size: int = Field(default=8, ge=1)
    """Views encoded at once; memory grows with it, results do not depend on it beyond rounding."""
    seed: int = 0
    """Decides where the random crops lie."""


class Pictures(Protocol):
    """The pictures of a store, as this room needs them."""

    @property
    def names(self) -> Sequence[str]:
        """What to call each picture in messages."""

    @property
    def captions(self) -> Sequence[str]:
        """One for each picture."""

    @property
    def sha256(self) -> Sequence[str]:
        """Checksum of each picture's file, hex: known without reading it."""

    def read(self, row: int) -> bytes:
        """A picture's file."""


class Views(NamedTuple):
    """Stored latents and features of one view of each asked-for picture."""

    mean: Tensor
    """(B, C, h, w) float32, not scaled."""
    std: Tensor
    """(B, C, h, w) float32, not scaled."""
    image: Tensor | None
    """(B, D) float32, unit length."""
    caption: Tensor | None
    """(B, D) float32, unit length."""


class Features:
    """Precomputed latents and features, read by picture and crop; without CLIP its features are None."""

    def __init__(self, path: Path) -> None:
        self.path = path
        group = zarr.open_group(path, mode="r")
        _check_complete(path, group)
        self.facts: dict[str, Any] = dict(group.attrs)
        self._arrays: dict[str, Any] = {name: group[name] for name in _OF_PICTURES if name in group}
        if sum(array.nbytes for array in self._arrays.values()) <= _IN_MEMORY:
            self._arrays = {name: array[:] for name, array in self._arrays.items()}
        self.crops = int(self._arrays["mean"].shape[1])

    def __len__(self) -> int:
        return int(self._arrays["mean"].shape[0])

    def views(self, rows_B: Tensor, crops_B: Tensor) -> Views:
        """Of the pictures `rows_B` the views `crops_B`, both int64 (B,)."""
        rows, crops = rows_B.numpy(), crops_B.numpy()
        pairs = {name: self._take(name, (rows, crops)) for name in ("mean", "std")}
        if "image" not in self._arrays:
            return Views(image=None, caption=None, **pairs)
        return Views(
            image=self._take("image", (rows, crops)), caption=self._take("caption", (rows,)), **pairs
        )

    def of_whole_images(self, rows_B: Tensor) -> Tensor | None:
        """(B, D) CLIP features of the pictures `rows_B`, uncropped."""
        return (
            self._take("image", (rows_B.numpy(), np.zeros(len(rows_B), np.int64)))
            if "image" in self._arrays
            else None
        )

    def _take(self, name: str, index: tuple[NDArray[np.int64], ...]) -> Tensor:
        array = self._arrays[name]
        if isinstance(array, np.ndarray):
            taken = array[index]
        else:
            taken = np.stack([array[one] for one in zip(*(axis.tolist() for axis in index), strict=True)])
        return torch.from_numpy(taken.astype(np.float32))


def _check_complete(path: Path, group: Any) -> None:
    """Raise ValueError where rows or shards are missing: Zarr would read them as zeros, and say nothing."""
    done_n: NDArray[np.bool_] = np.any(group["identity"][:], axis=1)
    lacks = [] if done_n.all() else [f"{(~done_n).sum()} of {len(done_n)} pictures"]
    shards = -(-len(done_n) // _ROWS_PER_SHARD)
    for name in _OF_PICTURES:
        there = len(
            {file.relative_to(path).parts[2] for file in path.glob(f"{name}/c/*/**/*") if file.is_file()}
        )
        # Zarr writes no shard of zeros only: such are all the spreads of a VAE that gives none.
        if name in group and there < shards and (name, there) != ("std", 0):
            lacks.append(f"{name}: {shards - there} of {shards} shards")
    if lacks:
        raise ValueError(
            f"{path} is not complete, it lacks {'; '.join(lacks)}. Remove it and run again: it is computed anew."
        )


def precompute(
    pictures: Pictures,
    codec: LatentCodec,
    clip: Clip | None,
    folder: str | Path,
    settings: PrecomputeSettings,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Features:
    """Encode what is not yet encoded of the pictures, and open the result.

    folder: where `features-<fingerprint>.zarr` is kept, such as beside the store's images. on_progress: pictures
    done, of how many. Raises ValueError naming a picture that cannot be decoded.
    """
    path = prepare(pictures, codec, clip, folder, settings)
    fill(path, pictures, codec, clip, settings, on_progress)
    return Features(path)


def prepare(
    pictures: Pictures,
    codec: LatentCodec,
    clip: Clip | None,
    folder: str | Path,
    settings: PrecomputeSettings,
) -> Path:
    """Make room for the features of the pictures, where there is none yet; one process does it, before `fill`."""
    facts = {
        "what": "latents and CLIP features of pictures, by ddscale",
        "settings": settings.model_dump(mode="json", exclude={"batch_size"}),
        "vae": fingerprint_of(codec.vae),
        "clip": None if clip is None else fingerprint_of(clip.model),
        "pictures": hashlib.sha256("\n".join(pictures.names).encode()).hexdigest(),
    }
    path = Path(folder) / f"features-{_digest(facts)[:16]}.zarr"
    _make_arrays(path, len(pictures.names), codec, clip, settings, facts)
    return path


def fill(
    path: Path,
    pictures: Pictures,
    codec: LatentCodec,
    clip: Clip | None,
    settings: PrecomputeSettings,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    rank: int = 0,
    world_size: int = 1,
) -> None:
    """Encode what is not yet encoded of this rank's share of the pictures; ranks do not wait for each other.

    A share is made of whole shards, which no two ranks write to. on_progress: pictures done of the share.
    """
    total = len(pictures.names)
    group: Any = zarr.open_group(path, mode="r+")
    stored = group["identity"]
    shares = range(rank * _ROWS_PER_SHARD, total, world_size * _ROWS_PER_SHARD)
    mine = sum(min(_ROWS_PER_SHARD, total - start) for start in shares)
    done = 0
    for start in shares:
        rows = range(start, min(start + _ROWS_PER_SHARD, total))
        identities = _identities(pictures, rows)
        if not np.array_equal(stored[rows.start : rows.stop], identities):
            _write_rows(group, rows, pictures, codec, clip, settings)
            stored[rows.start : rows.stop] = identities
        done += len(rows)
        on_progress(done, mine)


def fingerprint_of(model: nn.Module) -> str:
    """SHA-256 over all weights: names, shapes, types and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _identities(pictures: Pictures, rows: range) -> NDArray[np.uint8]:
    """SHA-256 of each picture's checksum and caption: (rows, 32)."""
    digests = [
        hashlib.sha256(f"{pictures.sha256[row]} {pictures.captions[row]}".encode()).digest() for row in rows
    ]
    return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 32)


def _make_arrays(
    path: Path,
    total: int,
    codec: LatentCodec,
    clip: Clip | None,
    settings: PrecomputeSettings,
    facts: dict[str, Any],
) -> None:
    side = settings.image_size // codec.downsampling
    latent = (settings.crops, codec.latent_channels, side, side)
    shapes: dict[str, tuple[int, ...]] = {
        "mean": latent,
        "std": latent,
    }
    if clip is not None:
        shapes |= {"image": (settings.crops, clip.width), "caption": (clip.width,)}
    group = zarr.open_group(path, mode="a", zarr_format=3)
    group.attrs.update(facts)
    for name, shape in shapes.items():
        # One picture is one chunk, so that training can read it alone; many of them make one file.
        _open_array(group, name, (total, *shape), (1, *shape), settings.dtype)
    _open_array(group, "identity", (total, 32), (_ROWS_PER_SHARD, 32), "uint8")


def _open_array(group: Any, name: str, shape: tuple[int, ...], chunk: tuple[int, ...], dtype: str) -> None:
    if name in group:
        return
    shard = (_ROWS_PER_SHARD, *shape[1:])
    group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=chunk,
        shards=shard,
        compressors=BloscCodec(cname="lz4", clevel=1, shuffle="bitshuffle"),
        fill_value=0,
    )


@torch.no_grad()
def _write_rows(
    group: Any,
    rows: range,
    pictures: Pictures,
    codec: LatentCodec,
    clip: Clip | None,
    settings: PrecomputeSettings,
) -> None:
    views = torch.stack(
        [
            as_tensor(picture, settings.image_size, crop)
            for row, picture in ((row, decode(pictures.read(row), pictures.names[row])) for row in rows)
            for crop in crops_of(row, settings.crops, settings.crop_share, settings.seed)
        ]
    )
    batches = (batch.to(codec.vae.device) for batch in views.split(settings.batch_size))
    encoded = [(codec.encode(batch), None if clip is None else clip.of_images(batch)) for batch in batches]
    results = {
        "mean": torch.cat([latents.mean for latents, _ in encoded]),
        "std": torch.cat([latents.std for latents, _ in encoded]),
    }
    if clip is not None:
        results["image"] = torch.cat([features for _, features in encoded if features is not None])
    for name, values in results.items():
        group[name][rows.start : rows.stop] = (
            values.cpu().numpy().reshape(len(rows), settings.crops, *values.shape[1:])
        )
    if clip is not None:
        captions = clip.of_captions([pictures.captions[row] for row in rows])
        group["caption"][rows.start : rows.stop] = captions.cpu().numpy()


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
