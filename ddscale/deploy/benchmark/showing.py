"""What a person looks at: the measurements as a table and as a picture."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import IO

from rich.table import Table

from ddscale.deploy.benchmark.measuring import ORIGINAL, Result, Row

COLUMNS = ("what", "pictures", "engine", "median", "quartiles", "pictures/s", "to eager")


def title(result: Result) -> str:
    """What was measured, where."""
    machine = result.machine
    return f"{result.folder} on {machine['gpu'] or machine['cpu']}, {machine['threads']} threads"


def as_rows(result: Result) -> list[tuple[str, ...]]:
    """COLUMNS of each thing on each engine, the same things together."""
    rows: list[tuple[str, ...]] = []
    for row in result.rows:
        low, high = row.quartiles_ms
        rows.append(
            (
                _what(row),
                str(row.pictures),
                row.engine,
                _time(row.median_ms),
                f"{_time(low)} - {_time(high)}",
                f"{1000 * row.pictures / row.median_ms:.3g}",
                "" if row.to_eager is None else f"{row.to_eager:.2f}x",
            )
        )
    return rows


def as_table(result: Result) -> Table:
    """The same for a terminal."""
    table = Table(title=title(result))
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("what", "engine") else "right", no_wrap=True)
    previous: tuple[str, ...] = ()
    for row in as_rows(result):
        if row[:2] != previous:
            table.add_section()
        previous = row[:2]
        table.add_row(*row)
    return table


def conclusions(result: Result) -> list[str]:
    """Sentences: what was left out and why, and how much faster the fastest picture is than the original's."""
    lines = [f"left out: {name}: {reason}" for name, reason in result.left_out.items()]
    if (speedup := result.speedup_over_original()) is not None:
        best, times = speedup
        lines.append(
            f"fastest picture: {best.engine}, {_what(best)}, {_time(best.median_ms)}; {times:.0f} times faster than "
            "the original's recipe (250 PLMS steps without guidance, full VAE, PyTorch eager)"
        )
    return lines


def plot(result: Result, target: str | os.PathLike[str] | IO[bytes]) -> None:
    """A PNG: bars of each stage and kind of picture at the smallest batch, times PyTorch eager; less is better."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    smallest = min(row.pictures for row in result.rows)
    rows = [row for row in result.rows if row.pictures == smallest and row.stage != ORIGINAL]
    things = _ordered(rows, _what)
    engines = _ordered(rows, lambda row: row.engine)
    figure = Figure(figsize=(9, 1.2 + 0.26 * len(things) * (len(engines) + 0.8)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    height = 0.85 / len(engines)
    for number, engine in enumerate(engines):
        own = {_what(row): row for row in rows if row.engine == engine}
        places = [i + number * height for i, thing in enumerate(things) if thing in own]
        shown = [own[thing] for thing in things if thing in own]
        widths = [row.median_ms if row.to_eager is None else row.to_eager for row in shown]
        bars = axes.barh(places, widths, height * 0.9, label=engine)
        axes.bar_label(bars, [f" {_time(row.median_ms)}" for row in shown], fontsize=7)
    axes.set_yticks([i + 0.425 - height / 2 for i in range(len(things))], things)
    axes.invert_yaxis()
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xlabel(f"time, PyTorch eager = 1 ({smallest} picture{'s' if smallest > 1 else ''} at once)")
    axes.margins(x=0.12)
    figure.legend(loc="outside lower center", ncols=min(4, len(engines)), fontsize=8)
    figure.savefig(target, dpi=130, format="png")


def _what(row: Row) -> str:
    if row.steps is None:
        return row.stage
    return f"{row.stage}, {row.scheduler} {row.steps}, {row.decoder} decoder"


def _time(ms: float) -> str:
    return f"{ms:.3g} ms" if ms < 1000 else f"{ms / 1000:.3g} s"


def _ordered(rows: list[Row], key: Callable[[Row], str]) -> list[str]:
    return list(dict.fromkeys(key(row) for row in rows))
