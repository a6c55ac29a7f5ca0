"""The training loop: one page, read from top to bottom, the same for every stage that trains.

What is trained is a `Task`. A step's loss is the sum of the loss terms of the whole global batch over the sum of
their weights, so neither the number of ranks nor of micro-batches changes it, unless its terms do (a contrast between
the samples of a micro-batch). Ranks agree once per step, by one
all-reduce of three numbers at its start; on a GPU the host reads the result after DeepSpeed's own check of the
gradient norm has waited for the device, so it costs no further wait. A logged step adds one small all-reduce.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ddscale.training.agreement import Agreement
from ddscale.training.checkpoints import Checkpoints, SaveError
from ddscale.training.faults import FaultLog, Injection, SkippedSteps
from ddscale.training.optimiser import set_learning_rate
from ddscale.training.ranks import AgreedError, Ranks
from ddscale.training.schedules import learning_rate
from ddscale.training.settings import TrainingSettings
from ddscale.training.stopping import StopRequest
from ddscale.training.throughput import Stopwatch
from ddscale.training.tolerance import warn
from ddscale.training.watchdog import Watchdog


class Terms(NamedTuple):
    """The loss of one micro-batch before it is normalised."""

    total: Tensor
    """Scalar with gradient: the sum of the loss terms."""
    by_name: Tensor
    """(K, 2) float without gradient: sum and weight of the terms of each of `Task.names`, in their order."""


class Task(Protocol):
    """The part of a run that belongs to its stage."""

    names: list[str]
    """What the loss is reported by, such as datasets."""
    label: str
    """How the metrics call that: `loss_by_<label>`."""
    hours_per_sample: float
    """EEG in one sample, hours."""
    flops_per_sample: float | None
    """Floating-point operations of one sample's forward and backward; None when not known."""

    builds_whole: bool
    """Whether `make_model` reads weights from files, so that each rank's host memory has to hold the whole model."""

    def make_model(self) -> nn.Module:
        """The model, fresh; deterministic given torch's seed."""

    def describe(self, model: nn.Module) -> list[str]:
        """What a person should know of the model before it trains, as lines; its weights may be partitioned."""

    def identity(self) -> dict[str, Any]:
        """Settings without which a checkpoint would not be continued but changed."""

    def state(self) -> dict[str, Any]:
        """What `restore` needs to continue with the next sample; JSON."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken; ValueError when the data is not what it was."""

    def steps(self) -> Iterator[list[Any]]:
        """This rank's micro-batches of each step, endless; every rank gets equally many."""

    def weight(self, batch: Any) -> float:
        """What a micro-batch adds to the loss's denominator, known before the model has seen it."""

    def loss(self, engine: Any, batch: Any) -> Terms:
        """Forward pass of one micro-batch."""

    def positions(self, batch: Any) -> list[int]:
        """Which samples a micro-batch holds, to name them when something is wrong with them."""

    def new_faults(self) -> list[dict[str, Any]]:
        """Unreadable data this rank has met since it was asked last; an entry with `limit` ends the run."""

    def unreadable_windows(self) -> int:
        """Samples of this rank whose data was unreadable and became zeros that count for nothing, since its start."""

    def validate(self, engine: Any) -> dict[str, float]:
        """Held-out measures, over all ranks; every rank calls it and makes the same number of forward passes."""

    def export(self, weights: Mapping[str, Tensor], folder: Path, facts: dict[str, Any]) -> list[str]:
        """Write the float32 weights for those who use them (rank 0 alone); what was written, for a person."""

    def close(self) -> None:
        """Stop reading ahead."""


def train(
    engine: Any,
    task: Task,
    settings: TrainingSettings,
    ranks: Ranks,
    checkpoints: Checkpoints,
    fault_log: FaultLog,
    watchdog: Watchdog,
    injection: Injection,
    write_row: Callable[[dict[str, Any]], None],
    describe_run: Callable[[], dict[str, Any]],
    first_step: int,
    peak_flops: float | None,
) -> str | None:
    """Train from `first_step` steps done to `settings.steps`; None, or what ended it early: a signal or the stop file.

    write_row takes a step's metrics, on rank 0 alone. describe_run gives what a checkpoint keeps besides step,
    samples and task state. peak_flops: of all ranks together.
    """
    skipped, watch = SkippedSteps(settings.max_skipped_steps), Stopwatch()
    step, last_row, lr = first_step, first_step, 0.0
    batches = task.steps()
    engine.train()
    with StopRequest() as stop:
        while step < settings.steps:
            watchdog.doing(f"step {step + 1}")
            with watch.waiting():
                micro_batches = next(batches)
            step += 1
            injection.at_step(step)
            faults = task.new_faults()
            agreed = Agreement(ranks, sum(map(task.weight, micro_batches)), stop.requested, len(faults))
            # DeepSpeed averages gradients over ranks; the loss is a mean over the terms of all of them.
            scale = (ranks.world_size / agreed.weight).float()
            lr = learning_rate(settings.schedule, step - 1, settings.steps, settings.optimiser.lr)
            set_learning_rate(engine.optimizer, lr)

            totals, by_name = [], torch.zeros(len(task.names), 2, dtype=torch.float64, device=ranks.device)
            for batch in micro_batches:
                terms = task.loss(engine, batch)
                loss = injection.in_loss(terms.total * scale, step)
                engine.backward(spoil_gradient_unless_finite(loss), scale_wrt_gas=False)
                engine.step()
                totals.append(loss.detach())
                by_name += terms.by_name

            stopping, any_faults = agreed.read()
            too_many = _log_unreadable(fault_log, ranks, step, faults) if any_faults else None
            if engine.was_step_applied():
                skipped.applied()
            else:
                where = _log_skipped(fault_log, ranks, step, totals, micro_batches, task, settings.precision)
                if where is not None:
                    skipped.skipped(step, where)

            last = step == settings.steps
            validating = settings.validation.every and (step % settings.validation.every == 0 or last)
            measured: dict[str, float] = {}
            if validating and not stopping and not too_many:
                watchdog.doing(f"the validation after step {step}")
                with watch.paused("validation_s"):
                    engine.eval()
                    measured = task.validate(engine)
                    engine.train()
                too_many = _log_unreadable(fault_log, ranks, step, task.new_faults())

            logged = step % settings.log_every == 0 or last or measured or too_many
            if logged or not engine.was_step_applied():
                seconds, waited = watch.lap()
                loss_sum = torch.stack(totals).sum(dtype=torch.float64) / ranks.world_size
                sums = ranks.sum_(
                    torch.cat(
                        [
                            loss_sum[None],
                            loss_sum.new_tensor([waited, task.unreadable_windows()]),
                            by_name.flatten(),
                        ]
                    )
                )
                if ranks.is_main:
                    loss_value, all_waited, unreadable, *parts = sums.tolist()
                    write_row(
                        {
                            "step": step,
                            "loss": loss_value,
                            "lr": lr,
                            "grad_norm": float(engine.get_global_grad_norm() or 0.0),
                            "samples_seen": step * settings.global_batch_size,
                            **_speed(task, settings, step, step - last_row, seconds, peak_flops),
                            "data_wait_fraction": all_waited / ranks.world_size / seconds,
                            "skipped_steps": engine.skipped_steps,
                            "unreadable_windows": int(unreadable),
                            f"loss_by_{task.label}": _means(task.names, parts),
                            **measured,
                            # A checkpoint's are in the row after it, which has to be on disk before it is published.
                            **watch.pauses(),
                        }
                    )
                last_row = step

            if step % settings.checkpoint.every == 0 or last or stopping or too_many:
                watchdog.doing(f"saving step {step}")
                state = {"step": step, "task": task.state(), **describe_run()}
                try:
                    with watch.paused("checkpoint_s"):
                        checkpoints.save(engine, step, state, lambda: injection.in_checkpoint(step))  # noqa: B023
                except SaveError as error:
                    if last or stopping or too_many:
                        raise SaveError(f"{error} Start again: {_continues(checkpoints)}.") from error
                    if ranks.is_main:
                        warn(
                            f"{error} Training goes on, and saves again after {settings.checkpoint.every} steps."
                        )
                        fault_log.write("checkpoint", step, cause=str(error))
            if too_many and last:
                if ranks.is_main:
                    warn(
                        f"step {step}: {too_many} It was the last step: the run is complete, its last figures are of "
                        "what could be read."
                    )
            elif too_many:
                # The loader that crossed its limit has no further step to give, and its peers would wait for it.
                raise AgreedError(
                    f"step {step}: {too_many} The run was saved at this step, and the same command continues."
                )
            if stopping and not last:
                names = [name for name in ranks.gather(stop.reason) if name]
                return names[0] if names else "another rank"
    return None


def spoil_gradient_unless_finite(loss: Tensor) -> Tensor:
    """The loss itself, but one that is inf or NaN gets a NaN gradient everywhere.

    Gradients are averaged over ranks, so every rank sees it in the gradient's norm, which is checked on every step
    at every stage: the agreement to skip costs nothing. (An overflowed loss can have a finite gradient.)
    """
    return loss * (1.0 + 0.0 * loss.detach())


def _continues(checkpoints: Checkpoints) -> str:
    newest = checkpoints.newest_published()
    return (
        f"the run continues from {newest}" if newest else "there is no earlier checkpoint, so it begins anew"
    )


def _speed(
    task: Task, settings: TrainingSettings, step: int, steps: int, seconds: float, peak_flops: float | None
) -> dict[str, Any]:
    samples = steps * settings.global_batch_size
    speed: dict[str, Any] = {
        "eeg_hours_seen": step * settings.global_batch_size * task.hours_per_sample,
        "samples_per_s": samples / seconds,
        "eeg_hours_per_s": samples * task.hours_per_sample / seconds,
    }
    if peak_flops and task.flops_per_sample:
        speed["mfu"] = samples * task.flops_per_sample / seconds / peak_flops
    return speed


def _means(names: list[str], flat: list[float]) -> dict[str, float]:
    pairs = zip(flat[0::2], flat[1::2], strict=True)
    return {name: total / weight for name, (total, weight) in zip(names, pairs, strict=True) if weight}


def _log_unreadable(log: FaultLog, ranks: Ranks, step: int, faults: list[dict[str, Any]]) -> str | None:
    """Write down what was unreadable; which limits were crossed by that, the same on every rank."""
    limits = []
    for rank, theirs in enumerate(ranks.gather(faults)):
        for fault in theirs:
            beyond = "limit" in fault
            if beyond:
                limits.append(fault["limit"])
            if ranks.is_main:
                log.write("too many unreadable" if beyond else "unreadable", step, rank=rank, **fault)
    return " ".join(limits) or None


def _log_skipped(
    log: FaultLog,
    ranks: Ranks,
    step: int,
    losses: list[Tensor],
    batches: list[Any],
    task: Task,
    precision: str,
) -> str | None:
    """Write down a skipped step; where its loss was not finite, or None when fp16 only lowers its loss scale."""
    spoilt = [not torch.isfinite(loss).item() for loss in losses]
    mine = [p for batch, bad in zip(batches, spoilt, strict=True) if bad for p in task.positions(batch)]
    by_rank = {rank: positions for rank, positions in enumerate(ranks.gather(mine)) if positions}
    if not by_rank and precision == "fp16":
        return None
    where = f"rank {', '.join(map(str, by_rank))}" if by_rank else "in the gradient, with a finite loss"
    if ranks.is_main:
        log.write("skipped", step, where=where, positions={str(rank): p for rank, p in by_rank.items()})
    return where
