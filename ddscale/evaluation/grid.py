"""Running a grid: each variant through the deepspeed launcher, past failures, then one comparison."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

import ddscale
from ddscale import recipes
from ddscale.evaluation.comparison import last_rows, measure, write_comparison
from ddscale.evaluation.grid_recipe import GridRecipe, Variant
from ddscale.evaluation.results import write_json

State = Literal["finished", "finished before", "stopped", "failed"]


@dataclass
class Run:
    """One run of the grid and what became of it."""

    variant: Variant
    folder: Path
    state: State = "failed"
    detail: str = ""
    """Why it is not finished, and which metrics it lacks."""
    metrics: dict[str, float | None] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return self.state in ("finished", "finished before")


@dataclass(frozen=True)
class Plan:
    """A run with the recipe it will train, checked."""

    run: Run
    tree: dict[str, Any]
    steps: int

    @property
    def recipe_path(self) -> Path:
        return self.run.folder.with_name(f"{self.run.folder.name}.yaml")

    @property
    def log_path(self) -> Path:
        return self.run.folder.with_name(f"{self.run.folder.name}.log")

    @property
    def mark_path(self) -> Path:
        return self.run.folder / "grid.json"

    @property
    def digest(self) -> str:
        """Of everything the run was asked to be."""
        return hashlib.sha256(json.dumps(self.tree, sort_keys=True).encode()).hexdigest()[:16]


def run_grid(
    recipe: GridRecipe,
    model_of_stage: Callable[[str], type[Any]],
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train what is not trained yet, run the commands that follow, compare; the comparison, as its file holds it.

    model_of_stage: a stage's settings model. A run that fails is reported and the others go on.
    Raises RecipeError, before anything is started, when a variant's recipe is not valid; KeyboardInterrupt once the
    running variant has stopped.
    """
    stage = recipes.stage_of(recipes.read(recipe.base), recipe.base)
    launcher = launcher_of(stage)
    plans = _plans(recipe, model_of_stage(stage))
    for number, plan in enumerate(plans, start=1):
        run = plan.run
        say(f"[{number}/{len(plans)}] {run.variant.run_name}")
        try:
            run.state, run.detail = _bring_to_its_end(plan, recipe, launcher, say)
        except OSError as error:
            run.state, run.detail = "failed", str(error)
        if run.ok:
            run.metrics, missing = measure(run.folder, recipe.metrics)
            run.detail = "; ".join(missing)
        say(
            f"[{number}/{len(plans)}] {run.variant.run_name}: {run.state}{': ' if run.detail else ''}{run.detail}"
        )
        # After every run: a grid takes days, and what is known is wanted before its end.
        comparison = write_comparison(recipe, [plan.run for plan in plans[:number]])
    return comparison


def launcher_of(stage: str) -> Path:
    """The script the deepspeed launcher starts; raises FileNotFoundError when the stage has none here."""
    name = Path("launchers") / f"{stage}.py"
    places = [Path.cwd(), Path(ddscale.__file__).resolve().parents[1]]
    for place in places:
        if (place / name).is_file():
            return place / name
    raise FileNotFoundError(
        f"no {name} in {' or '.join(str(place) for place in places)}: recipes of stage {stage!r} cannot be launched "
        "from here. Run the grid in the project's folder, on a base recipe of a stage that trains."
    )


def _plans(recipe: GridRecipe, model: type[Any]) -> list[Plan]:
    """Every run's recipe, resolved and checked; all that is wrong with any of them at once."""
    plans, problems = [], []
    for variant in recipe.runs():
        folder = Path(recipe.out) / variant.run_name
        try:
            tree = recipes.read(recipe.base, [*variant.overrides, f"run={json.dumps(str(folder))}"])
            checked = recipes.check(tree, model, f"{recipe.base}, variant {variant.run_name}")
        except recipes.RecipeError as error:
            problems.append(str(error))
        else:
            plans.append(Plan(Run(variant, folder), tree, checked.steps))
    if problems:
        raise recipes.RecipeError("\n".join(problems))
    return plans


def _bring_to_its_end(
    plan: Plan, recipe: GridRecipe, launcher: Path, say: Callable[[str], None]
) -> tuple[State, str]:
    """Train and evaluate one run, as far as that is still to do."""
    mark = _read_mark(plan.mark_path)
    if mark and mark["digest"] != plan.digest:
        return "failed", (
            f"{plan.run.folder} was trained with other settings: delete it, or give the grid another `out`."
        )
    worked = not mark
    if not mark:
        plan.run.folder.mkdir(parents=True, exist_ok=True)
        plan.recipe_path.write_text(
            yaml.safe_dump(plan.tree, sort_keys=False, allow_unicode=True), encoding="utf-8"
        )
        code = _call(launch_command(recipe, launcher, plan.recipe_path), plan.log_path)
        if code:
            return "failed", f"the launcher ended with exit code {code}: {_last_words(plan.log_path)}"
        done = last_rows(plan.run.folder).get("step", 0)
        if done < plan.steps:
            return "stopped", f"after {done:g} of {plan.steps} steps; the same command continues"
        mark = {"digest": plan.digest, "trained": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "then": []}
        write_json(plan.mark_path, mark)
    for words in recipe.then:
        command = [word.replace("{run}", str(plan.run.folder)) for word in words]
        if command in mark["then"]:
            continue
        worked = True
        say(f"    ddscale {' '.join(command)}")
        # -P: this installation, not a folder `ddscale` that happens to lie where the grid was started.
        code = _call([sys.executable, "-P", "-m", "ddscale.cli", *command], plan.log_path)
        if code:
            return "failed", f"ddscale {command[0]} ended with exit code {code}: {_last_words(plan.log_path)}"
        mark["then"].append(command)
        write_json(plan.mark_path, mark)
    return "finished" if worked else "finished before", ""


def launch_command(recipe: GridRecipe, launcher: Path, variant_recipe: Path) -> list[str]:
    """The deepspeed launcher of this environment, on a port of its own so that grids may run side by side."""
    return [
        *[sys.executable, "-m", "deepspeed.launcher.runner", "--log_level", "warning"],
        *["--num_accelerators", str(recipe.world_size), "--master_port", str(_free_port())],
        *[*recipe.launcher_arguments, str(launcher), str(variant_recipe)],
    ]


def _call(command: list[str], log: Path) -> int:
    """Run a command to its end, its output added to the log; the exit code."""
    with log.open("a", encoding="utf-8") as output, _stopping_as_ctrl_c():
        output.write(f"$ {' '.join(command)}\n")
        output.flush()
        # In a session of its own: Ctrl-C comes to the grid alone, which passes it on once, to all that it started.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(),
            start_new_session=True,
        )
        try:
            return process.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)  # training writes a checkpoint and ends
            process.wait()
            raise


@contextlib.contextmanager
def _stopping_as_ctrl_c() -> Iterator[None]:
    """A cluster's SIGTERM stops the grid as Ctrl-C does, or its run would be left behind, running."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    # A shell's background job ignores Ctrl-C, and what it starts would inherit that and could not be stopped by it.
    numbers = (signal.SIGTERM, signal.SIGINT)
    try:
        before = {number: signal.signal(number, stop) for number in numbers}
    except ValueError:  # not the main thread: signals are the business of whoever owns it
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _environment() -> dict[str, str]:
    import torch

    environment = dict(os.environ)
    environment.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    return environment


def _read_mark(path: Path) -> dict[str, Any] | None:
    try:
        mark = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return mark if isinstance(mark, dict) and {"digest", "then"} <= mark.keys() else None


def _last_words(log: Path) -> str:
    """The error a run ended with, if it says so, else its last line."""
    text = log.read_text(encoding="utf-8", errors="replace")
    # Usage errors come in a frame of box characters.
    lines = [line.strip("│╭╮╰╯─ ") for line in text.splitlines() if any(map(str.isalnum, line))]
    called = max((at for at, line in enumerate(lines) if line.startswith("$ ")), default=0)
    errors = [line for line in lines[called:] if "error: " in line]
    return f"{(errors or lines)[-1][:300]} (all of it: {log})"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
