"""What commands print: tables of a store, an ingest, a plan and a machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from ddscale.planning.cost import Estimate
    from ddscale.planning.doctor import Finding

STATE_STYLE = {"ok": "green", "limited": "yellow", "broken": "bold red"}


def doctor_table(findings: Sequence[Finding]) -> None:
    """One line a finding, and under those that are not ok what to do."""
    table = Table(box=None, pad_edge=False)
    for heading in ("", "state", "found", "what to do"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        state = f"[{STATE_STYLE[finding.state]}]{finding.state}[/]"
        table.add_row(finding.subject, state, escape(finding.found), escape(finding.remedy))
    Console().print(table)


def plan_table(estimate: Estimate) -> None:
    """An estimate in units a person thinks in, with what was assumed."""
    console = Console()
    console.print(f"{estimate.gpus} × {estimate.gpu}, {estimate.parameters / 1e6:,.1f} M parameters")
    memory = Table(title="memory per GPU", title_justify="left", box=None, pad_edge=False)
    memory.add_column("part")
    memory.add_column("GB", justify="right")
    for part, size in estimate.memory.items():
        memory.add_row(part, f"{size / 1e9:,.1f}")
    console.print(memory)
    if not estimate.fits:
        console.print(
            "does not fit: raise zero_stage, lower micro_batch_size or set model.activation_checkpointing",
            style="bold red",
        )
    times = Table(title="each step and the run", title_justify="left", box=None, pad_edge=False)
    times.add_column("")
    times.add_column("", justify="right")
    times.add_row("windows/s, all GPUs", f"{estimate.windows_per_s:,.0f}")
    times.add_row("computing a step", f"{estimate.step_s:.3g} s")
    times.add_row("communication a step, nothing hidden", f"{estimate.communication_s:.3g} s")
    times.add_row("reading, per node", f"{estimate.read_bytes_s_per_node / 1e9:.2f} GB/s")
    if estimate.pass_s is not None:
        times.add_row(f"one pass over {estimate.hours_of_eeg:,.0f} h", duration(estimate.pass_s))
    times.add_row("the whole run", duration(estimate.run_s))
    times.add_row("a checkpoint", f"{estimate.checkpoint_bytes / 1e9:,.1f} GB")
    console.print(times)
    console.print(
        "An estimate, not a measurement. Assumed: " + "; ".join(estimate.assumptions) + ".", style="dim"
    )


def duration(seconds: float) -> str:
    """`95` as `1 min 35 s`."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    if seconds < 86400:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
    return f"{seconds / 86400:,.1f} days"
