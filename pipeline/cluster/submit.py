"""Writes batch scripts and hands them to Slurm, each after those that it waits for."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from interkd.kernels.errors import ClusterError, ConfigError
from interkd.pipeline.cluster.profile import Profile, time_seconds
from interkd.pipeline.cluster.script import Job, render
from interkd.pipeline.config import nearest
from interkd.pipeline.files import write_text

_ANSWER_SECONDS = 120  # a busy controller takes its time
# `--parsable`, of several clusters with the cluster's name; or what a site's own sbatch says.
_JOB_ID = re.compile(
    r"(?:Submitted batch job )?(?P<id>\d+)(?:;(?P<cluster>\S+)| on cluster (?P<name>\S+))?"
)
_PERHAPS_SUBMITTED = "the job may be in the queue all the same: squeue --me"
# Options of sbatch that choose another cluster, partition or limit than the profile's own keys.
_ELSEWHERE = ("-M", "--cluster", "-p", "--partition", "-q", "--qos")


@dataclass(frozen=True, kw_only=True)
class Written:
    """A job, and the script that is it.

    Attributes:
        job: The job.
        script: Its file.
        log: Its log, with Slurm's `%j`, or `%A_%a` of an array.
    """

    job: Job
    script: Path
    log: Path


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """A job in Slurm's hands.

    Attributes:
        written: Its script.
        job_id: Its number, of an array the array's.
        cluster: Where it is, if not on the one that Slurm's commands ask anyway.
    """

    written: Written
    job_id: str
    cluster: str | None = None


def write_scripts(jobs: Sequence[Job], profile: Profile, folder: Path) -> list[Written]:
    """Writes `folder/<job>.sbatch` of each job, and makes the folder of the logs.

    Raises:
        ConfigError: If they cannot be written.
    """
    folder = folder.expanduser()  # no shell expands `--folder=~/slurm`
    workdir, command = Path.cwd(), command_on_nodes(profile)
    absolute = folder.absolute()
    texts = [
        render(job, profile, folder=absolute, workdir=workdir, interkd=command) for job in jobs
    ]
    written = []
    try:
        (folder / "logs").mkdir(parents=True, exist_ok=True)  # Slurm does not make it
        for job, text in zip(jobs, texts, strict=True):
            script = folder / f"{job.name}.sbatch"
            write_text(script, text)
            log = folder / "logs" / f"{job.name}-{'%j' if job.tasks is None else '%A_%a'}.log"
            written.append(Written(job=job, script=script, log=log))
    except OSError as error:
        raise ConfigError(f"cannot write to {folder}", got=error.strerror) from error
    return written


def command_on_nodes(profile: Profile) -> str:
    """What `interkd` is on the nodes: the profile's word, or this installation."""
    if profile.interkd is not None:
        return profile.interkd
    here = Path(sys.executable).with_name("interkd")
    if profile.prologue or profile.container or not here.exists():
        return "interkd"
    return str(here)


def submit(
    written: Sequence[Written], profile: Profile, *, after: Sequence[str] = ()
) -> list[Submitted]:
    """Submits the jobs, in order; those that wait for none of the others wait for `after`.

    Raises:
        ConfigError: For a partition that is not there, or a time beyond its limit.
        ClusterError: If Slurm is not here, or refuses a job; those already submitted are cancelled.
    """
    require_slurm()
    for stage in dict.fromkeys(item.job.stage for item in written):
        _check_partition(profile, stage)
    ids: dict[str, str] = {}
    submitted: list[Submitted] = []
    for item in written:
        needed = [ids[name] for name in item.job.after if name in ids] or list(after)
        conditions = [f"afterok:{':'.join(needed)}"] if needed else []
        options = ["--parsable"]
        if conditions:
            if item.job.tasks is None:  # the option replaces the script's own
                conditions.append("singleton")
            options += [f"--dependency={','.join(conditions)}", "--kill-on-invalid-dep=yes"]
        try:
            job = _sbatch(item, options)
        except ClusterError as error:
            remedies = [error.remedy, _take_back(submitted)]
            raise ClusterError(
                error.what,
                expected=error.expected,
                got=error.got,
                remedy="; ".join(filter(None, remedies)),
            ) from error
        ids[item.job.name] = job.job_id
        submitted.append(job)
    return submitted


def _sbatch(item: Written, options: Sequence[str]) -> Submitted:
    """Submits one job.

    Raises:
        ClusterError: If Slurm refuses it, or does not say its number.
    """
    try:
        answer = slurm("sbatch", *options, str(item.script))
    except ClusterError as error:
        raise ClusterError(error.what, got=error.got, remedy=_PERHAPS_SUBMITTED) from error
    if answer.returncode != 0:
        raise ClusterError(
            f"sbatch refuses {item.script}",
            got=answer.stderr.removeprefix("sbatch: error: ").strip(),
            remedy="mend the profile, if it is one of its options",
        )
    # A site's own sbatch may say more than the number, which has a line of its own.
    matches = [_JOB_ID.fullmatch(line.strip()) for line in answer.stdout.splitlines()]
    found = {(match["id"], match["cluster"] or match["name"]) for match in matches if match}
    if len(found) != 1:
        raise ClusterError(
            f"sbatch does not say the number of {item.script}",
            expected="one line JOBID or JOBID;CLUSTER",
            got=repr(answer.stdout.strip()),
            remedy=_PERHAPS_SUBMITTED,
        )
    ((job_id, cluster),) = found
    return Submitted(written=item, job_id=job_id, cluster=cluster)


def _take_back(submitted: Sequence[Submitted]) -> str | None:
    """Cancels jobs whose successors cannot be submitted; what there is to say of it."""
    if not submitted:
        return None
    ids = [job.job_id for job in submitted]
    by_hand = shlex.join(["scancel", *at_cluster(submitted[0].cluster), *ids])
    try:
        answers = [  # the last first, while what it waits for still stands
            slurm("scancel", *at_cluster(job.cluster), job.job_id) for job in reversed(submitted)
        ]
    except ClusterError:
        answers = []
    if answers and all(answer.returncode == 0 for answer in answers):
        return f"jobs {', '.join(ids)} were cancelled again"
    return f"jobs {', '.join(ids)} may still be in the queue, in vain: {by_hand}"


def require_slurm() -> None:
    """Refuses to go on where there is no Slurm.

    Raises:
        ClusterError: If `sbatch` is not found.
    """
    if shutil.which("sbatch") is None:
        raise ClusterError(
            "sbatch is not on the PATH",
            remedy="submit from a login node of the cluster; without --submit the scripts are "
            "written only",
        )


def at_cluster(cluster: str | None) -> tuple[str, ...]:
    """The option of Slurm's commands that asks a certain cluster."""
    return () if cluster is None else (f"--clusters={cluster}",)


def slurm(*words: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of Slurm's and returns how it ended and what it said.

    Raises:
        ClusterError: If it is not there, or says nothing for two minutes.
    """
    environment = dict(os.environ)
    if words[0] != "sbatch":  # whose environment becomes the job's
        environment |= {"LC_ALL": "C", "SLURM_BITSTR_LEN": "0"}  # 0: no list of tasks is cut short
    try:
        return subprocess.run(
            words,
            capture_output=True,
            encoding="utf-8",
            errors="replace",  # Slurm repeats paths and comments as they are
            stdin=subprocess.DEVNULL,
            timeout=_ANSWER_SECONDS,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ClusterError(f"{words[0]} does not answer", got=error) from error


def _check_partition(profile: Profile, stage: str) -> None:
    """Refuses a partition that is not there, and a time that it never grants: Slurm would wait."""
    asked = profile.resources(stage)
    if any(option.startswith(_ELSEWHERE) for option in asked.sbatch):
        return  # other limits hold than those looked up here
    answer = slurm("sinfo", "--all", "--noheader", "--format=%P %l")
    limits = dict(line.split() for line in answer.stdout.splitlines() if len(line.split()) == 2)
    if answer.returncode != 0 or not limits:
        return  # sbatch will say what is wrong
    default = next((name for name in limits if name.endswith("*")), None)
    limits = {name.removesuffix("*"): limit for name, limit in limits.items()}
    names = asked.partition.split(",") if asked.partition else []
    names = names or ([default.removesuffix("*")] if default else [])
    for name in names:
        if name not in limits:
            raise ConfigError(
                f"no partition '{name}' for {stage}",
                expected=" | ".join(limits),
                remedy=nearest(name, limits),
            )
    if asked.time is None or asked.qos is not None or not names:  # a QOS may have its own limit
        return
    wanted = time_seconds(asked.time)
    granted = [time_seconds(limits[name]) for name in names]
    most = None if None in granted else max(limit for limit in granted if limit is not None)
    if most is not None and (wanted is None or wanted > most):
        raise ConfigError(
            f"time of {stage}",
            expected=f"at most {', '.join(limits[name] for name in names)}, the limit of partition "
            f"{', '.join(names)}",
            got=asked.time,
            remedy=None
            if stage == "score"
            else "a job that is stopped at its limit is requeued and goes on: a short time does",
        )
