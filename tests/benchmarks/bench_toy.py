"""The toy Stable Diffusion with its default settings: time to train, and whether captions decide the digit.

`python tests/benchmarks/bench_toy.py` prints a table, writes bench/toy.json and pictures beside it. The judge is a
support vector machine on real digits; the held-out fifth of the digits is used by nothing else.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

GUIDANCE = (1.0, 2.0, 3.0, 5.0)
PER_DIGIT = 20


def run(pictures: Path | None = None) -> dict[str, Any]:
    """Train, draw 200 captions at each guidance, judge. pictures: where to put a grid for each guidance."""
    import numpy as np
    import torch
    from diffusers import StableDiffusionPipeline
    from PIL import Image

    from ddscale.diffusion.codec import LatentCodec
    from ddscale.diffusion.generate import grid_of
    from ddscale.diffusion.toy_digits import caption_of, load_digits
    from ddscale.diffusion.toy_training import train_toy
    from ddscale.metrics.class_judge import ClassJudge

    digits = load_digits()
    train, held_out = ~digits.held_out, digits.held_out
    names = np.array([str(label) for label in digits.labels])
    judge = ClassJudge(digits.images[train], list(names[train]))
    seconds: dict[str, float] = {}
    last = [time.perf_counter(), time.process_time()]

    def on_progress(part: str, step: int, steps: int, loss: float) -> None:
        if step == steps:
            now = [time.perf_counter(), time.process_time()]
            seconds[part], seconds[f"{part}_cpu"] = now[0] - last[0], now[1] - last[1]
            last[:] = now

    with tempfile.TemporaryDirectory() as folder:
        train_toy(
            folder,
            digits.images[train],
            [caption_of(label) for label in digits.labels[train].tolist()],
            on_progress=on_progress,
        )
        pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
        facts = json.loads((Path(folder) / "toy.json").read_text())
    pipeline.set_progress_bar_config(disable=True)
    codec = LatentCodec(pipeline.vae)
    real = torch.from_numpy(digits.images[held_out]).float() / 127.5 - 1
    with torch.no_grad():
        restored = codec.decode(codec.scaled(codec.encode(real).mean)).clamp(-1, 1)
    labels = np.arange(10 * PER_DIGIT) % 10
    accuracy = {}
    for guidance in GUIDANCE:
        images = pipeline(
            [caption_of(label) for label in labels.tolist()],
            num_inference_steps=10,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(0),
        ).images
        drawn = np.stack([np.asarray(image) for image in images]).transpose(0, 3, 1, 2)
        accuracy[f"guidance_{guidance:g}"] = float(
            judge.right(drawn, [str(label) for label in labels]).mean()
        )
        if pictures is not None:
            sheet = grid_of([images[row * 10 : row * 10 + 10] for row in range(6)])
            sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.NEAREST).save(
                pictures / f"toy_guidance_{guidance:g}.png"
            )
    return {
        "threads": torch.get_num_threads(),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "parameters": facts["parameters"],
        "judge_on_held_out_real_digits": float(
            judge.right(digits.images[held_out], list(names[held_out])).mean()
        ),
        "vae_psnr_db_on_held_out": float(
            -10 * ((restored - real) / 2).square().mean(dim=(1, 2, 3)).log10().mean()
        ),
        "scaling_factor": codec.scale,
        "right_digit": accuracy,
    }


def main() -> None:
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
    folder = Path("bench")
    folder.mkdir(exist_ok=True)
    result = run(folder)
    (folder / "toy.json").write_text(json.dumps(result, indent=2) + "\n")
    for name, value in result.items():
        print(f"{name:32} {value}")
    print(f"written: {folder / 'toy.json'}, {folder}/toy_guidance_*.png")


if __name__ == "__main__":
    main()
