"""`interkd train-student` and `interkd train-teacher`: one trainer, two front doors."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from interkd.cli.reporter import TerminalReporter
from interkd.kernels.errors import ConfigError
from interkd.pipeline.config import build, override, read_yaml
from interkd.pipeline.training.config import TrainConfig
from interkd.pipeline.training.position import TrainResult
from interkd.pipeline.training.trainer import train

EXIT_STOPPED = 3


def _options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(
        (
            click.option(
                "--config", type=click.Path(path_type=Path), help="YAML; docs/training.md lists it."
            ),
            click.option(
                "--set",
                "assignments",
                multiple=True,
                metavar="A.B=VALUE",
                help="Any setting of the YAML, as often as you like.",
            ),
            click.option("--out", type=click.Path(), help="The run's folder (setting 'out')."),
            click.option("--resume", is_flag=True, help="Go on from the run's last checkpoint."),
        )
    ):
        command = option(command)
    return command


@click.command("train-student")
@_options
@click.option("--store", type=click.Path(), help="Teacher cache (setting 'store').")
def train_student_command(
    config: Path | None,
    assignments: tuple[str, ...],
    out: str | None,
    resume: bool,
    store: str | None,
) -> None:
    """Train a student from a teacher cache; every field of the YAML by --set a.b=c.

    Exit code 3: stopped by the stop signal, with a checkpoint from which --resume goes on.
    """
    values = _settings(config, assignments, out=out, store=store)
    _run(build(TrainConfig, values), resume=resume)


@click.command("train-teacher")
@_options
def train_teacher_command(
    config: Path | None, assignments: tuple[str, ...], out: str | None, resume: bool
) -> None:
    """Train a CTC teacher: the same trainer with the plain ctc recipe."""
    values = _settings(config, assignments, out=out)
    if values.get("objective") is None:
        values["objective"] = {}
    if isinstance(values["objective"], dict):
        values["objective"].setdefault("recipe", "ctc")
    settings = build(TrainConfig, values)
    recipe = settings.objective.recipe
    if recipe not in ("ctc", "inter-ctc") or settings.store is not None:
        raise ConfigError(
            "a teacher learns from transcripts alone",
            expected="objective.recipe ctc or inter-ctc, and no store",
            got=recipe,
            remedy="interkd train-student trains from a teacher cache",
        )
    _run(settings, resume=resume)


def _settings(
    config: Path | None, assignments: tuple[str, ...], **options: str | None
) -> dict[str, Any]:
    values = read_yaml(config) if config is not None else {}
    override(values, assignments)
    values.update({key: value for key, value in options.items() if value is not None})
    return values


def _run(config: TrainConfig, *, resume: bool) -> None:
    result = train(config, resume=resume, reporter=TerminalReporter())
    if os.environ.get("RANK", "0") == "0":  # of several processes one speaks
        Console().print(_table(config, result))
    if not result.finished:
        sys.exit(EXIT_STOPPED)


def _table(config: TrainConfig, result: TrainResult) -> Table:
    table = Table(title=str(result.run), show_header=False, title_justify="left")
    table.add_column(style="dim")
    table.add_column(justify="right")
    table.add_row("recipe", config.objective.recipe)
    table.add_row("normalisation", config.objective.normalisation)
    table.add_row("weights", f"{result.weights:,}")
    table.add_row("steps", f"{result.steps:,}")
    table.add_row("training seconds", f"{result.seconds:.1f}")
    if result.best_wer is not None:
        table.add_row("best dev WER %", f"{result.best_wer:.2f}")
    if not result.finished:
        table.add_row("stopped", "--resume goes on")
    return table
