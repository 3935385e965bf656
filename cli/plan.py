"""`interkd plan`: what caching and training will cost, before anyone spends GPU hours."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from interkd.kernels.errors import ConfigError
from interkd.pipeline.config import as_plain
from interkd.pipeline.planning.costs import Plan, make_plan
from interkd.pipeline.planning.settings import (
    DEFAULT_EPOCHS,
    MEASURED_BPE_BYTES,
    MEASURED_BYTES,
    PlanConfig,
)

DEFAULTS = PlanConfig(hours=1.0, teacher_rtf=1.0, student_speed=1.0)


@click.command("plan")
@click.option(
    "--manifest", type=click.Path(path_type=Path), help="The corpus, from prepare; or --hours."
)
@click.option("--hours", type=float, help="Length of the corpus.")
@click.option("--utterances", type=int, help="How many they are, with --hours.")
@click.option(
    "--teacher-rtf",
    type=float,
    metavar="SPEED",
    help="The teacher's speed: seconds of audio a GPU second.",
)
@click.option(
    "--teacher-timing",
    type=float,
    nargs=2,
    metavar="SECONDS_OF_AUDIO SECONDS",
    help="The same as a timing.",
)
@click.option(
    "--cache-overhead",
    type=float,
    default=DEFAULTS.cache_overhead,
    show_default=True,
    help="Time of stage one over the teacher's; 1 for a teacher timed in stage one itself.",
)
@click.option("--frame-shift-ms", type=float, default=DEFAULTS.frame_shift_ms, show_default=True)
@click.option(
    "--bytes-per-frame",
    type=float,
    help="Of the whole store.  [default: as measured, a 20 ms of audio: "
    f"{MEASURED_BYTES} with characters; 1,000 BPE tokens took {MEASURED_BPE_BYTES}]",
)
@click.option(
    "--part-minutes",
    type=float,
    default=DEFAULTS.part_minutes,
    show_default=True,
    help="Audio in a part of the store: one file.",
)
@click.option(
    "--student-speed",
    type=float,
    metavar="SPEED",
    help="A student's speed: seconds of audio a GPU second, with a cached teacher.",
)
@click.option(
    "--student-run",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="A folder of train-student that has it instead.",
)
@click.option(
    "--epochs", type=int, help=f"Of each student.  [default: the run's, else {DEFAULT_EPOCHS}]"
)
@click.option(
    "--students", default="1,5,20", show_default=True, help="Numbers of students to compare."
)
@click.option("--gpu-price", type=float, help="Of a GPU hour, to have the costs in money too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def plan_command(
    manifest: Path | None,
    hours: float | None,
    utterances: int | None,
    teacher_rtf: float | None,
    teacher_timing: tuple[float, float] | None,
    cache_overhead: float,
    frame_shift_ms: float,
    bytes_per_frame: float | None,
    part_minutes: float,
    student_speed: float | None,
    student_run: Path | None,
    epochs: int | None,
    students: str,
    gpu_price: float | None,
    as_json: bool,
) -> None:
    """Work out what a teacher cache and its students cost, against online distillation.

    \b
      interkd plan --hours 960 --teacher-rtf 3600 --student-speed 5000 --epochs 50
      interkd plan --manifest data/train/manifest.jsonl --teacher-timing 15683 2.61 \\
        --cache-overhead 2.24 --student-run runs/first --students 1,10 --gpu-price 2.5
    """  # noqa: D301 (click reads the \\b)
    config = PlanConfig(
        manifest=manifest,
        hours=hours,
        utterances=utterances,
        teacher_rtf=teacher_rtf,
        teacher_timing=teacher_timing,
        cache_overhead=cache_overhead,
        frame_shift_ms=frame_shift_ms,
        bytes_per_frame=bytes_per_frame,
        part_minutes=part_minutes,
        student_speed=student_speed,
        student_run=student_run,
        epochs=epochs,
        students=_numbers(students),
        gpu_price=gpu_price,
    )
    plan = make_plan(config)
    if as_json:
        click.echo(json.dumps(as_plain(plan), indent=2))
        return
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False, markup=False)
    console.print(_once_table(plan))
    console.print()
    console.print(_students_table(plan))
    console.print()
    console.print(
        f"Break-even of one student, in epochs: {plan.break_even_epochs:g}; with "
        f"{plan.pays_from_epoch} or more the cache is cheaper. Assumed:"
    )
    for line in plan.assumptions:
        console.print(f"- {line}")


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise ConfigError(
            "--students", expected="whole numbers joined by commas, such as 1,5,20", got=repr(text)
        ) from None


def _once_table(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim")
    table.add_column(justify="right")
    utterances = "" if plan.utterances is None else f" in {plan.utterances:,} utterances"
    for name, value in (
        ("audio", f"{plan.hours:,.2f} h{utterances}"),
        ("store", f"{_short(plan.store_bytes / 1e9)} GB"),
        ("bytes a frame", f"{plan.bytes_per_frame:.3f}"),
        ("files, inodes", f"{plan.files:,}, {plan.inodes:,}"),
        ("teacher once (caching)", f"{_short(plan.caching_hours)} GPU h"),
        (f"a student, {plan.epochs} epochs", f"{_short(plan.student_hours)} GPU h"),
    ):
        table.add_row(name, value)
    return table


def _students_table(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    headings = ["students", "GPU h with the cache", "online", "saved", "factor"]
    if plan.gpu_price is not None:
        headings += ["price with the cache", "online", "saved"]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for cost in plan.costs:
        prices = (cost.cached_price, cost.online_price, cost.saved_price)
        table.add_row(
            f"{cost.students:,}",
            _short(cost.cached_hours),
            _short(cost.online_hours),
            _short(cost.saved_hours),
            f"{cost.factor:.2f}",
            *(f"{price:,.2f}" for price in prices if price is not None),
        )
    return table


def _short(value: float) -> str:
    """Three digits, or all before the point."""
    for least, decimals in ((100, 0), (10, 1), (1, 2), (0.1, 3), (0.01, 4)):
        if abs(value) >= least:
            return f"{value:,.{decimals}f}"
    return f"{value:.3g}"
