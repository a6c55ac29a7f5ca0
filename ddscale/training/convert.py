"""Make a checkpoint loadable at another number of ranks: `python -m ddscale.training.convert RUN/checkpoints/step-...`.

DeepSpeed's own conversion (ds_to_universal) with what it lacks: the source is verified before, and the result is
sealed and published under the same name; the original stays beside it as `step-....native`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import torch

from ddscale.training.checkpoints import NATIVE, TEMPORARY, Checkpoints
from ddscale.training.ownership import only_run_in
from ddscale.training.ranks import USER_ERRORS, Ranks, quiet_deepspeed


class Converted(NamedTuple):
    """What became of a checkpoint."""

    original: Path
    """Where the files as they were trained lie."""
    averages_lost: bool
    """Whether its run keeps running averages of the weights, which DeepSpeed's conversion leaves behind."""


def convert(path: Path, workers: int = 2) -> Converted:
    """Convert the checkpoint at `path`, in a run's folder that nobody trains into meanwhile.

    Raises ValueError when a run is there, when it is damaged, was trained at stage 0, or is converted already. Averages
    of weights are not carried over: they begin anew from the weights.
    """
    _check_there(path.parent, path)  # before the run's folder is made to be locked
    alone = Ranks(0, 1, 0, 1, torch.device("cpu"))
    checkpoints = Checkpoints(path.parent, 1, alone)
    with only_run_in(path.parent.parent):
        checkpoints.remove_leftovers()
        _check_there(path, path)
        problems, state = checkpoints.verify(path)
        if problems:
            raise ValueError(f"{path} is damaged ({'; '.join(problems[:3])}): convert an older checkpoint.")
        if state["zero_stage"] == 0:
            raise ValueError(
                f"{path} was trained at zero_stage 0, which any number of ranks continues as it is."
            )
        if state["universal"]:
            raise ValueError(f"{path} is converted already: start training with it.")
        temporary = path.with_name(f"{TEMPORARY}{path.name}")
        _with_deepspeed(path, temporary, workers)
        checkpoints.seal(temporary, {**state, "universal": True})
        original = path.with_name(f"{path.name}{NATIVE}")
        if original.exists():
            shutil.rmtree(original)
        os.rename(path, original)
        os.rename(temporary, path)
    return Converted(original, bool(state["identity"].get("ema")))


def _check_there(folder: Path, checkpoint: Path) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no checkpoint at {checkpoint}: name a folder RUN/checkpoints/step-..."
        )


def _with_deepspeed(path: Path, out: Path, workers: int) -> None:
    quiet_deepspeed()
    from deepspeed.checkpoint import ds_to_universal

    arguments = argparse.Namespace(
        input_folder=str(path), output_folder=str(out), num_extract_workers=workers, num_merge_workers=workers,
        keep_temp_folder=False, strict=True, inject_missing_state=False,
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ds_to_universal.main(arguments)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m ddscale.training.convert")
    parser.add_argument("checkpoint", type=Path, help="such as runs/first/checkpoints/step-00000500")
    parser.add_argument(
        "--workers", type=int, default=2, help="processes, each of which holds part of the weights"
    )
    given = parser.parse_args()
    try:
        original, averages_lost = convert(given.checkpoint.resolve(), given.workers)
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")
    if averages_lost:
        print(
            "the running average of the weights (`ema`) is not carried over: it begins anew from this step's weights"
        )
    print(f"{given.checkpoint}: can be continued at any number of ranks; the original is {original.name}")


if __name__ == "__main__":
    main()
