"""The plot of report.html: word errors of every head by kind, with their intervals, as SVG."""

from __future__ import annotations

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from interkd.pipeline.figures import to_svg
from interkd.pipeline.scoring.report import ScoreReport, format_weights

_KINDS = (
    ("substitutions", "#e0a458"),
    ("insertions", "#5b8db8"),
    ("deletions", "#c8625b"),
)
_INK, _SOFT, _LINE = "#1d2329", "#66707a", "#e3e6e9"


def plot_heads(report: ScoreReport) -> str:
    """One bar a head, its length the WER, split into kinds of error, with the 95 % interval.

    The figure is made by itself, without pyplot and its list of open figures, so it may run in
    any thread and leaves nothing behind.

    Args:
        report: What to plot.

    Returns:
        An `<svg>` element; letters are outlines, so that it looks alike everywhere.
    """
    heads = report.results.heads
    figure = Figure(figsize=(8.6, 0.95 + 0.42 * len(heads)), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    rows = range(len(heads))
    totals = [head.word_total for head in heads]
    left = [0.0] * len(heads)
    for kind, colour in _KINDS:
        widths = [100.0 * getattr(t, kind) / t.reference_length for t in totals]
        axes.barh(rows, widths, left=left, height=0.56, color=colour, label=kind)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    reach = 0.0
    for row, (counts, interval) in enumerate(zip(totals, report.word_intervals, strict=True)):
        axes.plot([interval.low, interval.high], [row, row], color=_INK, linewidth=1.2)
        for end in (interval.low, interval.high):
            axes.plot([end, end], [row - 0.1, row + 0.1], color=_INK, linewidth=1.2)
        end = max(interval.high, counts.rate)
        reach = max(reach, end)
        axes.annotate(
            f"{counts.rate:.1f}",
            (end, row),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=_INK,
            fontsize=9,
        )
    axes.set_yticks(rows, [f"{h.name}   {format_weights(h.weight_count)}" for h in heads])
    axes.set_xlim(0.0, max(reach * 1.1, 1.0))
    axes.set_ylim(len(heads) - 0.5, -0.5)
    axes.set_xlabel("word errors, % of reference words", color=_SOFT, fontsize=9)
    axes.tick_params(axis="both", length=0, labelsize=9, colors=_SOFT)
    axes.tick_params(axis="y", labelcolor=_INK)
    axes.grid(axis="x", color=_LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    figure.legend(
        loc="outside upper left",
        ncols=3,
        frameon=False,
        fontsize=9,
        labelcolor=_SOFT,
        handlelength=0.9,
        handleheight=0.9,
        columnspacing=1.4,
    )
    return to_svg(figure, label="Word error rate of each head")
