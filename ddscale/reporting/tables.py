"""What commands print: tables of a store, an ingest, a plan and a machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from ddscale.ingest import Summary
    from ddscale.planning.cost import Estimate
    from ddscale.planning.doctor import Finding

STATE_STYLE = {"ok": "green", "limited": "yellow", "broken": "bold red"}


def ingest_summary(summary: Summary) -> None:
    """Hours per dataset, kept and left out by reason, then every recording that is not in the store."""
    console = wide_console()
    table = Table(box=None, pad_edge=False)
    for heading in ("dataset", "recordings", "new", "quarantined", "hours found", "hours kept"):
        table.add_column(heading, justify="left" if heading == "dataset" else "right")
    table.add_column("hours left out", overflow="fold")
    for row in summary.datasets:
        table.add_row(
            row.dataset,
            str(row.recordings_kept),
            str(row.recordings_new),
            str(row.recordings_quarantined),
            f"{row.hours_found:,.3f}",
            f"{row.hours_kept:,.3f}",
            _amounts(row.hours_rejected, "{:.3g}") or "none",
        )
    console.print(table)
    for row in summary.datasets:
        if row.channels_dropped:
            dropped = _amounts(row.channels_dropped, "{}")
            console.print(f"{row.dataset}: channels left out of whole recordings: {dropped}", markup=False)
    for note in summary.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    for item in summary.quarantined:
        where = f"{item.dataset}/{item.recording}"
        console.print(f"quarantined: {where}: {item.reason}: {item.detail}", markup=False, soft_wrap=True)
    for problem in summary.problems:
        console.print(f"problem: {problem}", markup=False, soft_wrap=True)


def store_contents(contents: Mapping[str, Any]) -> None:
    """What `describe` says of a store."""
    console = wide_console()
    totals = contents["totals"]
    console.print(
        f"{contents['store']}: {totals['hours']:,.3f} h, {totals['recordings']:,} recordings, "
        f"{totals['subjects']:,} subjects, {totals['records']:,} records; {contents['backend']}, "
        f"{contents['sfreq']:g} Hz, {contents['dtype']} "
        + (f"at {contents['step_uV']:g} µV" if contents["unit"] == "uV" else contents["unit"]),
        markup=False,
        soft_wrap=True,
    )
    if contents["unfinished"]:
        console.print("An ingest of this store has not finished: run it again to continue.", style="yellow")
    table = Table(box=None, pad_edge=False)
    for heading in ("dataset", "hours", "recordings", "subjects"):
        table.add_column(heading, justify="left" if heading == "dataset" else "right")
    for heading in ("channels", "hours by split", "hours left out", "licence"):
        table.add_column(heading, overflow="fold")
    for name, entry in contents["datasets"].items():
        table.add_row(
            name,
            f"{entry['hours']:,.3f}",
            str(entry["recordings"]),
            str(entry["subjects"]),
            channel_range(entry["hours_by_channels"]),
            _amounts(entry["hours_by_split"], "{:.3g}"),
            _amounts(entry["rejected_hours"], "{:.3g}") or "none",
            entry["licence"] or "not stated",
        )
    console.print(table)
    for name, entry in contents["datasets"].items():
        if entry["trials"] is not None:
            console.print(_trials(name, entry["trials"]), markup=False, soft_wrap=True)
    clipped = sum(entry["clipped"] for entry in contents["datasets"].values())
    worst = max((e["largest_quantisation_error_uV"] for e in contents["datasets"].values()), default=0.0)
    console.print(f"clipped values {clipped:,}; largest quantisation error {worst:.3g} µV")


def _trials(name: str, trials: Mapping[str, Any]) -> str:
    """One line on what was presented in a data set."""
    by_split = _amounts(trials["trials_by_split"], "{:,}")
    said = f"{name}: {trials['trials']:,} trials ({by_split}), {trials['labels']} labels"
    if not trials["images"]:
        return f"{said}, no pictures"
    return (
        f"{said}, {trials['images']:,} pictures ({_amounts(trials['images_by_split'], '{:,}')}), "
        f"{trials['images_shown']:,} of them with trials, at most {trials['most_repetitions']} of one person"
    )


def channel_range(hours_by_channels: Mapping[str, float]) -> str:
    """`8` or `13 to 126`: the channel counts of a data set's records."""
    counts = sorted(int(count) for count in hours_by_channels)
    if not counts:
        return "none"
    return f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def wide_console() -> Console:
    """A log has no width to keep to; without one, rich would break words at 80 columns."""
    console = Console()
    return console if console.is_terminal else Console(width=200)


def _amounts(by_name: Mapping[str, float], form: str) -> str:
    return ", ".join(f"{name}: {form.format(amount)}" for name, amount in by_name.items())


def doctor_table(findings: Sequence[Finding]) -> None:
    """One line a finding, and under those that are not ok what to do."""
    table = Table(box=None, pad_edge=False)
    for heading in ("", "state", "found", "what to do"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        state = f"[{STATE_STYLE[finding.state]}]{finding.state}[/]"
        table.add_row(finding.subject, state, escape(finding.found), escape(finding.remedy))
    wide_console().print(table)


def plan_table(estimate: Estimate) -> None:
    """An estimate in units a person thinks in, with what was assumed."""
    console = wide_console()
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
    hidden = "behind each other" if estimate.overlapped else "one after the other"
    times.add_row("a step", f"{estimate.step_s:.3g} s")
    times.add_row("  computing it", f"{estimate.compute_s:.3g} s")
    times.add_row(f"  communication, {hidden}", f"{estimate.communication_s:.3g} s")
    times.add_row("micro-batches a step, per GPU", f"{estimate.accumulation}")
    times.add_row("reads/s, per node (one a window)", f"{estimate.reads_s_per_node:,.0f}")
    times.add_row("reading, per node", f"{estimate.read_bytes_s_per_node / 1e9:.2f} GB/s")
    if estimate.pass_s is not None:
        times.add_row(f"one pass over {estimate.hours_of_eeg:,.0f} h", duration(estimate.pass_s))
    times.add_row("the whole run", duration(estimate.run_s))
    if estimate.passes is not None:
        times.add_row("passes over the data in it", f"{estimate.passes:,.3g}")
    times.add_row("a checkpoint", f"{estimate.checkpoint_bytes / 1e9:,.1f} GB")
    times.add_row("from one checkpoint to the next", duration(estimate.checkpoint_every_s))
    console.print(times)
    for warning in estimate.warnings:
        console.print(f"warning: {warning}", style="bold yellow")
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
