"""An exported generator beside PyTorch, at a sixth of Stable Diffusion 1.5's size: random weights, 256 x 256 pictures.

`python tests/benchmarks/bench_deploy.py [FOLDER]` exports (minutes), measures, prints a table and writes
bench/deploy.json and bench/deploy.png. FOLDER: where pipeline and export are kept, and found again.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

SIZES = {"block_out_channels": (128, 256, 512, 512), "cross_attention_dim": 768, "attention_head_dim": 8}
ENCODER = {"n_channels": 128, "n_samples": 512, "patch": 4, "width": 768, "depth": 12, "heads": 12}


def make(folder: Path) -> Path:
    """The pipeline, the tiny decoder and the export below `folder`. Returns the export."""
    import torch
    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

    from ddscale.deploy.exporting import export
    from ddscale.deploy.recipe import ExportRecipe
    from ddscale.diffusion.conditioning import EEGConditioner
    from ddscale.diffusion.pipeline import EEGToImagePipeline
    from ddscale.diffusion.reference_sizes import SD15_VAE
    from ddscale.diffusion.toy import build_scheduler

    torch.manual_seed(0)
    conditioner = EEGConditioner(
        encoder_sizes=ENCODER,
        clip_width=None,
        sfreq=256.0,
        normalisation={"kind": "zscore", "clip": 15.0, "eps_uv": 0.1},
    )
    unet = UNet2DConditionModel(sample_size=32, **SIZES)
    vae = AutoencoderKL(**(SD15_VAE | {"sample_size": 256}))
    EEGToImagePipeline(vae, unet, build_scheduler(), conditioner).save_pretrained(folder / "pipeline")
    AutoencoderTiny().save_pretrained(folder / "tiny")
    recipe = {
        "source": str(folder / "pipeline"),
        "out": str(folder / "export"),
        "tiny_decoder": str(folder / "tiny"),
        "schedules": [{"name": "dpmsolver++", "steps": 4}],
    }
    export(ExportRecipe.model_validate(recipe), print)
    return folder / "export"


def run(folder: Path | None = None) -> dict[str, Any]:
    """Export unless `folder` has it, measure, and write the picture."""
    from rich.console import Console

    from ddscale.deploy.benchmark.measuring import Settings, benchmark
    from ddscale.deploy.benchmark.showing import as_table, conclusions, plot

    with tempfile.TemporaryDirectory() as temporary:
        root = folder or Path(temporary)
        export = root / "export" if (root / "export").is_dir() else make(root)
        settings = Settings(
            rounds=9,
            original=True,
            original_rounds=1,
            tiny_decoder=str(root / "tiny"),
            threads=int(os.environ.get("OMP_NUM_THREADS", "0")),
            compiled=os.environ.get("DDSCALE_BENCH_COMPILE", "1") == "1",
        )
        result = benchmark(export, settings, print)
    out = Path("bench")
    out.mkdir(exist_ok=True)
    plot(result, out / "deploy.png")
    result.save(out / "deploy.json")
    Console(width=140).print(as_table(result))
    print("\n".join(conclusions(result)))
    return dataclasses.asdict(result)


if __name__ == "__main__":
    run(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
