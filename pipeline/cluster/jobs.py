"""The jobs of each stage: which commands, which signal stops them, what they wait for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from interkd.kernels.errors import ConfigError
from interkd.pipeline.cache.plan import plan_parts
from interkd.pipeline.cluster.script import INTERKD, Job
from interkd.pipeline.config import build, override, read_yaml
from interkd.pipeline.corpus.manifest import read_manifest
from interkd.pipeline.sweep.config import read_sweep
from interkd.pipeline.sweep.runs import expand
from interkd.pipeline.training.config import TrainConfig

_UNUSABLE = re.compile(r"[^A-Za-z0-9._+-]+")


def job_name(*words: str) -> str:
    """A name for a job and its files, of any words."""
    return _UNUSABLE.sub("-", "-".join(words)).strip("-.") or "job"


def array_size(manifest: Path, part_minutes: float, *, tasks: int | None, most: int) -> int:
    """Tasks of stage one's array: never more than the plan has parts.

    Args:
        manifest: The corpus.
        part_minutes: Audio in a part.
        tasks: What the user asked for.
        most: Otherwise, the profile's.

    Raises:
        InterkdError: If the manifest cannot be read, or for less than one task.
    """
    if tasks is not None and tasks < 1:
        raise ConfigError("tasks", expected="at least 1", got=tasks)
    utterances = read_manifest(manifest).utterances
    ids, seconds = [u.utt_id for u in utterances], [u.duration for u in utterances]
    parts = plan_parts(ids, seconds, 60 * part_minutes)
    return min(most if tasks is None else tasks, len(parts))


def cache_jobs(words: Sequence[str], *, out: Path, tasks: int, names: tuple[str, str]) -> list[Job]:
    """Stage one: an array that makes the parts, and a job that looks after them.

    The second makes what the array left, writes the index and verifies the store.

    Args:
        words: Options of `interkd cache-teacher`.
        out: The store among them.
        tasks: Size of the array.
        names: Of the two jobs.
    """
    command = (INTERKD, "cache-teacher", *words)
    array = Job(
        name=names[0], stage="cache-teacher", commands=((*command, "--no-wait"),), tasks=tasks
    )
    verify = (INTERKD, "cache", "verify", str(out))
    index = Job(name=names[1], stage="index", commands=(command, verify), after=(names[0],))
    return [array, index]


def train_job(
    words: Sequence[str], settings: TrainConfig, *, name: str, after: tuple[str, ...] = ()
) -> Job:
    """Training, resumed where a run stands.

    Args:
        words: Options of `interkd train-student`, without `--resume`.
        settings: What they come to.
        name: Of the job.
        after: What it waits for.
    """
    return Job(
        name=name,
        stage="train-student",
        commands=((INTERKD, "train-student", *words),),
        stop_signal=settings.stop_signal.removeprefix("SIG"),
        run=settings.out,
        after=after,
    )


def score_job(commands: Iterable[Sequence[str]], *, name: str, after: tuple[str, ...] = ()) -> Job:
    """Scoring: one command or several, each with the options of `interkd score`."""
    scored = tuple((INTERKD, "score", *words) for words in commands)
    return Job(name=name, stage="score", commands=scored, after=after)


def sweep_job(words: Sequence[str], *, name: str, after: tuple[str, ...] = ()) -> Job:
    """A sweep on one node; it passes the stop on to its runs, each of which writes a checkpoint."""
    command = (INTERKD, "sweep", *words)
    return Job(name=name, stage="sweep", commands=(command,), stop_signal="TERM", after=after)


def training_settings(
    config: Path | None, assignments: Iterable[str], options: Mapping[str, str | None]
) -> TrainConfig:
    """What a training job will be told, checked before it stands in a queue.

    Raises:
        InterkdError: For a setting that cannot be, or a manifest that is not there.
    """
    values = read_yaml(config) if config is not None else {}
    override(values, assignments)
    values.update({key: value for key, value in options.items() if value is not None})
    settings = build(TrainConfig, values)
    for name in ("train_manifest", "dev_manifest"):
        require_file(getattr(settings.data, name), f"data.{name}")
    return settings


def check_sweep(path: Path) -> None:
    """Refuses a sweep that could not begin.

    Raises:
        InterkdError: For wrong settings, or a manifest that is not there.
    """
    sweep = read_sweep(path)
    for run in expand(sweep):
        require_file(run.config.data.train_manifest, f"{run.name}: data.train_manifest")
        require_file(run.config.data.dev_manifest, f"{run.name}: data.dev_manifest")
    for scored in sweep.score:
        require_file(scored.manifest, f"score.{scored.split}")


def require_file(path: Path, what: str) -> None:
    """Refuses a path where no file is.

    Raises:
        ConfigError: Naming it.
    """
    if not path.is_file():
        raise ConfigError(
            what,
            expected="a manifest",
            got=f"no file at {path}",
            remedy="interkd prepare writes one; paths begin in the working folder",
        )
