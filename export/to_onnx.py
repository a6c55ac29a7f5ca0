"""Export a trained pipeline or encoder to ONNX: `python export/to_onnx.py RECIPE [--set key.path=value ...]`."""

from __future__ import annotations

import argparse
import os
import sys

from ddscale import recipes
from ddscale.deploy.recipe import ExportRecipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", help="a recipe, such as recipes/export/demo.yaml")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY.PATH=VALUE",
        help="override one setting; repeatable",
    )
    given = parser.parse_args()
    recipe = recipes.load(given.recipe, ExportRecipe, given.set)

    from ddscale.deploy.exporting import export
    from ddscale.deploy.manifest import Manifest

    for folder in export(recipe, lambda line: print(line, flush=True)):
        manifest = Manifest.load(folder)
        print(f"{folder}: {len(manifest.graphs)} graphs, {len(manifest.parity)} checks held")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if os.environ.get("DDSCALE_TRACEBACK"):
            raise
        missing = isinstance(error, ModuleNotFoundError) and error.name
        sys.exit(
            f"error: {error}" + (". Exports need: pip install 'ddscale[diffusion,export]'" if missing else "")
        )
