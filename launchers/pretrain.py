"""Pretrain an encoder: `deepspeed [launcher options] launchers/pretrain.py RECIPE [--set key.path=value ...]`."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

from ddscale import recipes
from ddscale.reporting.progress import Progress
from ddscale.training.pretraining import pretrain
from ddscale.training.ranks import session
from ddscale.training.runs import Display
from ddscale.training.settings import PretrainRecipe
from ddscale.training.telemetry import headline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", help="a recipe, such as recipes/pretrain/demo.yaml")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="override one setting"
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # passed by the launcher
    given = parser.parse_args()
    with session() as ranks, contextlib.ExitStack() as shown:
        with ranks.agreeing():
            recipe = recipes.load(given.recipe, PretrainRecipe, given.set)
        display = Display()
        if ranks.is_main:
            progress = shown.enter_context(Progress("steps"))

            def on_row(row: dict[str, Any]) -> None:
                progress.update(row["step"], recipe.steps, headline(row))

            display = Display(say=lambda line: print(line, flush=True), on_row=on_row)
        stopped_by = pretrain(recipe, ranks, display)
        if stopped_by:
            display.say(f"stopped by {stopped_by}, with a checkpoint; the same command continues")
        display.say(f"run: {recipe.run}")


if __name__ == "__main__":
    main()
