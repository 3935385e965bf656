"""The profile: what a cluster wants to hear, one YAML for all stages."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interkd.kernels.errors import ConfigError
from interkd.pipeline.cluster.words import expanded
from interkd.pipeline.config import build, in_range, one_of, read_yaml

STAGES = ("cache-teacher", "index", "train-student", "score", "sweep")
_ONE_GPU = ("index", "score")  # stages that use no second one
GPU_FORMS = ("gres", "gpus", "gpus-per-node", "gpus-per-task")
_TIME = re.compile(
    r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?", re.ASCII
)
_MEMORY = re.compile(r"\d+[KMGT]?", re.ASCII)
_NO_WARNING = {
    "TERM": "Slurm sends it to a job that is cancelled, which must not come back",
    "KILL": "it cannot be caught",
    "STOP": "it cannot be caught",
    "CHLD": "the shell uses it",
}


def time_seconds(text: str) -> int | None:
    """The length of a time limit as Slurm reads it; None for no limit.

    Forms: `MINUTES`, `MINUTES:SECONDS`, `HOURS:MINUTES:SECONDS`, `DAYS-HOURS`,
    `DAYS-HOURS:MINUTES`, `DAYS-HOURS:MINUTES:SECONDS`, `UNLIMITED`.

    Raises:
        ConfigError: For anything else.
    """
    if text.lower() in ("unlimited", "infinite"):
        return None
    match = _TIME.fullmatch(text)
    if match is None:
        raise ConfigError(
            "time", expected="MINUTES, HH:MM:SS or D-HH:MM:SS, as Slurm has it", got=repr(text)
        )
    first, second, third = (int(match[name] or 0) for name in ("first", "second", "third"))
    if match["days"] is not None:
        return int(match["days"]) * 86400 + 3600 * first + 60 * second + third
    if match["third"] is not None:
        return 3600 * first + 60 * second + third
    return 60 * first + second


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a stage asks of the cluster; None leaves it to the profile, or to the cluster.

    Attributes:
        partition: Queue.
        account: Who pays.
        qos: Quality of service.
        constraint: Features of the nodes.
        time: Limit of one life of the job, as Slurm writes it.
        gpus: GPUs of a job, or of each task of an array; the profile's are for the stages that can
            use several, the index and scoring take one of them at most.
        gpu_type: Their type, such as `a100`.
        cpus: Cores.
        memory: Of a node, such as `64G`.
        sbatch: Further `#SBATCH` options, such as `--mail-type=END`.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: str | None = None
    gpus: int | None = None
    gpu_type: str | None = None
    cpus: int | None = None
    memory: str | None = None
    sbatch: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Stages:
    """What each stage asks otherwise than the profile."""

    cache_teacher: Resources = field(default_factory=Resources)
    index: Resources = field(default_factory=Resources)
    train_student: Resources = field(default_factory=Resources)
    score: Resources = field(default_factory=Resources)
    sweep: Resources = field(default_factory=Resources)


@dataclass(frozen=True, kw_only=True)
class Profile(Resources):
    """A cluster, and how interkd is started on its nodes.

    Attributes:
        gpu_form: Option that asks for GPUs: `gres`, `gpus`, `gpus-per-node`, `gpus-per-task`.
        interkd: The command on the nodes; where None, `interkd` after a prologue or in a
            container, else the one that writes the script.
        prologue: Lines of bash before the stage: modules, conda, environment variables.
        container: Words in front of every command.
        tasks: Most tasks of stage one's array.
        requeue: Whether jobs may be requeued, by Slurm or by themselves.
        max_requeues: So often at most a job requeues itself.
        signal: Sent to the batch shell ahead of the time limit.
        lead_seconds: So long ahead.
        stages: What stages ask otherwise.
    """

    gpus: int | None = 1
    gpu_form: str = "gres"
    interkd: str | None = None
    prologue: tuple[str, ...] = ()
    container: tuple[str, ...] = ()
    tasks: int = 4
    requeue: bool = True
    max_requeues: int = 100
    signal: str = "USR1"
    lead_seconds: int = 120
    stages: Stages = field(default_factory=Stages)

    def __post_init__(self) -> None:
        one_of("gpu_form", self.gpu_form, GPU_FORMS)
        in_range("", self, "gpus", "max_requeues", at_least=0)
        in_range("", self, "tasks", "cpus", at_least=1)
        in_range("", self, "lead_seconds", at_least=1, at_most=65535)
        object.__setattr__(self, "signal", self.signal.upper().removeprefix("SIG"))
        if self.signal in _NO_WARNING:
            raise ConfigError(
                "signal",
                expected="USR1 or another",
                got=f"{self.signal}: {_NO_WARNING[self.signal]}",
            )
        known = {item.name.removeprefix("SIG") for item in signal.Signals}
        one_of("signal", self.signal, known - set(_NO_WARNING))
        for stage in STAGES:
            self._check(stage)

    def resources(self, stage: str) -> Resources:
        """What a stage asks for: its own settings over the profile's; `sbatch` adds up."""
        own: Resources = getattr(self.stages, stage.replace("-", "_"))
        merged: dict[str, Any] = {}
        for entry in dataclasses.fields(Resources):
            mine, common = getattr(own, entry.name), getattr(self, entry.name)
            merged[entry.name] = common if mine is None else mine
        merged["sbatch"] = (*self.sbatch, *own.sbatch)
        if stage in _ONE_GPU and own.gpus is None and self.gpus is not None:
            merged["gpus"] = min(1, self.gpus)
        return Resources(**merged)

    def _check(self, stage: str) -> None:
        asked = self.resources(stage)
        section = f"stages.{stage}."
        in_range(section, asked, "gpus", at_least=0)
        in_range(section, asked, "cpus", at_least=1)
        if asked.memory is not None and not _MEMORY.fullmatch(asked.memory):
            raise ConfigError(f"{section}memory", expected="such as 64G", got=repr(asked.memory))
        for option in asked.sbatch:
            if not option.startswith("-"):
                raise ConfigError(
                    f"{section}sbatch", expected="options such as --mail-type=END", got=repr(option)
                )
        if asked.time is None:
            return
        seconds = time_seconds(asked.time)
        if seconds is not None and seconds <= self.lead_seconds:
            raise ConfigError(
                f"{section}time",
                expected=f"more than lead_seconds ({self.lead_seconds} s)",
                got=asked.time,
                remedy="the job would be told to stop as it starts: a longer time, or a shorter "
                "lead_seconds",
            )


def default_profile() -> Path:
    """Where the user's profile is, if there is one."""
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "interkd" / "slurm.yaml"


def read_profile(path: Path | None) -> Profile:
    """Reads a profile; without a path the user's own, or the defaults where there is none.

    Raises:
        ConfigError: If it cannot be read, or for a setting that is unknown or cannot be.
    """
    if path is None:
        path = default_profile()
        if not path.exists():
            return Profile()
    path = path.expanduser()  # no shell expands `--profile=~/slurm.yaml`
    values = read_yaml(path)
    stages = values.get("stages") or {}
    if not isinstance(stages, dict):
        raise ConfigError(f"{path}: stages", expected="a mapping", got=repr(stages))
    for stage in stages:
        one_of(f"stage in {path}", str(stage), STAGES)
    values["stages"] = {name.replace("-", "_"): asked or {} for name, asked in stages.items()}
    if isinstance(values.get("container"), str):
        values["container"] = shlex.split(values["container"])
    if isinstance(values.get("prologue"), str):
        values["prologue"] = values["prologue"].splitlines()
    for where, asked in (("", values), *((f"stages.{name}.", a) for name, a in stages.items())):
        _refuse_number(f"{path}: {where}time", asked)
        _expand_options(f"{path}: {where}sbatch", asked)
    try:
        return build(Profile, values)
    except ConfigError as error:
        raise error.within(str(path)) from error


def _expand_options(name: str, asked: Any) -> None:
    """Slurm expands nothing in a line with `#SBATCH`, where it would make a folder named `~`."""
    if isinstance(asked, dict) and isinstance(asked.get("sbatch"), list):
        asked["sbatch"] = [
            expanded(option, where=name, quote=shlex.quote) if isinstance(option, str) else option
            for option in asked["sbatch"]
        ]


def _refuse_number(name: str, asked: Any) -> None:
    """YAML reads an unquoted 12:00:00 as 43200, which Slurm would take for minutes."""
    if isinstance(asked, dict) and isinstance(asked.get("time"), int | float):
        raise ConfigError(
            name,
            expected='a quoted time, such as "12:00:00"',
            got=asked["time"],
            remedy="quote it: YAML reads 12:00:00 as a number",
        )
