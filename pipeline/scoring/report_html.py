"""report.html: one page without outside files, with a plot of the heads and the worst errors."""

from __future__ import annotations

import html

from interkd.pipeline.scoring.error_rates import AlignedWord, ErrorCounts, align_words
from interkd.pipeline.scoring.report import HeadResult, Interval, ScoreReport, format_weights
from interkd.pipeline.scoring.report_plot import plot_heads

WORST_UTTERANCES = 20

_STYLE = """
:root { color-scheme: light; --ink: #1d2329; --soft: #66707a; --line: #e3e6e9;
  --substitution: #8a5200; --substitution-ground: #fdf1dc;
  --deletion: #a32a24; --deletion-ground: #fce8e6;
  --insertion: #1c5c99; --insertion-ground: #e6f0fa; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); line-height: 1.5;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 58rem; margin: 0 auto; padding: 3rem 1.5rem 4rem; }
h1 { font-size: 1.5rem; font-weight: 600; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; font-weight: 600; margin: 3rem 0 .75rem; }
p { margin: .25rem 0; }
.soft { color: var(--soft); }
.facts { display: flex; flex-wrap: wrap; gap: 1rem 3rem; margin: 2rem 0 0; }
.facts dt { color: var(--soft); font-size: .85rem; }
.facts dd { margin: 0; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.facts small { font-size: .85rem; color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .75rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { font-weight: 500; font-size: .85rem; color: var(--soft); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
tbody tr:last-child td { font-weight: 600; }
tbody tr:last-child td .soft { font-weight: 400; }
svg { display: block; width: 100%; height: auto; margin-top: .5rem; }
article { padding: 1rem 0 .75rem; border-top: 1px solid var(--line); }
article header { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1.5rem;
  font-size: .85rem; color: var(--soft); font-variant-numeric: tabular-nums; }
article header b { color: var(--ink); font-weight: 600; overflow-wrap: anywhere; }
.words { display: flex; flex-wrap: wrap; gap: .5rem .3rem; margin-top: .5rem; }
.words > span { display: flex; flex-direction: column; padding: .05rem .3rem;
  border-radius: .25rem; line-height: 1.4; max-width: 100%; overflow-wrap: anywhere; }
.words > span > * { min-height: 1.4em; }
.substitute { background: var(--substitution-ground); color: var(--substitution); }
.delete { background: var(--deletion-ground); color: var(--deletion); }
.insert { background: var(--insertion-ground); color: var(--insertion); }
del { text-decoration: line-through; }
ins { text-decoration: none; }
.legend span { padding: .05rem .35rem; border-radius: .25rem; margin-right: .35rem; }
footer { margin-top: 3rem; font-size: .85rem; color: var(--soft); }
@media print { main { padding: 0; max-width: none; } article { break-inside: avoid; } }
"""


def render_html(report: ScoreReport, *, worst: int = WORST_UTTERANCES) -> str:
    """The report as a page of its own: styles and the plot are in it, no script, no link.

    Args:
        report: What to show.
        worst: How many utterances to align, those with most word errors at the last head first.

    Returns:
        The text of an HTML file.
    """
    results, final = report.results, report.results.final
    word_interval, character_interval = report.word_intervals[-1], report.character_intervals[-1]
    factor = results.real_time_factor
    title = f"{report.student} on {report.manifest}"
    facts = [
        ("Word error rate", f"{final.word_total.rate:.2f} %", _range(word_interval)),
        ("Character error rate", f"{final.character_total.rate:.2f} %", _range(character_interval)),
        ("Weights", format_weights(final.weight_count), ""),
        ("Real-time factor", f"{factor:.2g}", f"{1 / factor:,.0f} s of audio a second"),
    ]
    fact_list = "".join(
        f"<div><dt>{_text(name)}</dt><dd>{_text(value)} <small>{_text(note)}</small></dd></div>"
        for name, value, note in facts
    )
    unit = "speakers" if report.resample == "speaker" else "utterances"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{_text(report.student)}</h1>
<p class="soft">{_text(report.manifest)}: {len(results.utterances):,} utterances,
{final.word_total.reference_length:,} words, {_duration(results.audio_seconds)}</p>
<p class="soft">{_text(report.trained_with)}</p>
<dl class="facts">{fact_list}</dl>
<h2>Heads</h2>
<div class="wide"><table>
<thead><tr><th>head</th><th>weights</th><th>WER %</th><th>95 % interval</th>
<th>substitutions</th><th>insertions</th><th>deletions</th><th>CER %</th><th>95 % interval</th></tr>
</thead>
<tbody>
{"".join(_head_row(report, index) for index in range(len(results.heads)))}</tbody>
</table></div>
{plot_heads(report)}
{_worst_section(report, worst)}
<footer>Greedy decoding. Intervals: 95 % bootstrap over {unit},
{report.bootstrap_samples:,} resamples, seed {report.seed}.
Model time on {_text(report.device)}: {results.model_seconds:.2f} s, features included,
decoding and reading excluded.</footer>
</main>
</body>
</html>
"""


def _head_row(report: ScoreReport, index: int) -> str:
    head = report.results.heads[index]
    words, characters = head.word_total, head.character_total
    cells = [
        _text(head.name),
        format_weights(head.weight_count),
        f"{words.rate:.2f}",
        f'<span class="soft">{_range(report.word_intervals[index])}</span>',
        f"{words.substitutions:,}",
        f"{words.insertions:,}",
        f"{words.deletions:,}",
        f"{characters.rate:.2f}",
        f'<span class="soft">{_range(report.character_intervals[index])}</span>',
    ]
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>\n"


def _worst_section(report: ScoreReport, worst: int) -> str:
    final = report.results.final
    order = sorted(
        (index for index, count in enumerate(final.words) if count.errors),
        key=lambda index: (-final.words[index].errors, final.words[index].reference_length, index),
    )[:worst]
    if not order:
        return "<h2>Worst utterances</h2>\n<p>Not a single word is wrong.</p>"
    articles = "".join(_article(report, final, index) for index in order)
    return f"""<h2>Worst utterances</h2>
<p class="soft legend">Head {_text(final.name)}, most word errors first; the reference above, the
hypothesis below. <span class="substitute">substituted</span>
<span class="insert"><ins>inserted</ins></span> <span class="delete"><del>deleted</del></span></p>
{articles}"""


def _article(report: ScoreReport, head: HeadResult, index: int) -> str:
    utterance, counts = report.results.utterances[index], head.words[index]
    columns = align_words(utterance.reference, head.hypotheses[index])
    return f"""<article>
<header><b>{_text(utterance.utt_id)}</b><span>{_count_line(counts)},
{utterance.audio_seconds:.1f} s</span></header>
<div class="words">{"".join(_column(column) for column in columns)}</div>
</article>
"""


def _column(column: AlignedWord) -> str:
    """The reference's word above the hypothesis's, a dot where one of them has none."""
    above, below = (_text(word or "\u00b7") for word in (column.reference, column.hypothesis))
    if column.operation == "delete":
        pair = f"<del>{above}</del><span>{below}</span>"
    elif column.operation == "insert":
        pair = f"<span>{above}</span><ins>{below}</ins>"
    else:
        pair = f"<span>{above}</span><span>{below}</span>"
    return f'<span class="{column.operation}">{pair}</span>'


def _count_line(counts: ErrorCounts) -> str:
    kinds = (
        (counts.substitutions, "substituted"),
        (counts.insertions, "inserted"),
        (counts.deletions, "deleted"),
    )
    split = ", ".join(f"{count} {kind}" for count, kind in kinds if count)
    plural = "s" if counts.errors != 1 else ""
    return f"{counts.errors} error{plural} in {counts.reference_length} words ({split})"


def _range(interval: Interval) -> str:
    return f"{interval.low:.2f}\u2013{interval.high:.2f}"


def _duration(seconds: float) -> str:
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def _text(value: str) -> str:
    return html.escape(value, quote=True)
