"""`python -m ddscale.training.run_folder RECIPE [--set key.path=value ...]` prints the recipe's run folder.

For scripts that look after a run, such as launchers/slurm/train.sbatch.
"""

from __future__ import annotations

import argparse
import sys

from ddscale import recipes


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE")
    given = parser.parse_args()
    try:
        run = recipes.read(given.recipe, given.set).get("run")
        if not isinstance(run, str):
            raise recipes.RecipeError(
                f"{given.recipe}: no `run:` key. Name the run's folder, such as `run: runs/a`."
            )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
