"""A model as a folder: `model.safetensors` with the weights, `config.json` that says what they are.

config.json names the kind of model, its sizes, the number of parameters, the SHA-256 of the weights and where
they came from. Loading checks all of it, and executes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ddscale.models.config import EncoderConfig, MAEConfig
from ddscale.models.encoder import EEGEncoder
from ddscale.models.masked_autoencoder import MaskedAutoencoder
from ddscale.recipes import Settings

SCHEMA_VERSION = 1
WEIGHTS = "model.safetensors"
DESCRIPTION = "config.json"


class ModelDescription(Settings):
    """Contents of config.json."""

    schema_version: int
    """Version of this layout."""
    kind: Literal["eeg_encoder", "masked_autoencoder"]
    """Which model the weights belong to."""
    config: dict[str, Any]
    """Sizes of the model: EncoderConfig or MAEConfig."""
    parameters: int
    """How many numbers are learned."""
    sha256: str
    """Of the weights file."""
    metadata: dict[str, Any] = Field(default_factory=dict)
    """Where it came from: checkpoint, store, normalisation, sampling rate; whatever the writer knew."""


M = TypeVar("M", bound=nn.Module)


def save_encoder(
    encoder: EEGEncoder, folder: str | os.PathLike[str], metadata: Mapping[str, Any] | None = None
) -> Path:
    """Write an encoder folder; each file appears whole or not at all. Returns the folder.

    metadata: JSON-able facts to keep with it, such as the source checkpoint's hash and the normalisation.
    """
    return _save(encoder, "eeg_encoder", encoder.config.model_dump(mode="json"), folder, metadata)


def save_autoencoder(
    autoencoder: MaskedAutoencoder, folder: str | os.PathLike[str], metadata: Mapping[str, Any] | None = None
) -> Path:
    """Write an autoencoder, decoder included, as save_encoder does an encoder."""
    config = autoencoder.config.model_dump(mode="json")
    return _save(autoencoder, "masked_autoencoder", config, folder, metadata)


def load_encoder(folder: str | os.PathLike[str]) -> EEGEncoder:
    """The encoder of a folder that save_encoder wrote, in evaluation mode on the CPU.

    Raises FileNotFoundError when a file is not there, ValueError when the folder holds something else, another
    version, weights that do not match their checksum or sizes.
    """
    description = describe(folder)
    _expect(description, "eeg_encoder", folder, "save_encoder")
    return _load(folder, description, EEGEncoder(_config(EncoderConfig, description, folder)))


def load_autoencoder(folder: str | os.PathLike[str]) -> MaskedAutoencoder:
    """The autoencoder of a folder that save_autoencoder wrote; raises as load_encoder does."""
    description = describe(folder)
    _expect(description, "masked_autoencoder", folder, "save_autoencoder")
    return _load(folder, description, MaskedAutoencoder(_config(MAEConfig, description, folder)))


def describe(folder: str | os.PathLike[str]) -> ModelDescription:
    """What a model folder says it holds, without reading the weights."""
    path = Path(folder) / DESCRIPTION
    if not path.is_file():
        raise FileNotFoundError(
            f"no {DESCRIPTION} in {folder}: a model folder has {DESCRIPTION} and {WEIGHTS}. "
            "A pretraining run keeps its encoder in RUN/encoder."
        )
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}): export the model again.") from error
    version = tree.get("schema_version") if isinstance(tree, dict) else None
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema version {version!r}, this ddscale reads {SCHEMA_VERSION}: use the ddscale that "
            "wrote it, or export the model again."
        )
    try:
        return ModelDescription.model_validate(tree)
    except ValidationError as error:
        raise ValueError(f"{path} does not describe a model: {error}") from error


def _save(
    model: nn.Module,
    kind: Literal["eeg_encoder", "masked_autoencoder"],
    config: dict[str, Any],
    folder: str | os.PathLike[str],
    metadata: Mapping[str, Any] | None,
) -> Path:
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    partitioned = [name for name, value in state.items() if value.numel() == 0]
    if partitioned:
        raise ValueError(
            f"the weights are partitioned over ranks ({partitioned[0]} is empty here): consolidate the ZeRO-3 "
            "checkpoint first, and load it into a plain model."
        )
    temporary = target / f".{WEIGHTS}.tmp"
    save_file(state, temporary)
    with temporary.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    description = ModelDescription(
        schema_version=SCHEMA_VERSION,
        kind=kind,
        config=config,
        parameters=sum(p.numel() for p in model.parameters()),
        sha256=sha256,
        metadata=dict(metadata or {}),
    )
    temporary.replace(target / WEIGHTS)
    # The description comes last: should the process die in between, its checksum tells that the two differ.
    temporary = target / f".{DESCRIPTION}.tmp"
    with temporary.open("w", encoding="utf-8") as text:
        text.write(json.dumps(description.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n")
        text.flush()
        os.fsync(text.fileno())
    temporary.replace(target / DESCRIPTION)
    return target


def _expect(description: ModelDescription, kind: str, folder: str | os.PathLike[str], writer: str) -> None:
    if description.kind != kind:
        raise ValueError(f"{folder} holds a {description.kind}, not a {kind} (a folder written by {writer}).")


C = TypeVar("C", EncoderConfig, MAEConfig)


def _config(model: type[C], description: ModelDescription, folder: str | os.PathLike[str]) -> C:
    try:
        return model.model_validate(description.config)
    except ValidationError as error:
        raise ValueError(
            f"{Path(folder) / DESCRIPTION}: the sizes are not those of a {description.kind}: {error}"
        ) from error


def _load(folder: str | os.PathLike[str], description: ModelDescription, model: M) -> M:
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has a {DESCRIPTION} but no {WEIGHTS}: copy the whole folder again."
        )
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != description.sha256:
        raise ValueError(
            f"{path} is not the file {DESCRIPTION} describes: SHA-256 {sha256[:16]}... instead of "
            f"{description.sha256[:16]}.... It was damaged or replaced: copy or export the folder again."
        )
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file ({error}): export the model again.") from error
    wanted = model.state_dict()
    wrong = [f"{name} is missing" for name in wanted.keys() - state.keys()]
    wrong += [f"{name} is unknown" for name in state.keys() - wanted.keys()]
    wrong += [
        f"{name} is {tuple(state[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in wanted.keys() & state.keys()
        if state[name].shape != wanted[name].shape
    ]
    if wrong:
        shown = "; ".join(sorted(wrong)[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise ValueError(f"{path} does not fit the sizes in {DESCRIPTION}: {shown}. Export the model again.")
    with torch.no_grad():
        model.load_state_dict(state)
    return model.eval()
