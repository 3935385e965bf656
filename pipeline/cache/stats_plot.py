"""The figure of `interkd cache stats`: six panels, as SVG for the page or as a PNG file."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.ticker import MaxNLocator

from interkd.pipeline.cache.stats import LogHistogram, StoreStats

_BAR, _INK, _SOFT, _LINE = "#5b8db8", "#1d2329", "#66707a", "#e3e6e9"
_PANEL_BINS_A_DECADE = 10
_LONGEST_RUNS_LEFT_OUT = 0.01


def plot_stats(stats: StoreStats) -> Figure:
    """Entropy, mass left out, entries, blanks, runs of blanks and spikes.

    The figure is made by itself, without pyplot and its list of open figures.
    """
    figure = Figure(figsize=(11.0, 9.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(3, 2)
    counts = stats.counts
    _log_histogram(panels[0, 0], counts.entropy, "entropy of a frame, nats")
    _log_histogram(panels[0, 1], counts.left_out, "probability that a frame's tokens lack")
    entries = counts.entries[1:]
    _bars(panels[1, 0], range(1, len(entries) + 1), entries, "tokens kept of a frame")
    _blank_shares(panels[1, 1], stats)
    shown = stats.blank_run_quantile(1 - _LONGEST_RUNS_LEFT_OUT)
    runs = counts.blank_runs[1 : shown + 1]
    label = f"frames of a run of blanks (the longest {100 * _LONGEST_RUNS_LEFT_OUT:g} % left out)"
    _bars(panels[2, 0], range(1, len(runs) + 1), runs, label, of="runs")
    _spikes(panels[2, 1], stats)
    for axes in panels.flat:
        axes.tick_params(axis="both", which="both", length=0, labelsize=9, colors=_SOFT)
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
    return figure


def _log_histogram(axes: Axes, histogram: LogHistogram, label: str) -> None:
    step = round((len(histogram.counts)) / np.log10(histogram.edges[-1] / histogram.edges[0]))
    width = max(1, step // _PANEL_BINS_A_DECADE)
    counts = histogram.counts.reshape(-1, width).sum(axis=1)
    edges = histogram.edges[::width]
    filled = np.flatnonzero(counts)
    if len(filled):
        shown = slice(filled[0], filled[-1] + 1)
        shares = 100 * counts[shown] / counts.sum()
        axes.bar(edges[:-1][shown], shares, np.diff(edges)[shown] * 0.92, align="edge", color=_BAR)
    axes.set_xscale("log")
    if not len(filled):
        axes.set_xlim(edges[0], edges[-1])
    axes.axvline(max(histogram.mean, histogram.edges[0]), color=_INK, linewidth=1.0)
    axes.set_xlabel(f"{label} (line: mean {histogram.mean:.3g})", color=_SOFT, fontsize=9)
    _share_axis(axes, "frames")


def _bars(
    axes: Axes, places: Iterable[int], counts: np.ndarray, label: str, *, of: str = "frames"
) -> None:
    axes.bar(list(places), 100 * counts / max(1, counts.sum()), width=0.8, color=_BAR)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(label, color=_SOFT, fontsize=9)
    _share_axis(axes, of)


def _share_axis(axes: Axes, of: str) -> None:
    axes.set_ylabel(f"{of}, %", color=_SOFT, fontsize=9)
    axes.grid(axis="y", color=_LINE, linewidth=0.8)


def _blank_shares(axes: Axes, stats: StoreStats) -> None:
    shares = stats.blank_shares
    rows = range(len(shares))
    values = [100 * share for share in shares.values()]
    axes.barh(rows, values, height=0.6, color=_BAR)
    for row, value in zip(rows, values, strict=True):
        axes.annotate(
            f"{value:.1f}",
            (value, row),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=_INK,
            fontsize=9,
        )
    axes.set_yticks(rows, [f"above {threshold:g}" for threshold in shares])
    axes.set_xlim(0, 110)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("frames with the blank's probability above, %", color=_SOFT, fontsize=9)
    axes.grid(axis="x", color=_LINE, linewidth=0.8)


def _spikes(axes: Axes, stats: StoreStats) -> None:
    names = [token for token, _ in stats.top_spikes]
    shares = [100 * n / max(1, stats.spike_count) for _, n in stats.top_spikes]
    axes.bar(range(len(names)), shares, width=0.8, color=_BAR)
    axes.set_xticks(range(len(names)), [_label(name) for name in names], parse_math=False)
    if max(map(len, names), default=0) > 2:
        axes.tick_params(axis="x", rotation=60)
    axes.set_xlabel("most frequent tokens of the greedy transcripts", color=_SOFT, fontsize=9)
    _share_axis(axes, "tokens")


def _label(token: str) -> str:
    """The token, characters that the figure's font lacks by their numbers."""
    known = get_font(findfont("DejaVu Sans")).get_charmap()
    return "".join(c if ord(c) in known and c.isprintable() else f"U+{ord(c):04X}" for c in token)
