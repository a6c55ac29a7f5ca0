"""Finding a part in the folders that diffusers and transformers write; nothing is ever downloaded."""

from __future__ import annotations

import json
from pathlib import Path


def find_component(folder: str | Path, name: str) -> Path:
    """The folder of a pipeline's part: `folder`/`name`, or `folder` itself when that is the part.

    Raises FileNotFoundError when neither has a config.json.
    """
    root = Path(folder)
    for candidate in (root / name, root):
        if (candidate / "config.json").is_file():
            return candidate
    if name == "clip":
        raise FileNotFoundError(
            f"no whole CLIP in {root}: neither clip/config.json nor config.json is there, and a Stable Diffusion comes "
            "without one. Set clip_model to a local copy of openai/clip-vit-large-patch14, text and vision."
        )
    raise FileNotFoundError(
        f"no {name} in {root}: neither {name}/config.json nor config.json is there. Give a folder as diffusers' "
        "save_pretrained writes it, such as a local copy of Stable Diffusion."
    )


def component_class(folder: Path) -> str:
    """The class that config.json names, as diffusers (`_class_name`) or transformers (`architectures`) writes it."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return str(config.get("_class_name") or (config.get("architectures") or ["model of unknown class"])[0])
