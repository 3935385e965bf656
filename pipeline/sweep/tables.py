"""A sweep's report for people: tables of cells, markdown, plots."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path

from interkd.pipeline.figures import to_png
from interkd.pipeline.files import write_json, write_text
from interkd.pipeline.scoring.report import format_weights
from interkd.pipeline.sweep.intervals import Estimate
from interkd.pipeline.sweep.plots import plot_depth, plot_wer
from interkd.pipeline.sweep.rows import (
    REPORT_FORMAT,
    GroupRow,
    SweepReport,
    TeacherRow,
)


def write_report(folder: Path, report: SweepReport) -> list[Path]:
    """Writes `table.json`, `table.md`, `wer.png` and `depth.png`; returns their paths."""
    paths = [folder / name for name in ("table.json", "table.md", "wer.png", "depth.png")]
    write_json(paths[0], {"format": REPORT_FORMAT, **asdict(report)})
    write_text(paths[1], as_markdown(report))
    paths[2].write_bytes(to_png(plot_wer(report)))
    paths[3].write_bytes(to_png(plot_depth(report)))
    return paths


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table in text: what it is about (may be empty), its cells, and how to read it."""

    caption: str
    titles: list[str]
    rows: list[list[str]]
    note: str = ""


def tables_of(report: SweepReport) -> list[Table]:
    """All tables of a report, for the terminal and for markdown alike."""
    titles, rows = table_of_groups(report)
    tables = [Table(caption="", titles=titles, rows=rows, note=_note(report))]
    if any(len(row.heads) > 1 for row in report.rows):
        titles, rows = table_of_heads(report)
        caption = f"Each head on {report.split}, % with the 95 % interval:"
        tables.append(Table(caption=caption, titles=titles, rows=rows))
    if any(head.spike_offset is not None for row in report.rows for head in row.heads):
        titles, rows = table_of_spikes(report)
        caption = "Spikes, student frame - teacher frame: mean in frames (share of exactly 0):"
        tables.append(Table(caption=caption, titles=titles, rows=rows))
    if any(found is not None for row in report.rows for found in row.dev_wer_at_steps):
        titles, rows = table_of_steps(report)
        caption = "Dev WER % at equal steps, final head, the last validation until then:"
        tables.append(Table(caption=caption, titles=titles, rows=rows))
    if any(found is not None for row in report.rows for found in row.dev_wer_at):
        is_measured = report.rows[0].gpu_seconds is not None
        titles, rows = table_of_budgets(report)
        tables.append(
            Table(
                caption=f"Dev WER % at equal {'GPU ' if is_measured else ''}seconds, final head, "
                "and when it was taken:",
                titles=titles,
                rows=rows,
                note="The last validation until then, mean over seeds, of runs that go on after "
                "it: their learning rate is that of the whole run. "
                + (
                    "GPU seconds are steps by ms_a_step."
                    if is_measured
                    else "Without ms_a_step the seconds are the runs' own: where they shared a "
                    "GPU, they depend on what ran beside."
                ),
            )
        )
    return tables


def table_of_groups(report: SweepReport) -> tuple[list[str], list[list[str]]]:
    """Titles and cells of the table: one row a group, the teacher's last."""
    first = report.rows[0]
    titles = ["run", "seeds", f"{report.split} WER %", "95 % interval", "CER %", "95 % interval"]
    titles += [f"{split} WER %" for split in first.other_wer]
    titles += [f"less than {name}, %" for name in first.reductions]
    titles += ["steps", "seconds"]
    rows = [
        [
            row.group,
            f"{len(row.seeds)}",
            *_rates(row),
            *(f"{rate:.2f}" for rate in row.other_wer.values()),
            *(_change(estimate) for estimate in row.reductions.values()),
            f"{row.steps:,.0f}",
            f"{row.seconds:,.0f}",
        ]
        for row in report.rows
    ]
    teacher = report.teacher
    if teacher is not None:
        others = [teacher.other_wer.get(split) for split in first.other_wer]
        rows.append(
            [
                "teacher",
                "",
                *_rates(teacher),
                *("" if rate is None else f"{rate:.2f}" for rate in others),
                *(_change(estimate) for estimate in teacher.reductions.values()),
                "",
                "",
            ]
        )
    if first.gpu_seconds is not None:
        titles.append("GPU s")
        for row, cells in zip_longest(report.rows, rows):
            cells.append("" if row is None else f"{row.gpu_seconds:,.0f}")
    return titles, rows


def table_of_heads(report: SweepReport) -> tuple[list[str], list[list[str]]]:
    """Titles and cells of the heads' table: WER and CER of each head of each group, by depth."""
    names = _heads(report)
    rows = []
    for row in report.rows:
        wer = {head.name: _with_interval(head.wer) for head in row.heads}
        cer = {head.name: _with_interval(head.cer) for head in row.heads}
        weights = format_weights(row.heads[-1].weight_count)
        rows.append([row.group, "WER", *(wer.get(name, "") for name in names), weights])
        rows.append(["", "CER", *(cer.get(name, "") for name in names), ""])
    return ["run", "%", *names, "weights"], rows


def table_of_spikes(report: SweepReport) -> tuple[list[str], list[list[str]]]:
    """Titles and cells of the spikes' offsets: each head of each group, by depth."""
    names = _heads(report)
    rows = []
    for row in report.rows:
        cells = {
            head.name: f"{head.spike_offset:+.2f} ({head.spikes_in_frame:.0f} %)"
            for head in row.heads
            if head.spike_offset is not None
        }
        rows.append([row.group, *(cells.get(name, "") for name in names)])
    return ["run", *names], rows


def _heads(report: SweepReport) -> list[str]:
    """Names of all heads, by depth."""
    depth = {head.name: head.weight_count for row in report.rows for head in row.heads}
    return sorted(depth, key=lambda name: (name == "final", depth[name], name))


def table_of_budgets(report: SweepReport) -> tuple[list[str], list[list[str]]]:
    """Titles and cells of the dev WER at equal training time: one row a group."""
    rows = [
        [
            row.group,
            *(
                "" if found is None else f"{found.wer:.2f} ({found.seconds:,.0f} s)"
                for found in row.dev_wer_at
            ),
        ]
        for row in report.rows
    ]
    return ["run", *(f"{seconds:,.0f} s" for seconds in report.budgets)], rows


def table_of_steps(report: SweepReport) -> tuple[list[str], list[list[str]]]:
    """Titles and cells of the dev WER at equal steps: one row a group."""
    rows = [
        [row.group, *("" if wer is None else f"{wer:.2f}" for wer in row.dev_wer_at_steps)]
        for row in report.rows
    ]
    return ["run", *(f"{steps:,.0f}" for steps in report.step_budgets)], rows


def _rates(row: GroupRow | TeacherRow) -> Iterator[str]:
    for estimate in (row.wer, row.cer):
        yield f"{estimate.value:.2f}"
        yield f"{estimate.low:.2f} to {estimate.high:.2f}"


def _with_interval(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} ({estimate.low:.1f} to {estimate.high:.1f})"


def _change(estimate: Estimate | None) -> str:
    if estimate is None or math.isnan(estimate.value):
        return ""
    return f"{estimate.value:+.1f} ({estimate.low:+.1f} to {estimate.high:+.1f})"


def _note(report: SweepReport) -> str:
    note = (
        f"Means over seeds, on {report.utterances:,} utterances of {report.split}; 95 % intervals "
        f"of {report.samples:,} resamples of utterances and seeds, comparisons on the same "
        'utterances. "Less than" is the relative reduction of the WER, above 0 where the row is '
        "better. One seed alone has an interval of utterances only."
    )
    if report.teacher is not None and not report.teacher.is_paired:
        note += " The teacher was scored on other utterances or references: no comparison with it."
    return note


def as_markdown(report: SweepReport) -> str:
    """The tables, how to read them, and what is missing."""
    parts = []
    for table in tables_of(report):
        parts += [table.caption, _markdown(table.titles, table.rows), table.note]
    if report.missing:
        parts.append(f"No result yet: {', '.join(report.missing)}.")
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(titles) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (titles, rule, *rows))
