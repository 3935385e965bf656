"""Follows jobs to their end: what changes is told, what failed is named with its log."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from interkd.kernels.errors import ClusterError
from interkd.pipeline.cluster.submit import Submitted, slurm

_FIELD = re.compile(r"(?:^|\s)(JobState|Reason|ExitCode|Restarts|JobId|ArrayTaskId)=(\S*)")
_GOING_ON = {
    "PENDING",
    "RUNNING",
    "SUSPENDED",
    "COMPLETING",
    "CONFIGURING",
    "REQUEUED",
    "REQUEUE_HOLD",
    "REQUEUE_FED",
    "SPECIAL_EXIT",
    "SIGNALING",
    "STAGE_OUT",
    "STOPPED",
    "RESIZING",
}
_GONE = "GONE"


@dataclass(frozen=True, kw_only=True)
class TaskState:
    """A job, or one task of an array, as Slurm has it.

    Attributes:
        state: Slurm's word, such as `RUNNING`; `GONE` where it knows the job no longer.
        reason: Why it waits, or ended.
        exit_code: Of its script; 128 and more for a signal.
        restarts: How often it was requeued.
        job_id: Its own.
        task: Its number in an array.
    """

    state: str
    reason: str = ""
    exit_code: int = 0
    restarts: int = 0
    job_id: str = ""
    task: str = ""

    @property
    def goes_on(self) -> bool:
        """Whether more is to come."""
        return self.state in _GOING_ON

    def __str__(self) -> str:
        text = self.state.lower()
        if self.state == "PENDING" and self.reason not in ("", "None"):
            text += f" ({self.reason})"
        return text


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A job that did not succeed, and why."""

    name: str
    job_id: str
    reason: str


def follow(
    jobs: Sequence[Submitted], *, poll_seconds: float, message: Callable[[str], None]
) -> list[Failure]:
    """Waits until every job has ended.

    Args:
        jobs: Submitted.
        poll_seconds: Between two looks at the queue.
        message: Told what changes.

    Returns:
        The jobs that failed; empty where all succeeded.
    """
    told: dict[str, str] = {}
    ended: dict[str, list[TaskState]] = {}
    suspected: set[str] = set()
    while len(ended) < len(jobs):
        for job in jobs:
            if job.job_id in ended:
                continue
            tasks = look(job.job_id)
            if tasks is None:  # the controller does not answer: it may at the next look
                continue
            text = _summary(tasks)
            if told.get(job.job_id) != text:
                told[job.job_id] = text
                message(f"{job.written.job.name} ({job.job_id}): {text}")
            if any(task.goes_on for task in tasks):
                suspected.discard(job.job_id)
            elif job.job_id not in suspected:  # a job on its way back into the queue looks so, too
                suspected.add(job.job_id)
            else:
                ended[job.job_id] = tasks
        if len(ended) < len(jobs):
            time.sleep(poll_seconds)
    return [
        failure
        for job in jobs
        for failure in [_failure(job, ended[job.job_id])]
        if failure is not None
    ]


def look(job_id: str) -> list[TaskState] | None:
    """The state of a job and of each task that it has; None where the controller is silent."""
    answer = slurm("scontrol", "--oneliner", "show", "job", job_id)
    if answer.returncode == 0:
        return [_task(line) for line in answer.stdout.splitlines() if line.strip()]
    if "Invalid job id" not in answer.stderr:
        return None
    return _accounted(job_id)


def _accounted(job_id: str) -> list[TaskState]:
    """What accounting knows of a job that the controller has forgotten."""
    try:
        answer = slurm("sacct", "-n", "-P", "-X", "-j", job_id, "-o", "JobID,State,ExitCode")
    except ClusterError:  # no accounting here
        return [TaskState(state=_GONE)]
    rows = [line.split("|") for line in answer.stdout.splitlines()]
    tasks = [
        TaskState(state=row[1].split()[0], exit_code=_exit_code(row[2]), job_id=row[0])
        for row in rows
        if len(row) == 3 and row[1]
    ]
    return tasks or [TaskState(state=_GONE)]


def _task(line: str) -> TaskState:
    found: dict[str, str] = {}
    for name, value in _FIELD.findall(line):
        found.setdefault(name, value)
    return TaskState(
        state=found.get("JobState", "").partition(",")[0],
        reason=found.get("Reason", ""),
        exit_code=_exit_code(found.get("ExitCode", "")),
        restarts=int(found.get("Restarts", "0") or 0),
        job_id=found.get("JobId", ""),
        task=found.get("ArrayTaskId", ""),
    )


def _exit_code(text: str) -> int:
    """Slurm's `CODE:SIGNAL` as a shell has it."""
    code, _, signal = text.partition(":")
    if signal.isdigit() and int(signal):
        return 128 + int(signal)
    return int(code) if code.isdigit() else 0


def _summary(tasks: Sequence[TaskState]) -> str:
    counts = Counter(str(task) for task in tasks)
    if len(tasks) == 1:
        text = str(tasks[0])
    else:
        text = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    restarts = sum(task.restarts for task in tasks)
    return f"{text}, requeued {restarts} times" if restarts else text


def _failure(job: Submitted, tasks: Sequence[TaskState]) -> Failure | None:
    failed = [task for task in tasks if task.state != "COMPLETED"]
    if not failed:
        return None
    task = failed[0]
    if task.state == _GONE:
        reason = "Slurm has forgotten it, and there is no accounting: look at its log"
    elif task.reason == "DependencyNeverSatisfied":
        reason = "never started, since what it waits for failed"
    else:
        reason = task.state.lower()
        if task.exit_code:
            reason += f", exit code {task.exit_code}"
        if len(tasks) > 1:
            reason += f" ({len(failed)} of {len(tasks)} tasks)"
    log = _log(job, task)
    if log.exists():
        reason += f", log {log}: {_last_line(log)}"
    return Failure(name=job.written.job.name, job_id=job.job_id, reason=reason)


def _log(job: Submitted, task: TaskState) -> Path:
    log = job.written.log
    number = f"{job.job_id}_{task.task}"
    return log.with_name(log.name.replace("%A_%a", number).replace("%j", job.job_id))


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = file.read().decode("utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it is empty")
