"""CLIP's projected features of pictures and captions, by transformers, without torchvision.

Shape letters: B batch, H and W a picture's, N tokens, D feature width.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from ddscale.diffusion.folders import component_class, find_component

# One bar for each model that is read would drown what a command says; Progress shows what takes time.
transformers_logging.disable_progress_bar()

# Of OpenAI's CLIP, for folders that do not state theirs.
_MEAN = [0.48145466, 0.4578275, 0.40821073]
_STD = [0.26862954, 0.26130258, 0.27577711]


def image_features(model: CLIPModel, standardised_B3HW: Tensor) -> Tensor:
    """Projected features (B, D) of pictures that are standardised as the model expects; not of unit length."""
    # Not get_image_features: what it returns differs between versions of transformers.
    features: Tensor = model.visual_projection(
        model.vision_model(pixel_values=standardised_B3HW).pooler_output
    )
    return features


def text_features(model: CLIPModel, tokens_BN: Tensor) -> Tensor:
    """Projected features (B, D) of tokenised captions; not of unit length."""
    features: Tensor = model.text_projection(model.text_model(input_ids=tokens_BN).pooler_output)
    return features


@torch.no_grad()
def caption_states(folder: str | Path, captions: Sequence[str]) -> Tensor:
    """What a Stable Diffusion folder's U-Net gets for captions: hidden states (B, N, D) of its text encoder.

    Raises FileNotFoundError when there is no text encoder or tokenizer in the folder.
    """
    path = find_component(folder, "text_encoder")
    tokenizer_path = Path(folder) / "tokenizer"
    if not tokenizer_path.is_dir():
        raise FileNotFoundError(f"no tokenizer in {folder}: give a whole Stable Diffusion folder.")
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_path, local_files_only=True)
    model = CLIPTextModel.from_pretrained(path, local_files_only=True).eval()
    tokens = tokenizer(
        list(captions),
        padding="max_length",
        truncation=True,
        max_length=tokenizer.model_max_length,
        return_tensors="pt",
    )
    states: Tensor = model(tokens.input_ids).last_hidden_state
    return states


class Clip:
    """A whole CLIP from a folder, giving features of unit length."""

    def __init__(self, folder: str | Path) -> None:
        """folder: as transformers' save_pretrained writes it, or a pipeline's with `clip/` in it.

        Raises FileNotFoundError or ValueError when there is no CLIPModel in it.
        """
        path = find_component(folder, "clip")
        if (kind := component_class(path)) != "CLIPModel":
            raise ValueError(
                f"{path} holds a {kind}, not a CLIPModel: give the folder of a whole CLIP, text and vision, such as "
                "a local copy of openai/clip-vit-large-patch14."
            )
        self.folder = path
        self.model = CLIPModel.from_pretrained(path, local_files_only=True).eval().requires_grad_(False)
        self.tokenizer = CLIPTokenizer.from_pretrained(path, local_files_only=True)
        self.size = int(self.model.config.vision_config.image_size)
        self.width = int(self.model.config.projection_dim)
        stated: dict[str, list[float]] = {}
        if (path / "preprocessor_config.json").is_file():
            stated = json.loads((path / "preprocessor_config.json").read_text(encoding="utf-8"))
        self._mean = torch.tensor(stated.get("image_mean", _MEAN))[:, None, None]
        self._std = torch.tensor(stated.get("image_std", _STD))[:, None, None]

    @torch.no_grad()
    def of_images(self, pictures_B3HW: Tensor) -> Tensor:
        """pictures: float in -1..1, squares of any size. Returns (B, D), unit length."""
        resized = pictures_B3HW
        if resized.shape[-1] != self.size:
            resized = F.interpolate(
                resized, size=(self.size, self.size), mode="bicubic", antialias=True, align_corners=False
            ).clamp(-1, 1)
        mean, std = self._mean.to(resized.device), self._std.to(resized.device)
        return F.normalize(image_features(self.model, (resized / 2 + 0.5 - mean) / std), dim=1)

    @torch.no_grad()
    def of_captions(self, captions: Sequence[str]) -> Tensor:
        """Returns (B, D), unit length; long captions are cut at the model's number of tokens."""
        tokens = self.tokenizer(
            list(captions),
            padding="max_length",
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )
        return F.normalize(text_features(self.model, tokens.input_ids.to(self.model.device)), dim=1)
