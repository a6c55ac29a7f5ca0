"""Pictures of the report, each a PNG inlined as a data URI so that the HTML file stands alone."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

matplotlib.use("Agg")

INK = "#1f2933"
MODEL = "#d9480f"
TRUTH = "#1f2933"
BASELINES = {"val_loss_interpolation": "#1971c2", "val_loss_channel_mean": "#868e96"}
NAMES = {
    "loss": "training",
    "val_loss": "validation (held-out subjects)",
    "val_loss_interpolation": "baseline: linear interpolation",
    "val_loss_channel_mean": "baseline: channel mean",
}
SIZE = (7.2, 3.1)


@dataclass(frozen=True)
class Reconstruction:
    """One held-out window in its own channels, normalised units: original, prediction (T, C), masked (T,)."""

    dataset: str
    channel_names: list[str]
    sfreq: float
    original_TC: NDArray[np.float32]
    prediction_TC: NDArray[np.float32]
    masked_T: NDArray[np.bool_]
    mean_squared_error: float
    """Over masked samples of all channels."""


def loss_curve(rows: Sequence[dict[str, float]]) -> str:
    """Training and validation loss over steps, with the baselines' level on the same held-out windows."""
    figure, axis = _canvas("step", "mean squared error on masked samples")
    _draw_series(axis, rows, "loss", "#adb5bd", NAMES["loss"], alpha=0.9, linewidth=1.0)
    _draw_series(axis, rows, "val_loss", MODEL, NAMES["val_loss"], marker="o", markersize=3)
    for key, colour in BASELINES.items():
        level = next((row[key] for row in rows if key in row), None)
        if level is not None:
            axis.axhline(
                level, color=colour, linestyle="--", linewidth=1.2, label=f"{NAMES[key]} ({level:.3f})"
            )
    # Below the axes: the baselines' lines may run anywhere inside.
    axis.legend(frameon=False, fontsize=8, ncol=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    return _inline(figure)


def noise_curve(rows: Sequence[dict[str, Any]]) -> str:
    """A fine-tuning's noise prediction and alignment over steps, held-out pictures beside training."""
    figure, axis = _canvas("step", "noise prediction, mean squared error")
    flat = [{"step": row["step"], **row, **row.get("loss_by_part", {})} for row in rows]
    _draw_series(axis, flat, "noise", "#adb5bd", "training", alpha=0.9, linewidth=1.0)
    _draw_series(axis, flat, "val_noise", MODEL, "held-out pictures", marker="o", markersize=3)
    without = "held-out pictures, without EEG"
    _draw_series(axis, flat, "val_noise_without_eeg", "#1971c2", without, marker="o", markersize=3)
    if any("val_alignment" in row for row in flat):
        right = axis.twinx()
        label = "alignment, held-out pictures (right axis)"
        _draw_series(right, flat, "val_alignment", "#2b8a3e", label, marker="s", markersize=3, linestyle=":")
        right.set_ylabel("alignment")
        right.spines["top"].set_visible(False)
        handles = [*axis.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
    else:
        handles = axis.get_legend_handles_labels()[0]
    axis.legend(
        handles=handles, frameon=False, fontsize=8, ncol=2, loc="upper center", bbox_to_anchor=(0.5, -0.16)
    )
    return _inline(figure)


def learning_rate_and_gradient(rows: Sequence[dict[str, float]]) -> str:
    """Learning rate (left axis) and gradient norm before clipping (right axis) over steps."""
    figure, axis = _canvas("step", "learning rate")
    _draw_series(axis, rows, "lr", "#1971c2", "learning rate")
    other = axis.twinx()
    _draw_series(other, rows, "grad_norm", "#868e96", "gradient norm", linewidth=0.8)
    other.set_ylabel("gradient norm", color="#868e96")
    other.spines["top"].set_visible(False)
    return _inline(figure)


def throughput(rows: Sequence[dict[str, float]]) -> str:
    """Windows per second (left) and the fraction of time spent waiting for data (right) over steps."""
    figure, axis = _canvas("step", "windows / s, all ranks")
    _draw_series(axis, rows, "samples_per_s", "#2b8a3e", "windows / s")
    axis.set_ylim(bottom=0)
    other = axis.twinx()
    _draw_series(other, rows, "data_wait_fraction", MODEL, "waiting for data", linewidth=0.8)
    other.set_ylim(0, 1)
    other.set_ylabel("fraction of time waiting for data", color=MODEL)
    other.spines["top"].set_visible(False)
    return _inline(figure)


def loss_by_dataset(rows: Sequence[dict[str, dict[str, float]]]) -> str:
    """Training loss of each data set over steps."""
    figure, axis = _canvas("step", "mean squared error")
    names = sorted({name for row in rows for name in row.get("loss_by_dataset", {})})
    for name in names:
        points = [
            (row["step"], row["loss_by_dataset"][name])
            for row in rows
            if name in row.get("loss_by_dataset", {})
        ]
        steps, losses = zip(*points, strict=True)
        axis.plot(steps, losses, linewidth=1.0, label=name)
    axis.legend(frameon=False, fontsize=8)
    return _inline(figure)


def hours_by_dataset(datasets: dict[str, dict[str, float]]) -> str:
    """Hours of each data set, kept and left out."""
    names = list(datasets)
    figure = Figure(figsize=(7.2, 0.9 + 0.36 * len(names)), dpi=110)
    axis = figure.subplots()
    _clean(axis)
    kept = [datasets[name]["hours"] for name in names]
    out = [datasets[name].get("hours_rejected", 0.0) for name in names]
    rows = np.arange(len(names))
    axis.barh(rows, kept, color="#2b8a3e", label="kept")
    axis.barh(rows, out, left=kept, color="#e8590c", label="left out")
    axis.set_yticks(rows, names, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("hours of EEG")
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return _inline(figure)


def reconstruction(window: Reconstruction, channels: int = 6) -> str:
    """Original, what the encoder saw, and the prediction elsewhere, for up to `channels` channels."""
    count = min(channels, window.original_TC.shape[1])
    chosen = np.linspace(0, window.original_TC.shape[1] - 1, count).round().astype(int)
    seconds = np.arange(window.original_TC.shape[0]) / window.sfreq
    figure = Figure(figsize=(7.2, 0.7 + 0.85 * count), dpi=110)
    axes = np.atleast_1d(figure.subplots(count, 1, sharex=True))
    for axis, channel in zip(axes, chosen, strict=True):
        _clean(axis)
        original = window.original_TC[:, channel]
        axis.fill_between(
            seconds,
            0,
            1,
            where=window.masked_T,
            transform=axis.get_xaxis_transform(),
            color="#f1f3f5",
            linewidth=0,
        )
        axis.plot(seconds, original, color="#adb5bd", linewidth=0.9, label="original")
        seen = np.where(window.masked_T, np.nan, original)
        axis.plot(seconds, seen, color=TRUTH, linewidth=1.4, label="seen by the encoder")
        hidden = np.where(window.masked_T, window.prediction_TC[:, channel], np.nan)
        axis.plot(seconds, hidden, color=MODEL, linewidth=1.0, label="predicted")
        axis.set_ylabel(window.channel_names[channel], rotation=0, ha="right", va="center", fontsize=8)
        axis.set_yticks([])
        axis.spines["left"].set_visible(False)
    axes[0].legend(frameon=False, fontsize=7, ncol=3, loc="lower right", bbox_to_anchor=(1.0, 0.98))
    axes[-1].set_xlabel("seconds (grey: hidden from the encoder)")
    return _inline(figure)


def _canvas(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, dpi=110)
    axis = figure.subplots()
    _clean(axis)
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    return figure, axis


def _clean(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8, colors=INK)


def _draw_series(
    axis: Axes, rows: Sequence[dict[str, float]], key: str, colour: str, label: str, **style: object
) -> None:
    points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    if points:
        steps, values = zip(*points, strict=True)
        axis.plot(steps, values, color=colour, label=label, **style)  # type: ignore[arg-type]


def _inline(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
