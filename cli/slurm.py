"""`interkd slurm`: batch scripts of the stages, submitted and followed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from interkd.cli.cache_teacher import cache_teacher_command
from interkd.cli.score import score_command
from interkd.cli.sweep import sweep_command
from interkd.cli.train import train_student_command
from interkd.pipeline.cluster.follow import follow
from interkd.pipeline.cluster.jobs import (
    array_size,
    cache_jobs,
    check_sweep,
    check_teacher,
    job_name,
    score_job,
    sweep_job,
    train_job,
    training_settings,
)
from interkd.pipeline.cluster.profile import Profile, read_profile
from interkd.pipeline.cluster.road import read_road, road_jobs
from interkd.pipeline.cluster.script import Job
from interkd.pipeline.cluster.submit import Written, submit, write_scripts
from interkd.pipeline.corpus.manifest import require_manifest
from interkd.pipeline.sweep.config import read_sweep

DEFAULT_FOLDER = Path("slurm")
_PASSES_ON = {"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]}


@dataclass(frozen=True, kw_only=True)
class Common:
    """The options that all commands share."""

    profile: Path | None
    folder: Path | None
    submit: bool
    wait: bool
    poll: float


def _common(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(
        (
            click.option(
                "--profile",
                type=click.Path(path_type=Path),
                help="YAML of the cluster.  [default: ~/.config/interkd/slurm.yaml]",
            ),
            click.option(
                "--folder",
                type=click.Path(path_type=Path),
                help=f"Scripts, and logs in 'logs'.  [default: {DEFAULT_FOLDER}]",
            ),
            click.option("--submit", is_flag=True, help="Hand the scripts to Slurm."),
            click.option("--wait", is_flag=True, help="Submit, and follow the jobs to their end."),
            click.option(
                "--poll",
                type=click.FloatRange(min=0, min_open=True),
                default=10.0,
                show_default=True,
                help="Seconds between two looks at the queue, with --wait.",
            ),
        )
    ):
        command = option(command)
    return command


def _stage(command: Callable[..., None]) -> Callable[..., None]:
    """The options of a single stage; what is not among them is the stage's own."""
    for option in reversed(
        (
            click.option("--name", help="Of the job, its script and its logs."),
            click.option(
                "--after",
                multiple=True,
                metavar="ID",
                help="Job that must have succeeded; as often as you like.",
            ),
            click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS]"),
        )
    ):
        command = option(command)
    return _common(command)


@click.group("slurm")
def slurm_command() -> None:
    """Write the batch scripts of a stage, or of the whole road, and submit them.

    Each command takes the options of the stage besides its own. Without --submit it only writes.
    """


@slurm_command.command("cache-teacher", context_settings=_PASSES_ON)
@_stage
@click.option(
    "--tasks", type=int, help="Size of the job array.  [default: the profile's, at most one a part]"
)
def slurm_cache_teacher(
    arguments: tuple[str, ...],
    name: str | None,
    after: tuple[str, ...],
    tasks: int | None,
    **options: Any,
) -> None:
    """An array of `interkd cache-teacher`, and a job that writes the index and verifies."""
    common, profile = _begin(options)
    asked = _parse(cache_teacher_command, arguments)
    check_teacher(asked["teacher"], comes=bool(after))
    size = array_size(asked["manifest"], asked["part_minutes"], tasks=tasks, most=profile.tasks)
    base = [name] if name else [asked["out"].name]
    names = (job_name("cache-teacher", *base), job_name("index", *base))
    words = [word for word in arguments if word != "--no-wait"]
    jobs = cache_jobs(words, out=asked["out"], tasks=size, names=names, profile=profile)
    _end(common, profile, jobs, after)


@slurm_command.command("train-student", context_settings=_PASSES_ON)
@_stage
def slurm_train_student(
    arguments: tuple[str, ...], name: str | None, after: tuple[str, ...], **options: Any
) -> None:
    """A job of `interkd train-student` that is stopped with a checkpoint, requeued and resumed."""
    common, profile = _begin(options)
    words = [word for word in arguments if word != "--resume"]
    asked = _parse(train_student_command, words)
    settings = training_settings(
        asked["config"],
        asked["assignments"],
        {"out": asked["out"], "store": asked["store"]},
        store_comes=bool(after),
    )
    title = name or job_name("train-student", settings.out.name)
    _end(common, profile, [train_job(words, settings, name=job_name(title))], after)


@slurm_command.command("score", context_settings=_PASSES_ON)
@_stage
def slurm_score(
    arguments: tuple[str, ...], name: str | None, after: tuple[str, ...], **options: Any
) -> None:
    """A job of `interkd score`."""
    common, profile = _begin(options)
    asked = _parse(score_command, arguments)
    if asked["checkpoint"] is None or asked["manifest"] is None or asked["out"] is None:
        raise click.UsageError("give --checkpoint, --manifest and --out")
    require_manifest(asked["manifest"], "--manifest")
    title = name or job_name("score", asked["out"].name)
    _end(common, profile, [score_job([arguments], name=job_name(title))], after)


@slurm_command.command("sweep", context_settings=_PASSES_ON)
@_stage
def slurm_sweep(
    arguments: tuple[str, ...], name: str | None, after: tuple[str, ...], **options: Any
) -> None:
    """A job of `interkd sweep`: its runs share one node, and go on where they were."""
    common, profile = _begin(options)
    asked = _parse(sweep_command, arguments)
    config = asked["config"]
    if asked["only_list"] or asked["only_report"]:
        read_sweep(config)
    else:
        check_sweep(config, only=asked["only"], store_comes=bool(after))
    title = job_name(name or job_name("sweep", config.stem))
    _end(common, profile, [sweep_job(arguments, config, name=title, profile=profile)], after)


@slurm_command.command("pipeline")
@click.argument("config", type=click.Path(path_type=Path), metavar="PIPELINE.yaml")
@_common
def slurm_pipeline(config: Path, **options: Any) -> None:
    """The whole road of one YAML: cache, students, scores, each job after those it needs."""
    common, profile = _begin(options)
    road = read_road(config)
    jobs = road_jobs(road, profile)
    _end(common, profile, jobs, (), folder=road.folder)


def _begin(options: dict[str, Any]) -> tuple[Common, Profile]:
    common = Common(**options)
    return common, read_profile(common.profile)


def _parse(command: click.Command, arguments: Sequence[str]) -> dict[str, Any]:
    """The options of a stage, refused now where the job would refuse them later."""
    context = command.make_context(f"interkd {command.name}", list(arguments))
    return context.params


def _end(
    common: Common,
    profile: Profile,
    jobs: Sequence[Job],
    after: Sequence[str],
    *,
    folder: Path | None = None,
) -> None:
    """Writes the scripts, and does with them what was asked."""
    written = write_scripts(jobs, profile, common.folder or folder or DEFAULT_FOLDER)
    if not common.submit and not common.wait:
        for item in written:
            click.echo(f"{item.script}{_remark(item)}")
        click.echo("--submit hands them to Slurm", err=True)
        return
    submitted = submit(written, profile, after=after)
    for job in submitted:
        click.echo(f"{job.job_id}  {job.written.job.name}{_remark(job.written)}")
    if not common.wait:
        return
    failures = follow(submitted, poll_seconds=common.poll, message=_say)
    for failure in failures:
        click.echo(f"failed: {failure.name} ({failure.job_id}): {failure.reason}", err=True)
    if failures:
        click.echo("the same command goes on where they stopped", err=True)
        sys.exit(1)


def _remark(item: Written) -> str:
    job = item.job
    remarks = [f"{job.tasks} tasks"] if job.tasks is not None else []
    remarks += [f"after {', '.join(job.after)}"] if job.after else []
    return f"  ({'; '.join(remarks)})" if remarks else ""


def _say(text: str) -> None:
    click.echo(f"{time.strftime('%H:%M:%S')}  {text}")
