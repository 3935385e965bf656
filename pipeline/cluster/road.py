"""The whole road in one YAML: cache, students, scores, each job after those that it needs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interkd.kernels.errors import ConfigError
from interkd.pipeline.cache_settings import CacheTeacherConfig
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
from interkd.pipeline.cluster.profile import Profile
from interkd.pipeline.cluster.script import Job
from interkd.pipeline.cluster.words import all_expanded
from interkd.pipeline.config import build, read_yaml
from interkd.pipeline.corpus.manifest import require_manifest
from interkd.pipeline.sweep.config import ScoreSet

_NOT_OURS = ("wait", "cluster")  # the array has tasks of its own
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True, kw_only=True)
class StudentEntry:
    """A student to train.

    Attributes:
        name: Of its jobs and its score folder.
        config: YAML of `train-student`.
        out: The run's folder; the YAML's where None.
        set: What departs from the YAML, as `a.b=value`.
    """

    name: str
    config: Path
    out: Path | None = None
    set: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RoadConfig:
    """From a corpus to scored students.

    Attributes:
        name: Begins the names of all jobs.
        cache: Settings of stage one.
        folder: Scripts and logs.
        tasks: Size of stage one's array; the profile's `tasks` where None.
        students: Trained from the cache, all at the same time.
        score: Manifests to score every student on.
        scores: Reports go to `scores/<student>/<split>`.
        sweeps: Sweeps that wait for the cache, too.
    """

    name: str
    cache: CacheTeacherConfig
    folder: Path | None = None
    tasks: int | None = None
    students: tuple[StudentEntry, ...] = ()
    score: tuple[ScoreSet, ...] = ()
    scores: Path = Path("scores")
    sweeps: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        names = [student.name for student in self.students]
        splits = [scored.split for scored in self.score]
        for where, name in (
            ("name", self.name),
            *(("students: name", name) for name in names),
            *(("score", split) for split in splits),
        ):
            if not _NAME.fullmatch(name):
                raise ConfigError(where, expected="letters, digits and . _ + -", got=repr(name))
        stems = [path.stem for path in self.sweeps]
        for what, found in (("students", names), ("sweeps", stems)):
            for name in found:
                if found.count(name) > 1:
                    raise ConfigError(
                        f"two {what} are named '{name}'", remedy="name each differently"
                    )


def read_road(path: Path) -> RoadConfig:
    """Reads the YAML of `interkd slurm pipeline`; `~` and variables are expanded here.

    Raises:
        ConfigError: If it cannot be read, or for a setting that is unknown or cannot be.
    """
    values = all_expanded(read_yaml(path), where=str(path))
    if "score" in values:
        score = values["score"] or {}
        if not isinstance(score, dict):
            raise ConfigError("setting 'score'", expected="split: manifest", got=repr(score))
        values["score"] = [{"split": str(k), "manifest": v} for k, v in score.items()]
    for key in ("students", "sweeps"):
        values[key] = values.get(key) or []
    cache = values.get("cache")
    for key in _NOT_OURS:
        if isinstance(cache, dict) and key in cache:
            raise ConfigError(f"unknown setting 'cache.{key}'")
    return build(RoadConfig, values)


def road_jobs(road: RoadConfig, profile: Profile) -> list[Job]:
    """Every job of the road, each after those that it waits for.

    Args:
        road: Settings.
        profile: Its `tasks` are stage one's array, unless the road or the plan say otherwise; its
            GPUs are shared out in each job.

    Raises:
        InterkdError: If a manifest or a setting of any stage cannot be.
    """
    cache = road.cache
    check_teacher(cache.teacher)
    tasks = array_size(cache.manifest, cache.part_minutes, tasks=road.tasks, most=profile.tasks)
    names = (job_name(road.name, "cache"), job_name(road.name, "index"))
    words = list(_cache_words(cache))
    jobs = cache_jobs(words, out=cache.out, tasks=tasks, names=names, profile=profile)
    for scored in road.score:
        require_manifest(scored.manifest, f"score.{scored.split}")
    runs: dict[Path, str] = {}
    for student in road.students:
        settings = training_settings(
            student.config,
            student.set,
            {
                "out": None if student.out is None else str(student.out),
                "store": str(cache.out),
            },
            store_comes=True,
        )
        other = runs.setdefault(settings.out.resolve(), student.name)
        if other != student.name:
            raise ConfigError(
                f"students '{other}' and '{student.name}' have one folder",
                got=settings.out,
                remedy="give each an 'out' of its own",
            )
        words = ["--config", str(student.config), "--out", str(settings.out)]
        words += ["--store", str(cache.out)]
        for assignment in student.set:
            words += ["--set", assignment]
        train = job_name(road.name, "train", student.name)
        jobs.append(train_job(words, settings, name=train, after=(names[1],)))
        if road.score:
            commands = [
                [
                    "--checkpoint",
                    str(settings.out),
                    "--manifest",
                    str(scored.manifest),
                    "--out",
                    str(road.scores / student.name / scored.split),
                ]
                for scored in road.score
            ]
            score = job_name(road.name, "score", student.name)
            jobs.append(score_job(commands, name=score, after=(train,)))
    for path in road.sweeps:
        check_sweep(path, made=cache.out)
        name = job_name(road.name, "sweep", path.stem)
        jobs.append(sweep_job([str(path)], path, name=name, profile=profile, after=(names[1],)))
    return jobs


def _cache_words(cache: CacheTeacherConfig) -> Iterator[str]:
    """The settings as options of `cache-teacher`, those at their default left out."""
    for field in dataclasses.fields(cache):
        value: Any = getattr(cache, field.name)
        if field.name not in _NOT_OURS and value != field.default:
            yield f"--{field.name.replace('_', '-')}"
            yield str(value)
