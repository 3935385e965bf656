"""A sweep's report for people: tables of cells, markdown, plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from interkd.pipeline.figures import to_png
from interkd.pipeline.files import write_json, write_text
from interkd.pipeline.scoring.report import format_weights
from interkd.pipeline.sweep.plots import plot_depth, plot_wer
from interkd.pipeline.sweep.report import REPORT_FORMAT, Estimate, SweepReport


def write_report(folder: Path, report: SweepReport) -> list[Path]:
    """Writes `table.json`, `table.md`, `wer.png` and `depth.png`; returns their paths."""
    paths = [folder / name for name in ("table.json", "table.md", "wer.png", "depth.png")]
    write_json(paths[0], {"format": REPORT_FORMAT, **asdict(report)})
    write_text(paths[1], as_markdown(report))
    paths[2].write_bytes(to_png(plot_wer(report)))
    paths[3].write_bytes(to_png(plot_depth(report)))
    return paths


def table_of_groups(report: SweepReport) -> tuple[list[str], list[list[str]]]:
    """Titles and cells of the table: one row a group."""
    first = report.rows[0]
    titles = ["run", "seeds", f"{report.split} WER %", "95 % interval", "CER %"]
    titles += [f"{split} WER %" for split in first.other_wer]
    titles += [f"less than {name}, %" for name in first.reductions]
    titles += ["steps", "seconds"]
    rows = [
        [
            row.group,
            f"{len(row.seeds)}",
            f"{row.wer.value:.2f}",
            f"{row.wer.low:.2f} to {row.wer.high:.2f}",
            f"{row.cer:.2f}",
            *(f"{rate:.2f}" for rate in row.other_wer.values()),
            *(_change(estimate) for estimate in row.reductions.values()),
            f"{row.steps:,.0f}",
            f"{row.seconds:,.0f}",
        ]
        for row in report.rows
    ]
    return titles, rows


def table_of_heads(report: SweepReport) -> tuple[list[str], list[list[str]]]:
    """Titles and cells of the heads' table: WER of each head of each group, by depth."""
    depth = {head.name: head.weight_count for row in report.rows for head in row.heads}
    names = sorted(depth, key=lambda name: (name == "final", depth[name], name))
    rows = []
    for row in report.rows:
        wer = {head.name: f"{head.wer:.2f}" for head in row.heads}
        weights = format_weights(row.heads[-1].weight_count)
        rows.append([row.group, *(wer.get(name, "") for name in names), weights])
    return ["run", *names, "weights"], rows


def _change(estimate: Estimate | None) -> str:
    if estimate is None or math.isnan(estimate.value):
        return ""
    return f"{estimate.value:+.1f} ({estimate.low:+.1f} to {estimate.high:+.1f})"


def as_markdown(report: SweepReport) -> str:
    """The tables, how to read them, and what is missing."""
    parts = [_markdown(*table_of_groups(report))]
    if any(len(row.heads) > 1 for row in report.rows):
        parts.append(f"WER % of each head on {report.split}, mean over seeds:")
        parts.append(_markdown(*table_of_heads(report)))
    parts.append(
        f"Means over seeds, on {report.utterances:,} utterances of {report.split}; 95 % intervals "
        f"of {report.samples:,} resamples of utterances and seeds, comparisons on the same "
        'utterances. "Less than" is the relative reduction of the WER, above 0 where the row is '
        "better. One seed alone has an interval of utterances only."
    )
    if report.missing:
        parts.append(f"No result yet: {', '.join(report.missing)}.")
    return "\n\n".join(parts) + "\n"


def _markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(titles) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (titles, rule, *rows))
