"""`interkd sweep`: a grid of settings from one file, run side by side, in one table."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from interkd.cli.reporter import TerminalReporter
from interkd.kernels.errors import InterkdError
from interkd.pipeline.sweep.config import SweepConfig, read_sweep
from interkd.pipeline.sweep.driver import run_sweep
from interkd.pipeline.sweep.processes import SweepOutcome
from interkd.pipeline.sweep.report import report_sweep
from interkd.pipeline.sweep.states import states
from interkd.pipeline.sweep.tables import tables_of, write_report


@click.command("sweep")
@click.argument("config", type=click.Path(path_type=Path), metavar="SWEEP.yaml")
@click.option("--jobs", type=click.IntRange(min=1), help="Runs at once (setting 'jobs').")
@click.option(
    "--only", multiple=True, metavar="NAME", help="Only runs of that name; * and ? fit anything."
)
@click.option(
    "--devices", default="", metavar="A,B", help="Devices given to the runs in turn: cuda:0,cuda:1."
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    help="Then the runs write a checkpoint and stop; the next call goes on.",
)
@click.option("--list", "only_list", is_flag=True, help="Only show the runs and their state.")
@click.option("--report", "only_report", is_flag=True, help="Only write the table and the plots.")
def sweep_command(
    config: Path,
    jobs: int | None,
    only: tuple[str, ...],
    devices: str,
    minutes: float | None,
    only_list: bool,
    only_report: bool,
) -> None:
    """Train and score every run of SWEEP.yaml that has no result yet, then write the report.

    Exit code 1: a run failed; 3: stopped, and the same call goes on where it was.
    """
    if only_list and only_report:
        raise click.UsageError("--list and --report are two commands")
    if only_report and only:
        raise click.UsageError("--report is about every run that has a result, not --only some")
    sweep = read_sweep(config)
    if only_list:
        _print_states(sweep, only)
        return
    if only_report:
        _report(sweep)
        return
    outcome = run_sweep(
        sweep,
        jobs=jobs,
        only=only,
        devices=[name.strip() for name in devices.split(",") if name.strip()],
        minutes=minutes,
        reporter=TerminalReporter(),
    )
    code = outcome.exit_code
    try:
        if outcome.done:
            _report(sweep)
    except InterkdError as error:  # which must not hide what became of the runs
        click.echo(f"no report: {error}", err=True)
        code = code or 2
    _print_outcome(outcome)
    sys.exit(code)


def _print_states(sweep: SweepConfig, only: Sequence[str]) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("run", "state", "log"):
        table.add_column(title, no_wrap=True)
    standing = states(sweep, only)
    for row in standing:
        log = str(row.run.log) if row.run.log.exists() else ""
        table.add_row(row.run.name, row.state, log)
    _console().print(table)
    counts = Counter(row.state for row in standing)
    click.echo(", ".join(f"{count} {state}" for state, count in counts.items()))


def _report(sweep: SweepConfig) -> None:
    report = report_sweep(sweep)
    paths = write_report(sweep.results_folder, report)
    console = _console()
    for table in tables_of(report):
        if table.caption:
            click.echo(f"\n{table.caption}")
        console.print(_table(table.titles, table.rows))
        if table.note:
            click.echo(table.note)
    if report.missing:
        click.echo(f"no result yet: {', '.join(report.missing)}")
    click.echo(f"report: {', '.join(str(path) for path in paths)}")


def _table(titles: list[str], rows: list[list[str]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for index, title in enumerate(titles):
        table.add_column(title, justify="right" if index else "left", no_wrap=index == 0)
    for row in rows:
        table.add_row(*row)
    return table


def _print_outcome(outcome: SweepOutcome) -> None:
    for failure in outcome.failed:
        click.echo(
            f"failed: {failure.run.name}, exit code {failure.code}, log {failure.run.log}: "
            f"{failure.reason}",
            err=True,
        )
    for what, runs in (
        ("unfinished", outcome.unfinished),
        ("held by another process", outcome.elsewhere),
    ):
        if runs:
            click.echo(f"{what}: {', '.join(run.name for run in runs)}", err=True)


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 160)
