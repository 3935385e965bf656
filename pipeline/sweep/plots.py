"""A sweep's two plots: error rate of each group with its interval, and error rate against depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from interkd.pipeline.sweep.rows import GroupRow, SweepReport

_COLOURS = (
    "#3b6ea5",
    "#c8625b",
    "#4e9a6b",
    "#e0a458",
    "#7d63a8",
    "#5bb0b8",
    "#9a6b4e",
    "#b85b94",
)
_MARKERS = ("o", "s", "^", "D", "v")
_INK, _SOFT, _LINE = "#1d2329", "#66707a", "#e3e6e9"


def plot_wer(report: SweepReport) -> Figure:
    """One point a group with its interval, a small tick for each seed, the teacher as a line."""
    rows = report.rows
    figure = Figure(figsize=(8.6, 1.1 + 0.36 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for place, row in enumerate(rows):
        axes.plot([row.wer.low, row.wer.high], [place, place], color=_COLOURS[0], linewidth=2)
        axes.plot(
            row.wer_of_seeds,
            [place] * len(row.seeds),
            linestyle="none",
            marker="|",
            markersize=9,
            color=_SOFT,
        )
        axes.plot([row.wer.value], [place], marker="o", markersize=6, color=_COLOURS[0])
        axes.annotate(
            f"{row.wer.value:.1f}",
            (row.wer.high, place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=_INK,
            fontsize=9,
        )
    if report.teacher is not None:
        wer = report.teacher.wer
        axes.axvspan(wer.low, wer.high, color=_COLOURS[2], alpha=0.15, linewidth=0)
        axes.axvline(wer.value, color=_COLOURS[2], linewidth=1.2, linestyle="--")
        axes.annotate(
            f"teacher {wer.value:.1f}",
            (wer.value, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            color=_COLOURS[2],
            fontsize=9,
        )
    axes.set_yticks(range(len(rows)), _labels(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.margins(x=0.12)
    axes.set_xlabel(
        f"WER on {report.split}, %: mean over seeds, 95 % interval, ticks: single seeds",
        color=_SOFT,
        fontsize=9,
    )
    _tidy(axes, "x")
    axes.tick_params(axis="y", labelcolor=_INK)
    return figure


def plot_depth(report: SweepReport) -> Figure:
    """One line a group: WER of each head against the weights needed to run up to it."""
    rows = report.rows
    figure = Figure(figsize=(8.6, max(4.2, 0.8 + 0.24 * len(rows))), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for index, (row, label) in enumerate(zip(rows, _labels(rows), strict=True)):
        axes.plot(
            [head.weight_count / 1e6 for head in row.heads],
            [head.wer.value for head in row.heads],
            color=_COLOURS[index % len(_COLOURS)],
            marker=_MARKERS[index // len(_COLOURS) % len(_MARKERS)],
            markersize=5,
            linewidth=1.4,
            label=label,
        )
    axes.set_xlabel("weights needed to run up to the head, millions", color=_SOFT, fontsize=9)
    axes.set_ylabel(f"WER on {report.split}, %", color=_SOFT, fontsize=9)
    _tidy(axes, "both")
    figure.legend(loc="outside right upper", frameon=False, fontsize=9, labelcolor=_INK)
    return figure


def _labels(rows: Sequence[GroupRow]) -> list[str]:
    """Names of the groups; those with fewer seeds than another say how many."""
    most = max(len(row.seeds) for row in rows)
    return [
        row.group if len(row.seeds) == most else f"{row.group} ({len(row.seeds)} of {most} seeds)"
        for row in rows
    ]


def _tidy(axes: Any, grid: str) -> None:
    axes.tick_params(axis="both", length=0, labelsize=9, colors=_SOFT)
    axes.grid(axis=grid, color=_LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
