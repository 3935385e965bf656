"""The jobs of each stage: which commands, which signal stops them, what they wait for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from interkd.kernels.errors import ConfigError
from interkd.pipeline.cache.plan import plan_parts
from interkd.pipeline.cluster.profile import Profile
from interkd.pipeline.cluster.script import INTERKD, Job
from interkd.pipeline.config import build, one_of, override, read_yaml
from interkd.pipeline.corpus.manifest import read_manifest, require_manifest
from interkd.pipeline.sweep.config import read_sweep
from interkd.pipeline.sweep.report_inputs import teacher_scores
from interkd.pipeline.sweep.runs import expand, require_run, select
from interkd.pipeline.teachers.load import IN_FILES, KINDS
from interkd.pipeline.training.config import TrainConfig
from interkd.pipeline.training.inputs import require_inputs

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


def cache_jobs(
    words: Sequence[str], *, out: Path, tasks: int, names: tuple[str, str], profile: Profile
) -> list[Job]:
    """Stage one: an array that makes the parts, and a job that looks after them.

    The second makes what the array left, writes the index and verifies the store.

    Args:
        words: Options of `interkd cache-teacher`.
        out: The store among them.
        tasks: Size of the array.
        names: Of the two jobs.
        profile: How many GPUs they have.
    """
    command = (INTERKD, "cache-teacher")
    making = (*command, *words, *_cache_devices(words, profile, "cache-teacher"), "--no-wait")
    array = Job(name=names[0], stage="cache-teacher", commands=(making,), tasks=tasks)
    words = _without(words, "--devices")  # the array's: here there may be fewer
    words = _without(words, "--device", of="cuda:")
    looking = (*command, *words, *_cache_devices(words, profile, "index"))
    verify = (INTERKD, "cache", "verify", str(out))
    index = Job(
        name=names[1], stage="index", commands=(looking, verify), lasting=1, after=(names[0],)
    )
    return [array, index]


def _cache_devices(words: Sequence[str], profile: Profile, stage: str) -> tuple[str, ...]:
    """A process for each of several GPUs, unless the user says where the teacher runs."""
    if (profile.resources(stage).gpus or 0) < 2 or _given(
        words, "--device", "--devices", "--cluster"
    ):
        return ()
    return ("--devices", "all")


def _given(words: Sequence[str], *options: str) -> bool:
    return any(word.partition("=")[0] in options for word in words)


def _without(words: Sequence[str], option: str, *, of: str = "") -> list[str]:
    """The words but an option and its value, where that begins so."""
    kept, left = [], list(words)
    while left:
        word = left.pop(0)
        name, is_joined, value = word.partition("=")
        if name == option and left and not is_joined:
            if not left[0].startswith(of):
                kept += [word, left[0]]
            left.pop(0)
        elif name != option or not value.startswith(of):
            kept.append(word)
    return kept


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
    return Job(name=name, stage="score", commands=scored, lasting=0, after=after)


def sweep_job(
    words: Sequence[str],
    config: Path,
    *,
    name: str,
    profile: Profile,
    after: tuple[str, ...] = (),
) -> Job:
    """A sweep on one node; it passes the stop on to its runs, each of which writes a checkpoint.

    Args:
        words: Arguments of `interkd sweep`.
        config: The sweep's YAML among them.
        name: Of the job.
        profile: How many GPUs the runs share.
        after: What it waits for.
    """
    command = (INTERKD, "sweep", *words, *_sweep_devices(words, config, profile))
    return Job(name=name, stage="sweep", commands=(command,), stop_signal="TERM", after=after)


def _sweep_devices(words: Sequence[str], config: Path, profile: Profile) -> tuple[str, ...]:
    """Several GPUs given to the runs in turn, as many at once, unless the user says otherwise."""
    gpus = profile.resources("sweep").gpus or 0
    if gpus < 2 or _given(words, "--devices"):
        return ()
    if any(run.config.device != "auto" for run in expand(read_sweep(config))):
        return ()
    devices = ("--devices", ",".join(f"cuda:{index}" for index in range(gpus)))
    if _given(words, "--jobs") or "jobs" in read_yaml(config):
        return devices
    return (*devices, "--jobs", str(gpus))


def training_settings(
    config: Path | None,
    assignments: Iterable[str],
    options: Mapping[str, str | None],
    *,
    store_comes: bool = False,
) -> TrainConfig:
    """What a training job will be told, checked before it stands in a queue.

    Args:
        config: YAML of `train-student`.
        assignments: `--set`.
        options: Further settings, over the YAML's where not None.
        store_comes: Whether a job that this one waits for may make the store.

    Raises:
        InterkdError: For a setting that cannot be, or a manifest or store that is not there.
    """
    values = read_yaml(config) if config is not None else {}
    override(values, assignments)
    values.update({key: value for key, value in options.items() if value is not None})
    settings = build(TrainConfig, values)
    require_inputs(settings, store_comes=store_comes)
    return settings


def check_sweep(
    path: Path,
    *,
    only: Sequence[str] = (),
    made: Path | None = None,
    store_comes: bool = False,
) -> None:
    """Refuses a sweep that could not begin.

    Args:
        path: Its YAML.
        only: Patterns of run names; all runs without one.
        made: A store that the same road makes.
        store_comes: Whether a job that this one waits for may make any store, and the teacher's
            scores.

    Raises:
        InterkdError: For wrong settings, or a file or store that is not there.
    """
    sweep = read_sweep(path)
    if not store_comes:
        teacher_scores(sweep)
    for run in select(expand(sweep), only):
        if run.result.exists():
            continue
        store = run.config.store
        comes = store_comes or (
            store is not None and made is not None and store.resolve() == made.resolve()
        )
        require_run(run, store_comes=comes)
    for scored in sweep.score:
        require_manifest(scored.manifest, f"score.{scored.split}")


def check_teacher(spec: str, *, comes: bool = False) -> None:
    """Refuses a teacher of a kind that there is not, or whose file is not there.

    Args:
        spec: As `cache-teacher` has it.
        comes: Whether a job that this one waits for may make it.

    Raises:
        ConfigError: Naming the nearest kind, or the path.
    """
    kind, _, target = spec.partition(":")
    one_of("kind of teacher", kind, KINDS)
    if not target:
        raise ConfigError("teacher", expected=f"{kind}:...", got=repr(spec))
    if kind in IN_FILES and not comes and not Path(target).exists():
        raise ConfigError(
            f"teacher {spec}",
            expected=IN_FILES[kind],
            got=f"nothing at {target}",
            remedy="paths begin in the working folder",
        )
