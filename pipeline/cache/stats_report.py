"""The statistics of a store as lines for the terminal and as one page without outside files."""

from __future__ import annotations

import html

from interkd.pipeline.cache.stats import QUANTILES, LogHistogram, StoreStats

_STYLE = """
:root { color-scheme: light; --ink: #1d2329; --soft: #66707a; --line: #e3e6e9; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 3rem 1.5rem 4rem; }
h1 { font-size: 1.5rem; font-weight: 600; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; font-weight: 600; margin: 2.5rem 0 .75rem; }
p { margin: .25rem 0; }
.soft, th { color: var(--soft); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem 1.5rem .35rem 0; text-align: left; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; }
th { font-weight: 400; white-space: nowrap; }
svg { display: block; width: 100%; height: auto; margin-top: 2rem; }
@media print { main { padding: 0; max-width: none; } }
"""

Rows = list[tuple[str, str]]


def overview(stats: StoreStats) -> Rows:
    """Names and values of what one asks first."""
    counts, fingerprint = stats.counts, stats.fingerprint
    frames = max(1, counts.frames)
    entries = sum(number * int(n) for number, n in enumerate(counts.entries))
    blank_runs = int(counts.blank_runs.sum())
    run_frames = sum(length * int(n) for length, n in enumerate(counts.blank_runs))
    seconds = 3600 * stats.hours
    rows = [
        ("store", str(stats.path)),
        ("kept", f"mass {fingerprint.mass:g}, {fingerprint.quantiser}"),
        ("audio", f"{stats.hours:.3f} h, {counts.utterances:,} utterances"),
        ("frames", f"{counts.frames:,}"),
        ("entropy, nats", _spread(counts.entropy)),
        ("mass left out", _spread(counts.left_out)),
        ("entries a frame", f"mean {entries / frames:.3f}"),
    ]
    rows += [
        (f"blank above {threshold:g}", f"{100 * share:.2f} % of frames")
        for threshold, share in stats.blank_shares.items()
    ]
    quantiles = ", ".join(f"{100 * q:g} %: {stats.blank_run_quantile(q)}" for q in QUANTILES)
    rows += [
        ("runs of blanks", f"{blank_runs:,}, mean {run_frames / max(1, blank_runs):.2f} frames"),
        ("  quantiles", quantiles),
        ("spikes", f"{stats.spike_count:,}, {stats.spike_count / max(1e-9, seconds):.1f} a second"),
        ("bits a frame", f"{sum(stats.column_bits.values()):.3f}"),
    ]
    return rows


def tables(stats: StoreStats) -> dict[str, Rows]:
    """The longer lists, by title."""
    frames, spikes = max(1, stats.counts.frames), max(1, stats.spike_count)
    return {
        "Frames by entries": [
            (str(number), f"{int(n):,} ({100 * int(n) / frames:.2f} %)")
            for number, n in enumerate(stats.counts.entries)
            if n
        ],
        "Bits a frame by column": [
            (name, f"{bits:.3f}") for name, bits in stats.column_bits.items()
        ],
        "Most frequent spikes": [
            (token, f"{n:,} ({100 * n / spikes:.2f} %)") for token, n in stats.top_spikes
        ],
    }


def _spread(histogram: LogHistogram) -> str:
    quantiles = ", ".join(f"{100 * q:g} %: {histogram.quantile(q):.2g}" for q in QUANTILES)
    return f"mean {histogram.mean:.4g}; {quantiles}"


def render_html(stats: StoreStats, figure_svg: str) -> str:
    """The page: styles and figure are in it, no script, no link.

    Args:
        stats: What to show.
        figure_svg: `figures.to_svg` of the figure.
    """
    title = f"Teacher cache {stats.path.name}"
    sections = "".join(
        f"<h2>{html.escape(name)}</h2>\n{_table(rows)}" for name, rows in tables(stats).items()
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{html.escape(title)}</h1>
<p class="soft">{html.escape(stats.fingerprint.teacher)}</p>
{_table(overview(stats))}
{figure_svg}
{sections}
</main>
</body>
</html>
"""


def _table(rows: Rows) -> str:
    cells = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>\n"
        for name, value in rows
    )
    return f"<table>\n{cells}</table>\n"
