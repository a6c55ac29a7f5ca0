"""Weights of the original DreamDiffusion, from checkpoints nobody vouches for.

The original saves whole Python objects (its configuration class) beside the tensors, so that reading a file as
it means to be read runs whatever its author put there. Here a file may name only what rebuilds a tensor; every
other name becomes an inert placeholder that remembers its attributes and can do nothing.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import tarfile
import types
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ddscale.models.config import EncoderConfig, MAEConfig
from ddscale.models.embedding import sine_cosine_positions
from ddscale.models.encoder import EEGEncoder
from ddscale.models.masked_autoencoder import MaskedAutoencoder

_FINE_TUNED_PREFIX = "cond_stage_model."


class DreamDiffusionWeights(NamedTuple):
    """What a checkpoint of the original holds."""

    encoder: EEGEncoder
    """As the original uses it after pretraining: all tokens, no class token."""
    autoencoder: MaskedAutoencoder | None
    """To continue pretraining; None for a fine-tuned checkpoint, which has no decoder."""
    conditioning: dict[str, Tensor]
    """A fine-tuned checkpoint's other EEG weights (channel_mapper, dim_mapper, mapping) under the original's names."""
    source: dict[str, Any]
    """File name, SHA-256, layout and the plain values of the pickled configuration: metadata for save_encoder."""


def load_dreamdiffusion(path: str | os.PathLike[str]) -> DreamDiffusionWeights:
    """Read a pretraining or fine-tuned checkpoint of bbaaii/DreamDiffusion without executing anything in it.

    Windows go in as the original's: µV divided by 10, 128 channels, 512 samples (here time-major).
    Raises FileNotFoundError; ValueError when the file is no PyTorch checkpoint, has neither layout, or its sizes
    do not fit together.
    """
    path = Path(path)
    content = _read_inert(path)
    settings = _plain_attributes(content.get("config"))
    source = {"file": path.name, "sha256": _sha256(path), "config": settings}
    if isinstance(content.get("model"), Mapping):
        state = _tensors(content["model"])
        config = _autoencoder_config(state, settings, path)
        autoencoder = MaskedAutoencoder(config)
        _fill(autoencoder, _autoencoder_state(state, config, path), path)
        encoder = _encoder(state, config.encoder, path)
        return DreamDiffusionWeights(encoder, autoencoder, {}, {**source, "layout": "pretraining"})
    if isinstance(content.get("model_state_dict"), Mapping):
        eeg = _without_prefix(_tensors(content["model_state_dict"]), _FINE_TUNED_PREFIX)
        state = _without_prefix(eeg, "mae.")
        encoder = _encoder(state, _encoder_config(state, settings, path), path)
        conditioning = {name: value for name, value in eeg.items() if not name.startswith("mae.")}
        return DreamDiffusionWeights(encoder, None, conditioning, {**source, "layout": "fine-tuned"})
    raise ValueError(
        f"{path} has the keys {', '.join(sorted(map(str, content))[:8]) or 'none'}: a DreamDiffusion checkpoint has "
        "`model` (pretraining) or `model_state_dict` (fine-tuned)."
    )


# --- reading without executing ---------------------------------------------------------------------------------


class _Inert:
    """Stands for an object of a class or function we do not know; takes whatever is done to it, does nothing."""

    state: dict[str, Any]

    def __new__(cls, *_args: Any, **_kwargs: Any) -> _Inert:
        placeholder = super().__new__(cls)
        placeholder.state = {}
        return placeholder

    def __init__(self, *_args: Any, **_kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.state = state

    def __call__(self, *_args: Any, **_kwargs: Any) -> _Inert:
        return self

    def __setitem__(self, _key: Any, _value: Any) -> None: ...

    def append(self, _value: Any) -> None: ...

    def extend(self, _values: Any) -> None: ...


class _InertUnpickler(pickle.Unpickler):
    """Knows what tensors are rebuilt with. torch.load adds the reading of their storages."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _TENSOR_PARTS:
            return _TENSOR_PARTS[module, name]()
        return type(name.rpartition(".")[2], (_Inert,), {"__module__": module})


def _own_copy(function: Callable[..., Any]) -> Callable[[], Callable[..., Any]]:
    # A new function each time: a pickle may set attributes on what it names, and must not reach torch's own.
    def make() -> Callable[..., Any]:
        def rebuild(*args: Any) -> Any:
            return function(*args)

        return rebuild

    return make


_TENSOR_PARTS: dict[tuple[str, str], Callable[[], Any]] = {
    ("collections", "OrderedDict"): lambda: OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _own_copy(torch._utils._rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _own_copy(torch._utils._rebuild_tensor_v2),
    ("torch._utils", "_rebuild_parameter"): _own_copy(torch._utils._rebuild_parameter),
}


def _read_inert(path: Path) -> dict[Any, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}.")
    with path.open("rb") as file:
        beginning = file.read(4)
    is_zip = beginning == b"PK\x03\x04"
    # What else torch.load would open is refused first: tar archives, which it unpacks, and TorchScript programs.
    if not is_zip and (not beginning.startswith(b"\x80") or tarfile.is_tarfile(path)):
        raise ValueError(f"{path} is not a PyTorch checkpoint: it is neither a zip archive nor a pickle.")
    if is_zip and "constants.pkl" in _records(path):
        raise ValueError(f"{path} is a TorchScript program: save its state dict with torch.save instead.")
    readers = types.SimpleNamespace(Unpickler=_InertUnpickler, load=_load_pickle, __name__="inert pickle")
    try:
        # Mapped, so that the optimiser's state and the U-Net beside the encoder are never read.
        content = torch.load(path, "cpu", pickle_module=readers, weights_only=False, mmap=is_zip)
    except _UNREADABLE as error:
        raise ValueError(f"{path} cannot be read as a PyTorch checkpoint: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} holds a {type(content).__name__}, a DreamDiffusion checkpoint is a dictionary."
        )
    return content


_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    TypeError,
    AttributeError,
    ValueError,
    LookupError,
)


def _records(path: Path) -> list[str]:
    """Members of the archive as torch.load's own reader finds them, which zipfile might see differently."""
    try:
        return torch._C.PyTorchFileReader(str(path)).get_all_records()
    except RuntimeError as error:
        raise ValueError(
            f"{path} is a damaged archive, or not one of PyTorch's: {_first_line(error)}. Download it again."
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _load_pickle(file: Any, **options: Any) -> Any:
    return _InertUnpickler(file, **options).load()


def _plain_attributes(config: Any) -> dict[str, Any]:
    """Numbers, texts and switches among the attributes of the pickled configuration."""
    state = config.state if isinstance(config, _Inert) else config if isinstance(config, dict) else {}
    return {
        str(name): value
        for name, value in state.items()
        if value is None or type(value) in (bool, int, float, str)
    }


def _tensors(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {str(name): value for name, value in state.items() if isinstance(value, Tensor)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _without_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


# --- the original's names and layouts --------------------------------------------------------------------------


def _encoder_config(state: Mapping[str, Tensor], settings: Mapping[str, Any], path: Path) -> EncoderConfig:
    return EncoderConfig(**_encoder_sizes(state, settings, path), class_token=False)


def _autoencoder_config(state: Mapping[str, Tensor], settings: Mapping[str, Any], path: Path) -> MAEConfig:
    sizes = _encoder_sizes(state, settings, path)
    decoder_width = _get(state, "decoder_embed.weight", path).shape[0]
    decoder_ratio = _get(state, "decoder_blocks.0.mlp.fc1.weight", path).shape[0] / decoder_width
    # Both widths were multiplied by one ratio and rounded down: the larger quotient gives both back.
    sizes["mlp_ratio"] = max(sizes["mlp_ratio"], decoder_ratio)
    mask_ratio = settings.get("mask_ratio")
    return MAEConfig(
        **sizes,
        decoder_width=decoder_width,
        decoder_depth=_depth(state, "decoder_blocks"),
        decoder_heads=int(settings.get("decoder_num_heads") or 16),
        mask_ratio=float(mask_ratio) if mask_ratio else 0.75,
    )


def _encoder_sizes(state: Mapping[str, Tensor], settings: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Sizes from the weights' shapes; the number of heads leaves no trace there, the released models have 16."""
    width, channels, patch = _get(state, "patch_embed.proj.weight", path).shape
    return {
        "n_channels": channels,
        "n_samples": patch * (_get(state, "pos_embed", path).shape[1] - 1),
        "patch": patch,
        "width": width,
        "depth": _depth(state, "blocks"),
        "heads": int(settings.get("num_heads") or 16),
        "mlp_ratio": _get(state, "blocks.0.mlp.fc1.weight", path).shape[0] / width,
    }


def _depth(state: Mapping[str, Tensor], blocks: str) -> int:
    numbers = [re.match(rf"{blocks}\.(\d+)\.", name) for name in state]
    return 1 + max((int(number[1]) for number in numbers if number), default=0)


def _get(state: Mapping[str, Tensor], name: str, path: Path) -> Tensor:
    if name not in state:
        raise ValueError(
            f"{path} has no weight {name}: it is not a checkpoint of DreamDiffusion's EEG model."
        )
    return state[name]


def _encoder(state: Mapping[str, Tensor], config: EncoderConfig, path: Path) -> EEGEncoder:
    encoder = EEGEncoder(config.model_copy(update={"class_token": False}))  # as the original uses it
    _fill(encoder, _encoder_state(state, config, path), path)
    return encoder


def _encoder_state(state: Mapping[str, Tensor], config: EncoderConfig, path: Path) -> dict[str, Tensor]:
    _check_positions(state, "pos_embed", config.n_tokens, config.width, path)
    weight_DCp = _get(state, "patch_embed.proj.weight", path)
    renamed = {
        # A patch is time-major here: sample by sample, all channels of each.
        "projection.weight": weight_DCp.permute(0, 2, 1).flatten(1),
        "projection.bias": _get(state, "patch_embed.proj.bias", path),
    }
    for name, value in state.items():
        if name.startswith(("blocks.", "norm.")):
            renamed[f"transformer.{name}"] = value
    return renamed


def _autoencoder_state(state: Mapping[str, Tensor], config: MAEConfig, path: Path) -> dict[str, Tensor]:
    _check_positions(state, "decoder_pos_embed", config.n_tokens, config.decoder_width, path)
    renamed = {
        f"encoder.{name}": value for name, value in _encoder_state(state, config.encoder, path).items()
    }
    renamed["encoder.class_token.token"] = _get(state, "cls_token", path)
    renamed["decoder.mask_token.token"] = _get(state, "mask_token", path)
    for name, value in state.items():
        for original, ours in _DECODER_NAMES.items():
            if name.startswith(original):
                renamed[f"decoder.{ours}{name.removeprefix(original)}"] = value
    return renamed


_DECODER_NAMES = {
    "decoder_embed.": "embed.",
    "decoder_blocks.": "transformer.blocks.",
    "decoder_norm.": "transformer.norm.",
    "decoder_pred.": "predict.",
}


def _check_positions(state: Mapping[str, Tensor], name: str, n_tokens: int, width: int, path: Path) -> None:
    """The original keeps its fixed positions among the weights; ours are computed, so they must be the same."""
    table = _get(state, name, path)
    if table.shape != (1, n_tokens + 1, width) or not torch.allclose(
        table[0].float(), sine_cosine_positions(n_tokens, width), atol=2e-3
    ):
        raise ValueError(
            f"{path}: {name} {tuple(table.shape)} is not the original's sine-cosine table for {n_tokens} tokens of "
            f"width {width}: the model was changed, and cannot be loaded as DreamDiffusion's."
        )


def _fill(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Copy the weights in as float32; raises ValueError unless they are the model's, each in its shape."""
    wanted = model.state_dict()
    wrong = sorted(
        name
        for name in wanted.keys() | state.keys()
        if name not in wanted or name not in state or wanted[name].shape != state[name].shape
    )
    if wrong:
        raise ValueError(
            f"{path}: {len(wrong)} weights are missing, too many or of another shape, first {wrong[0]} (as named "
            "in ddscale): the checkpoint is incomplete, or of a changed model."
        )
    model.load_state_dict({name: value.float() for name, value in state.items()})
    model.eval()
