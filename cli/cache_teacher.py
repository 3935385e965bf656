"""`interkd cache-teacher`: run a teacher once and store its posteriors."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

import click
from rich.console import Console
from rich.table import Table

from interkd.cli.cluster_options import cluster_options, cluster_settings
from interkd.cli.reporter import TerminalReporter
from interkd.kernels.errors import ConfigError
from interkd.pipeline.cache_settings import CacheTeacherConfig
from interkd.pipeline.cache_teacher import CacheTeacherSummary, cache_teacher
from interkd.pipeline.cluster.devices import device_list, run_on_devices

EXIT_STOPPED = 3
STOP_SIGNALS = (signal.SIGUSR2, signal.SIGTERM)
DEFAULTS = CacheTeacherConfig(teacher="", manifest=Path(), out=Path())


@click.command("cache-teacher")
@click.option(
    "--teacher",
    required=True,
    metavar="SPEC",
    help="interkd:CHECKPOINT | torchscript:FILE | torchaudio:BUNDLE_NAME | python:MODULE:FACTORY",
)
@click.option("--manifest", required=True, type=click.Path(path_type=Path), help="From prepare.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The store.")
@click.option(
    "--teacher-weights", type=click.Path(path_type=Path), help="State dict of a torchaudio bundle."
)
@click.option("--device", default=DEFAULTS.device, show_default=True, help="auto, cpu, cuda[:N].")
@click.option(
    "--devices",
    metavar="all|A,B",
    help="One process a device, which share the parts: every GPU of this host, or cuda:0,cuda:1.",
)
@click.option(
    "--precision",
    default=DEFAULTS.precision,
    show_default=True,
    type=click.Choice(["float32", "bfloat16"]),
)
@click.option("--top-k", default=DEFAULTS.top_k, show_default=True, help="Most tokens of a frame.")
@click.option(
    "--mass", default=DEFAULTS.mass, show_default=True, help="Probability that is kept of a frame."
)
@click.option(
    "--quantiser",
    default=DEFAULTS.quantiser,
    show_default=True,
    type=click.Choice(["angle5", "angle6", "angle7", "angle15"]),
    help="Bits of a stored probability.",
)
@click.option("--part-minutes", default=DEFAULTS.part_minutes, show_default=True)
@click.option(
    "--batch-seconds",
    type=float,
    help="Padded audio in a batch.  [default: 640 on a GPU, 60 on a CPU]",
)
@click.option(
    "--stale-minutes",
    default=DEFAULTS.stale_minutes,
    show_default=True,
    help="Silence after which parts claimed by a writer on another host are free again.",
)
@click.option(
    "--no-wait",
    is_flag=True,
    help="End when others have claimed what is left; a later run without it writes the index.",
)
@click.option("--decode-threads", type=int, help="One a core by default.")
@cluster_options
@click.option(
    "--worker-threads",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Cores with which the teacher of a process computes, on a cluster.",
)
def cache_teacher_command(
    cluster: str,
    workers: int,
    profile: Path | None,
    worker_threads: int,
    no_wait: bool,
    devices: str | None,
    **options: object,
) -> None:
    """Run a CTC teacher once over a corpus and store its frame posteriors.

    Killed or interrupted, it is simply started again: parts that stand are skipped. Started
    several times on one store, on any hosts, the runs share the parts between them. Exit code 3:
    stopped by SIGUSR2 or SIGTERM; the part in hand is free for others.
    """
    where = cluster_settings(cluster, workers, profile, threads=worker_threads)
    config = CacheTeacherConfig(cluster=where, wait=not no_wait, **options)  # type: ignore[arg-type]
    with _stoppable():
        reporter = TerminalReporter()
        if devices is not None:
            config = _on_devices(device_list(devices), config, options, reporter)
        summary = cache_teacher(config, reporter=reporter)
    Console().print(_table(summary))


def _on_devices(
    devices: list[str],
    config: CacheTeacherConfig,
    options: dict[str, object],
    reporter: TerminalReporter,
) -> CacheTeacherConfig:
    """Has processes make the parts; what is left for this one, the index above all."""
    if config.device != "auto" or config.cluster.kind in ("local", "slurm"):
        raise ConfigError("--devices", expected="neither --device nor --cluster", got="both")
    kept = {key: value for key, value in options.items() if key not in ("device", "decode_threads")}
    arguments = [
        word
        for key, value in kept.items()
        if value is not None
        for word in (f"--{key.replace('_', '-')}", str(value))
    ]
    run_on_devices(
        arguments,
        devices,
        config.out.with_name(f"{config.out.name}.logs"),
        decode_threads=config.decode_threads,
        reporter=reporter,
    )
    return replace(config, device=devices[0])


class _Stopped(BaseException):
    """A stop signal came."""


@contextmanager
def _stoppable() -> Iterator[None]:
    """Ends the process on a stop signal, once what it had claimed is free again."""

    def stop(number: int, frame: FrameType | None) -> None:
        for name in STOP_SIGNALS:  # a second one must not cut the first one's work short
            signal.signal(name, signal.SIG_IGN)
        raise _Stopped

    former = {}
    try:
        for name in STOP_SIGNALS:
            former[name] = signal.signal(name, stop)
    except ValueError:  # not the main thread: nobody can signal this run
        pass
    try:
        yield
    except _Stopped:
        click.echo("interkd: stopped; the same command goes on", err=True)
        sys.exit(EXIT_STOPPED)
    finally:
        for name, handler in former.items():
            signal.signal(name, handler)


def _table(summary: CacheTeacherSummary) -> Table:
    table = Table(title=str(summary.store), show_header=False, title_justify="left")
    table.add_column(style="dim")
    table.add_column(justify="right")
    table.add_row("hours", f"{summary.hours:.2f}")
    table.add_row("parts (written now)", f"{summary.parts} ({summary.parts_written})")
    if summary.finished:
        table.add_row("frames", f"{summary.frames:,}")
        table.add_row("entries a frame", f"{summary.entries_a_frame:.2f}")
        table.add_row("bytes on disk", f"{summary.store_bytes:,}")
        table.add_row("bytes a frame", f"{summary.bytes_a_frame:.2f}")
    else:
        table.add_row("index", "not written yet")
    if summary.parts_written:
        table.add_row("seconds", f"{summary.seconds:.1f}")
        table.add_row("times real time", f"{summary.times_real_time:.0f}")
    if summary.teacher_wer is not None:
        table.add_row("teacher's greedy WER %", f"{summary.teacher_wer:.2f}")
        table.add_row("teacher's greedy CER %", f"{summary.teacher_cer:.2f}")
    return table
