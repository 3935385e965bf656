"""Batch scripts: deterministic text that bash and a person can read."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from interkd.kernels.errors import ConfigError
from interkd.pipeline.cluster.profile import Profile, Resources
from interkd.pipeline.cluster.words import shell_word

INTERKD = "interkd"  # the first word of a job's command; the profile says what it is on the nodes
STOPPED = 3  # exit code of a stage that was asked to stop and can go on
# A rank that sees one GPU only (--gpus-per-task, or a site's binding) knows it as number 0.
_AS_RANK = (
    "gpu=$SLURM_LOCALID; [[ ${CUDA_VISIBLE_DEVICES:-,} == *,* ]] || gpu=0; "
    'RANK=$SLURM_PROCID LOCAL_RANK=$gpu WORLD_SIZE=$SLURM_NTASKS exec "$@"'
)
_SHORT_LIFE = 60  # seconds; a run that another process holds ends its stage sooner, every time
_PAUSES = (2, 4, 8, 16)  # seconds between tries to requeue: together well below lead_seconds


@dataclass(frozen=True, kw_only=True)
class Job:
    """One batch job: commands that run one after the other, each harmless to repeat.

    Attributes:
        name: Its name in Slurm, and of its script and logs.
        stage: Whose resources of the profile it takes.
        commands: Words of each command; the first is `interkd` where it is interkd's.
        stop_signal: What the running command is told to stop with, without `SIG`.
        run: Folder of a training run: where one stands, the first command gets `--resume`.
        tasks: Size of the array; None for a plain job.
        lasting: So many commands, the first ones, leave behind what they did until they are
            stopped; the others begin anew. None: all of them.
        after: Names of the jobs that must have succeeded.
    """

    name: str
    stage: str
    commands: tuple[tuple[str, ...], ...]
    stop_signal: str = "USR2"
    run: Path | None = None
    tasks: int | None = None
    lasting: int | None = None
    after: tuple[str, ...] = ()


def render(job: Job, profile: Profile, *, folder: Path, workdir: Path, interkd: str) -> str:
    """The batch script of a job.

    Args:
        job: What runs.
        profile: The cluster.
        folder: Absolute; the logs go to `logs` in it.
        workdir: Absolute; where relative paths in the commands begin.
        interkd: The command on the nodes.

    Raises:
        ConfigError: If a name or option cannot stand in a line of its own.
    """
    lines = ["#!/bin/bash"]
    lines += [f"#SBATCH {line}" for line in _options(job, profile, folder, workdir)]
    lines += [
        "",
        f"# Written by `interkd slurm` for the stage {job.stage}.",
        "set -euo pipefail",
        "",
    ]
    lines += _signals(job, profile)
    lines += ["", *_run(job, profile), ""]
    if profile.prologue:
        lines.append("set +u  # the scripts of modules and conda read variables that are not set")
        lines += [*profile.prologue, "set -u", ""]
    if job.run is not None:
        settings = shlex.quote(str(job.run / "config.yaml"))
        lines += ["resume=", f"if [[ -e {settings} ]]; then resume=--resume; fi"]
    ranks = _ranks(job, profile)
    if ranks > 1:
        lines.append("export MASTER_ADDR=127.0.0.1 MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))")
    launcher = _launcher(ranks, profile.resources(job.stage).cpus, profile)
    if "srun" in launcher:  # else, after a site's --export=NONE, its tasks would see none of this
        lines.append("unset SLURM_EXPORT_ENV")
    for index, command in enumerate(job.commands):
        words = [shell_word(interkd) if word == INTERKD else word for word in command[:1]]
        words += [shlex.quote(word) for word in command[1:]]
        if index and index == job.lasting:
            lines += _heedless(job, profile)
        lines.append(f"run {_readable([*launcher, *words])}")
        if job.run is not None and index == 0:
            lines[-1] += " $resume"
    return "\n".join(lines) + "\n"


def _ranks(job: Job, profile: Profile) -> int:
    """Processes of a job: training has one a GPU."""
    return max(1, profile.resources(job.stage).gpus or 0) if job.run is not None else 1


def _launcher(ranks: int, cpus: int | None, profile: Profile) -> list[str]:
    """What stands in front of a command: the container, and srun where there are several ranks.

    srun passes the stop signal to every rank, which torchrun would not; its exit code is theirs.
    """
    container = [shell_word(word) for word in profile.container]
    # srun takes the cores of a task from its own options alone, not from the job's.
    srun = [f"--ntasks={ranks}", *([f"--cpus-per-task={cpus}"] if cpus else [])]
    if ranks > 1:
        # After a checkpoint the ranks end one by one: the first must not have the others killed.
        srun += ["--kill-on-bad-exit=0", "--wait=60", "bash", "-c", shlex.quote(_AS_RANK), "rank"]
    if container[:1] == ["srun"]:  # one whose container is an option of srun
        return [*container, *srun]
    return ["srun", *srun, *container] if ranks > 1 else container


def _options(job: Job, profile: Profile, folder: Path, workdir: Path) -> Iterator[str]:
    asked = profile.resources(job.stage)
    number = "%j" if job.tasks is None else "%A_%a"
    log = str(folder / "logs" / job.name).replace("%", "%%") + f"-{number}.log"
    yield _option("job-name", job.name)
    yield _option("chdir", str(workdir))
    yield _option("output", log)
    yield "--open-mode=append"
    for name in ("partition", "account", "qos", "constraint", "time"):
        value = getattr(asked, name)
        if value is not None:
            yield _option(name, value)
    yield "--nodes=1"
    yield f"--ntasks={_ranks(job, profile)}"
    if asked.cpus is not None:
        yield f"--cpus-per-task={asked.cpus}"
    if asked.memory is not None:
        yield f"--mem={asked.memory}"
    if asked.gpus:
        yield _gpus(asked, profile.gpu_form, _ranks(job, profile))
    if job.tasks is not None:
        yield f"--array=0-{job.tasks - 1}"
    yield "--requeue" if profile.requeue else "--no-requeue"
    yield f"--signal=B:{profile.signal}@{profile.lead_seconds}"
    if job.tasks is None:  # submitted twice, the second waits, and finds the work done
        yield "--dependency=singleton"
    for option in asked.sbatch:
        _refuse_control("sbatch", option)
        yield option


def _gpus(asked: Resources, form: str, ranks: int) -> str:
    kind = [asked.gpu_type] if asked.gpu_type else []
    count = (asked.gpus or 0) // (ranks if form == "gpus-per-task" else 1)
    value = ":".join([*(["gpu"] if form == "gres" else []), *kind, str(count)])
    return _option(form, value)


def _option(name: str, value: str) -> str:
    _refuse_control(name, value)
    return f"--{name}={shlex.quote(value)}"


def _refuse_control(name: str, value: str) -> None:
    if not value or not value.isprintable():
        raise ConfigError(f"{name} of a batch script", expected="one line of text", got=repr(value))


def _signals(job: Job, profile: Profile) -> list[str]:
    """Traps: the shell is told by Slurm, and tells the command, once."""
    asked = [
        f"trap 'signals=$((signals + 1)); stop=${{stop:-asked}}; tell' {_asking(job, profile)}"
    ]
    return [
        "# Slurm signals this shell; the running command is told to stop, once, in its own way.",
        "stop= told= child= signals=0",
        "tell() {",
        "  if [[ -n $stop && -n $child && -z $told ]]; then",
        "    told=yes",
        f'    kill -s {job.stop_signal} "$child" 2>/dev/null || true',
        "  fi",
        "}",
        *(_heedless(job, profile) if job.lasting == 0 else asked),
        "trap 'signals=$((signals + 1)); stop=cancelled; tell' TERM",
    ]


def _asking(job: Job, profile: Profile) -> str:
    """The signals that ask for a stop, and do not say that the job is cancelled."""
    caught = dict.fromkeys((profile.signal, job.stop_signal, "USR1", "USR2"))
    return " ".join(name for name in caught if name != "TERM")


def _heedless(job: Job, profile: Profile) -> list[str]:
    """A trap for commands that a stop would only set back to their beginning: they go on."""
    return [
        "# What follows would begin anew, so a warning does not stop it: it may yet end in time.",
        "warned() {",
        '  echo "warned, and going on: this work keeps no progress;" \\',
        f'    "if the job ends at its time limit, raise time (stages: {job.stage})"',
        "}",
        f"trap 'signals=$((signals + 1)); warned' {_asking(job, profile)}",
    ]


def _run(job: Job, profile: Profile) -> list[str]:
    """The function that runs a command, waits for it and requeues the job it was stopped in."""
    this = "$SLURM_JOB_ID"
    if job.tasks is not None:  # one task's id is the array's: with it every task would be requeued
        this = "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
    lines = [
        "run() {",
        "  local code=0 seen again pause",
        "  if [[ -n $stop ]]; then",
        f"    code={STOPPED}",
        "  else",
        '    "$@" &',
        "    child=$!",
        "    tell",
        "    seen=$signals",
        '    wait "$child" || code=$?',
        "    while ((signals != seen)); do  # a signal ended the wait, not the command",
        "      seen=$signals again=0",
        '      wait "$child" || again=$?',
        "      ((again == 127)) || code=$again",
        "    done",
        "    child=",
        "  fi",
        "  if [[ $stop == cancelled ]]; then exit 143; fi",
    ]
    if profile.requeue and job.lasting != 0:
        lines += [
            f"  if ((code == {STOPPED})) || [[ $stop == asked && $code != 0 ]]; then",
            f"    if ((${{SLURM_RESTART_COUNT:-0}} < {profile.max_requeues})); then",
            f"      if [[ -z $stop ]] && ((SECONDS < {_SHORT_LIFE})); then",
            '        echo "stopped with exit code $code, unasked and soon: waiting a minute"',
            f"        sleep {_SHORT_LIFE} || true",  # else its lives are spent in minutes
            "        if [[ $stop == cancelled ]]; then exit 143; fi",
            "      fi",
            '      echo "stopped with exit code $code: requeued"',
            f"      for pause in {' '.join(map(str, _PAUSES))} 0; do  # a busy Slurm may refuse",
            f'        scontrol requeue "{this}" && exit 0',
            '        sleep "$pause" || true',  # a signal to the whole job ends it
            "        if [[ $stop == cancelled ]]; then exit 143; fi",
            "      done",
            "    fi",
            '    echo "stopped with exit code $code: not requeued;" \\',
            '      "submit it again, it goes on where it stopped"',
            "  fi",
        ]
    return [*lines, '  if ((code != 0)); then exit "$code"; fi', "}"]


def _readable(words: Sequence[str]) -> str:
    """A command of words that are quoted, each of its long options on a line of its own."""
    text = ""
    for word in words:
        if text:
            text += " \\\n  " if word.removeprefix("'").startswith("--") else " "
        text += word
    return text
