"""Options of the commands whose work is many independent tasks: where they run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from interkd.pipeline.cluster.tasks import KINDS, ClusterSettings

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--cluster",
        type=click.Choice(KINDS),
        default="auto",
        show_default=True,
        help="Threads (none), processes of this host, Slurm jobs; auto: processes if it is long.",
    ),
    click.option(
        "--workers",
        type=click.IntRange(min=0),
        default=0,
        help="Threads or processes; 0 for one a core, with slurm for those of one job.",
    ),
    click.option(
        "--profile",
        type=click.Path(path_type=Path),
        help="Settings of a Slurm job (YAML), for --cluster slurm.",
    ),
)


def cluster_options(command: Command) -> Command:
    """Adds --cluster, --workers and --profile; `cluster_settings` takes their values."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def cluster_settings(
    cluster: str, workers: int, profile: Path | None, *, threads: int = 1
) -> ClusterSettings:
    """The settings that the options stand for.

    Args:
        cluster: `--cluster`.
        workers: `--workers`.
        profile: `--profile`.
        threads: Cores of each worker.
    """
    return ClusterSettings(kind=cluster, workers=workers, threads=threads, profile=profile)
