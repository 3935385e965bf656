"""What Slurm knows of a job and its tasks: the controller's word, or accounting's."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass

from interkd.kernels.errors import ClusterError
from interkd.pipeline.cluster.submit import at_cluster, slurm

# Slurm's base states that are final. Flags such as COMPLETING and whatever later versions add are
# not: a job whose state says nothing about its end is still there.
ENDED = frozenset(
    {
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "TIMEOUT",
    }
)
GONE = "GONE"
_FIELD = re.compile(r"(?:^|\s)(JobState|Reason|ExitCode|Restarts|JobId|ArrayTaskId)=(\S*)")
_UNKNOWN_JOB = re.compile(r"Invalid job id|Job \S+ not found")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?(?::(\d+))?")


@dataclass(frozen=True, kw_only=True)
class TaskState:
    """A job, one task of an array, or those of its tasks that still wait together.

    Attributes:
        state: Slurm's word, such as `RUNNING`; `GONE` where nobody knows the job any longer.
        reason: Why it waits, or ended.
        exit_code: Of its script; 128 and more for a signal.
        restarts: How often it was requeued.
        job_id: Its own.
        task: Its number in an array, or several, such as `0-3,7`.
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
        return self.state not in ENDED and self.state != GONE

    @property
    def numbers(self) -> list[str]:
        """Each of its numbers in an array; one empty text for a plain job."""
        if not self.task:
            return [""]
        numbers: list[str] = []
        for first, last, step in _RANGE.findall(self.task.partition("%")[0]):
            each = range(int(first), int(last or first) + 1, int(step or 1))
            numbers += map(str, each)
        return numbers

    def __str__(self) -> str:
        text = self.state.lower()
        if self.state == "PENDING" and self.reason not in ("", "None"):
            text += f" ({self.reason})"
        return text


def look(job_id: str, cluster: str | None = None) -> list[TaskState]:
    """What the controller knows of a job and of each task that it has; empty if nothing.

    Raises:
        ClusterError: If it does not answer.
    """
    answer = slurm("scontrol", *at_cluster(cluster), "--oneliner", "show", "job", job_id)
    tasks = [_task(line) for line in answer.stdout.splitlines() if "JobState=" in line]
    if not tasks and _UNKNOWN_JOB.search(answer.stdout + answer.stderr):
        return []
    if not tasks:
        raise ClusterError("Slurm's controller does not answer", got=answer.stderr.strip() or None)
    return tasks


def accounted(job_id: str, cluster: str | None = None) -> list[TaskState] | None:
    """What accounting knows of a job that the controller has forgotten; None if there is none.

    Raises:
        ClusterError: If it does not answer.
    """
    if shutil.which("sacct") is None:
        return None
    words = ("-n", "-P", "-X", "-j", job_id, "-o", "JobID,State,ExitCode")
    answer = slurm("sacct", *at_cluster(cluster), *words)
    if answer.returncode != 0:
        if "disabled" in answer.stderr:
            return None
        raise ClusterError("Slurm's accounting does not answer", got=answer.stderr.strip() or None)
    rows = [line.split("|") for line in answer.stdout.splitlines()]
    return [
        TaskState(
            state=row[1].split()[0],  # of `CANCELLED by 1000`
            exit_code=_exit_code(row[2]),
            job_id=row[0],
            task=row[0].partition("_")[2].strip("[]"),
        )
        for row in rows
        if len(row) == 3 and row[1].strip()
    ]


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
