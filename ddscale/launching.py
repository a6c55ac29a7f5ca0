"""What the scripts under `launchers/` share: arguments, the recipe, progress, the end of a run."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ddscale import recipes
from ddscale.reporting.progress import Progress
from ddscale.training.ranks import Ranks, session
from ddscale.training.runs import Display
from ddscale.training.settings import TrainingSettings
from ddscale.training.telemetry import headline

R = TypeVar("R", bound=TrainingSettings)

FINISHED_FILE = "DDSCALE_FINISHED_FILE"
"""Environment variable that names a file to make when all steps are done and the results are written.

For a scheduler: an exit code of 0 does not tell this from a run that was stopped with a checkpoint.
"""


def launch(
    description: str | None, recipe_model: type[R], train: Callable[[R, Ranks, Display], str | None]
) -> None:
    """Run one rank: `train(recipe, ranks, display)` returns None when done, or what stopped it."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("recipe", help="a recipe of this stage, such as those under recipes/")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="override one setting"
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # passed by the launcher
    given = parser.parse_args()
    with session() as ranks, contextlib.ExitStack() as shown:
        with ranks.agreeing():
            recipe = recipes.load(given.recipe, recipe_model, given.set)
        display = Display()
        if ranks.is_main:
            progress = shown.enter_context(Progress("steps"))

            def on_row(row: dict[str, Any]) -> None:
                progress.update(row["step"], recipe.steps, headline(row))

            display = Display(say=lambda line: print(line, flush=True), on_row=on_row)
        stopped_by = train(recipe, ranks, display)
        if stopped_by:
            display.say(f"stopped by {stopped_by}, with a checkpoint; the same command continues")
        elif finished := os.environ.get(FINISHED_FILE):
            Path(finished).touch()
        display.say(f"run: {recipe.run}")
