"""Build TensorRT engines from an export: `python export/to_tensorrt.py RECIPE|FOLDER [--flavour rtx] [--target ada]`.

On a machine with that GPU, golden inputs are then replayed and latencies measured.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from ddscale import recipes
from ddscale.deploy.recipe import EngineSettings, ExportRecipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("export", type=Path, help="a recipe, or a folder that export/to_onnx.py wrote")
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="with a recipe")
    parser.add_argument("--flavour", choices=["rtx", "datacentre"], help="rtx needs no GPU to build")
    parser.add_argument("--target", help="turing, ampere, ada, blackwell, sm75 to sm121, or here")
    given = parser.parse_args()
    settings, folder = EngineSettings(), given.export
    if not folder.is_dir():
        recipe = recipes.load(folder, ExportRecipe, given.set)
        settings, folder = recipe.engines, Path(recipe.out) / recipe.engines.precision

    from ddscale.deploy.replaying import measure_latency, replay_golden
    from ddscale.deploy.tensorrt import build_engines, gpu_here

    flavour, target = given.flavour or settings.flavour, given.target or settings.target
    engines = build_engines(folder, flavour, target, lambda line: print(line, flush=True))
    print(f"engines: {engines}")
    if not engines.name.endswith(f"-{gpu_here()}"):
        print(f"built, not run: the GPU of this machine is {gpu_here() or 'none'}")
        return
    for one in replay_golden(folder, "tensorrt"):
        print(f"{one.graph}/{one.output}: {one.error:.2g} from golden, limit {one.tolerance:.2g}")
    for latency in measure_latency(folder, "tensorrt"):
        print(f"{latency.graph}, batch of {latency.batch}: {latency.median_ms:.2f} ms")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if os.environ.get("DDSCALE_TRACEBACK"):
            raise
        sys.exit(f"error: {error}")
