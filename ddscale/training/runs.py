"""A run from its recipe to its results: set-up, resume, loop, export, and the run folder they share."""

from __future__ import annotations

import contextlib
import importlib.metadata
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddscale.training import deepspeed_config, resume
from ddscale.training.checkpoints import Checkpoint, Checkpoints
from ddscale.training.engine import build_engine, check
from ddscale.training.export import averaged_weights, full_weights
from ddscale.training.faults import FaultLog, Injection
from ddscale.training.loop import Task, train
from ddscale.training.optimiser import hyperparameters, restate
from ddscale.training.ownership import only_run_in
from ddscale.training.ranks import Ranks
from ddscale.training.settings import TrainingSettings
from ddscale.training.telemetry import Telemetry, finite, host, validation_line, write_provenance
from ddscale.training.throughput import peak_flops
from ddscale.training.tolerance import Tolerated
from ddscale.training.watchdog import Watchdog


@dataclass
class Display:
    """Where a run tells a person about itself; silent unless told otherwise."""

    say: Callable[[str], None] = field(default=lambda line: None)
    """One line that should stay."""
    on_row: Callable[[dict[str, Any]], None] = field(default=lambda row: None)
    """A step's metrics."""
    doing: Callable[[str], None] = field(default=lambda what: None)
    """That a task got on with what it does before the first step; `run` passes it to the watchdog."""


def run(
    settings: TrainingSettings, make_task: Callable[[], Task], ranks: Ranks, display: Display
) -> str | None:
    """Start or continue the run that `settings` describe, to its end.

    Returns None when all steps are done and the results are written, or what stopped it: a signal or the stop file.
    Raises AgreedError for what a user can mend, on every rank.
    """
    folder = Path(settings.run)
    checkpoints = Checkpoints(folder / "checkpoints", settings.checkpoint.keep, ranks)
    with contextlib.ExitStack() as cleanup:
        with ranks.agreeing():
            check(settings, ranks)
            injection = Injection.from_environment(ranks.rank)
            if ranks.is_main:
                cleanup.enter_context(only_run_in(folder))
        watchdog = cleanup.enter_context(Watchdog(folder / "stalled", ranks.rank, settings.stall_minutes))
        display.doing = watchdog.doing
        watchdog.doing("opening the stores")
        with ranks.agreeing():
            task = make_task()
            cleanup.callback(task.close)

        watchdog.doing("verifying the newest checkpoint")
        found, complaints = checkpoints.newest_intact()
        with ranks.agreeing():
            first_step = _prepare_resume(found, complaints, folder, settings, task, ranks)
        if ranks.is_main:
            for complaint in [*complaints, *deepspeed_config.warnings(settings, ranks.world_size)]:
                display.say(f"warning: {complaint}")
            display.say(_opening_line(settings, found, ranks))

        watchdog.doing("building the engine")
        universal = bool(found and found.state["universal"])
        engine = build_engine(settings, task.make_model, ranks, universal, task.builds_whole)
        if ranks.is_main:
            for line in task.describe(engine.module):
                display.say(line)
        if found:
            remembered = hyperparameters(engine.optimizer)
            engine.load_checkpoint(str(checkpoints.folder), tag=found.path.name)
            restate(engine.optimizer, remembered)
        ranks.barrier()  # a CPU's peak is measured, by all ranks at once
        peak, peak_source = peak_flops(ranks.device, settings.precision)
        all_peaks = ranks.gather(peak)
        hosts = sorted(set(ranks.gather(host())))

        telemetry: Telemetry | None = None
        with ranks.agreeing():
            if ranks.is_main:
                facts = {
                    "world_size": ranks.world_size,
                    "device": str(ranks.device.type),
                    "parameters": sum(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters()),
                    "trained_parameters": sum(
                        getattr(p, "ds_numel", p.numel())
                        for p in engine.module.parameters()
                        if p.requires_grad
                    ),
                    "peak_flops_per_rank": peak,
                    "peak_flops_source": peak_source,
                    "resumed_from_step": first_step,
                }
                write_provenance(folder, settings, facts, hosts)
                telemetry = cleanup.enter_context(Telemetry(folder, settings, first_step))

        tolerated = Tolerated()

        def write_row(row: dict[str, Any]) -> None:
            assert telemetry is not None
            row = finite(row)
            telemetry.write(row)
            with tolerated("the run's log"):
                display.on_row(row)
                if "val_loss" in row:
                    display.say(validation_line(row))

        stopped_by = train(
            engine, task, settings, ranks, checkpoints, FaultLog(folder / "faults.jsonl"), watchdog, injection,
            write_row, lambda: _run_state(settings, task, ranks), first_step,
            None if None in all_peaks else sum(all_peaks),
        )  # fmt: skip
        if stopped_by is None:
            averages = averaged_weights(engine, keep=ranks.is_main) if settings.ema else {}
            watchdog.doing("exporting the model on rank 0")

            def export() -> None:
                last = checkpoints.folder / f"step-{settings.steps:08d}"
                facts = {"run": str(folder), **_trained(settings, task)}
                for line in task.export({**full_weights(engine, last), **averages}, folder, facts):
                    display.say(line)

            ranks.on_main(export)
        return stopped_by


def _prepare_resume(
    found: Checkpoint | None,
    complaints: list[str],
    folder: Path,
    settings: TrainingSettings,
    task: Task,
    ranks: Ranks,
) -> int:
    """Point the task at the first sample to come; the number of steps already done."""
    if found is None:
        if complaints:
            raise ValueError(
                f"no checkpoint in {folder / 'checkpoints'} is intact ({'; '.join(complaints)}): restore one from a "
                "copy, or name a new `run:` folder to start afresh."
            )
        if (folder / "metrics.jsonl").exists():
            _check_nothing_is_lost(folder)
        return 0
    resume.check(found, settings, task.identity(), ranks.world_size)
    if found.step > settings.steps:
        raise ValueError(
            f"{found.path} has {found.step} steps, the recipe asks for {settings.steps}: raise `steps`, or name a "
            "new `run:` folder."
        )
    task.restore(found.state["task"])
    return found.step


def _check_nothing_is_lost(folder: Path) -> None:
    """A folder with rows but no checkpoint is a run that died before its first one, or one that lost them."""
    if (folder / "encoder").exists() or (folder / "mae").exists():
        raise ValueError(
            f"{folder} holds a finished run without its checkpoints, which a fresh start would overwrite: name a new "
            "`run:` folder."
        )


def _run_state(settings: TrainingSettings, task: Task, ranks: Ranks) -> dict[str, Any]:
    """What a checkpoint says of its run, apart from where in the data it is."""
    return {
        "identity": resume.identity(settings, task.identity()),
        "world_size": ranks.world_size,
        "zero_stage": settings.zero_stage,
        "universal": False,
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "deepspeed")},
    }


def _trained(settings: TrainingSettings, task: Task) -> dict[str, Any]:
    samples = settings.steps * settings.global_batch_size
    return {
        "steps": settings.steps,
        "samples_seen": samples,
        "eeg_hours_seen": samples * task.hours_per_sample,
        "recipe": settings.model_dump(mode="json"),
    }


def _opening_line(settings: TrainingSettings, found: Checkpoint | None, ranks: Ranks) -> str:
    start = f"continuing from {found.path}" if found else f"new run in {settings.run}"
    count = "1 rank" if ranks.world_size == 1 else f"{ranks.world_size} ranks"
    return f"{start}: {settings.steps} steps of {settings.global_batch_size} samples, {count}, " \
        f"ZeRO {settings.zero_stage}, {settings.precision}"  # fmt: skip
