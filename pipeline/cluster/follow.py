"""Follows jobs to their end: what changes is told, what failed is named with its log."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from interkd.kernels.errors import ClusterError
from interkd.pipeline.cluster.states import ENDED, GONE, TaskState, accounted, look
from interkd.pipeline.cluster.submit import Submitted
from interkd.pipeline.logs import last_line

_LOOKS_AFTER_THE_END = 2  # a job on its way back into the queue looks ended for a moment
_ACCOUNTING_SECONDS = 600.0  # so long may accounting lag behind a controller that has forgotten


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A job that did not succeed, and why."""

    name: str
    job_id: str
    reason: str


def follow(
    jobs: Sequence[Submitted], *, poll_seconds: float, message: Callable[[str], None]
) -> list[Failure]:
    """Waits until every job has ended, however long Slurm does not answer.

    Args:
        jobs: Submitted.
        poll_seconds: Between two looks at the queue.
        message: Told what changes.

    Returns:
        The jobs that failed; empty where all succeeded.

    Raises:
        ClusterError: If there is no `scontrol` to ask.
    """
    if shutil.which("scontrol") is None:
        raise ClusterError(
            "scontrol is not on the PATH", remedy="the jobs are in the queue: squeue --me"
        )
    followed = [_Followed(job) for job in jobs]
    is_silent = False
    while True:
        try:
            for job in followed:
                if not job.is_over:
                    job.look(message)
            is_silent = False
        except ClusterError as error:  # of all jobs: each look may take minutes
            if not is_silent:
                message(f"{error}; still waiting")
            is_silent = True
        if all(job.is_over for job in followed):
            break
        time.sleep(poll_seconds)
    return [failure for job in followed for failure in [job.failure()] if failure is not None]


class _Followed:
    """What was seen of a job so far: Slurm forgets its tasks one by one, this does not.

    Args:
        job: Submitted.
    """

    def __init__(self, job: Submitted) -> None:
        self._job = job
        tasks = job.written.job.tasks
        self._numbers = [""] if tasks is None else [str(number) for number in range(tasks)]
        self._tasks: dict[str, TaskState] = {}
        self._told = ""
        self._forgotten_since: float | None = None
        self._looks_after_the_end = 0

    @property
    def is_over(self) -> bool:
        """Whether nothing is to come."""
        return self._looks_after_the_end >= _LOOKS_AFTER_THE_END

    def look(self, message: Callable[[str], None]) -> None:
        """Asks Slurm, and tells what changed.

        Raises:
            ClusterError: If it does not answer.
        """
        shown = {
            number: replace(task, task=number)
            for task in look(self._job.job_id, self._job.cluster)
            for number in task.numbers
        }
        self._tasks |= shown
        forgotten = [
            number
            for number in self._numbers
            if number not in shown
            and (number not in self._tasks or self._tasks[number].state not in ENDED)
        ]
        if forgotten:
            self._ask_accounting(forgotten)
        else:
            self._forgotten_since = None
        text = self._summary()
        if text != self._told:
            self._told = text
            message(f"{self._job.written.job.name} ({self._job.job_id}): {text}")
        if any(task.goes_on for task in self._tasks.values()):
            self._looks_after_the_end = 0
        else:
            self._looks_after_the_end += 1

    def _ask_accounting(self, forgotten: Sequence[str]) -> None:
        """How tasks ended that the controller forgot before a look at their end."""
        now = time.monotonic()
        if self._forgotten_since is None:
            self._forgotten_since = now
        is_patient = now - self._forgotten_since < _ACCOUNTING_SECONDS
        is_silent = False
        rows: list[TaskState] | None = None
        try:
            rows = accounted(self._job.job_id, self._job.cluster)
        except ClusterError:
            is_silent = True
        known = {number: row for row in rows or () for number in row.numbers}
        for number in forgotten:
            if number in known and not known[number].goes_on:
                self._tasks[number] = replace(known[number], task=number)
            elif is_patient and (is_silent or number in known):
                self._tasks.setdefault(number, TaskState(state="UNKNOWN", task=number))
            else:
                self._tasks[number] = TaskState(state=GONE, task=number)

    def _summary(self) -> str:
        tasks = list(self._tasks.values())
        counts = Counter(str(task) for task in tasks)
        if len(tasks) == 1:
            text = str(tasks[0])
        else:
            text = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
        restarts = sum(task.restarts for task in tasks)
        return f"{text}, requeued {restarts} times" if restarts else text

    def failure(self) -> Failure | None:
        """What failed, if anything did."""
        failed = [task for task in self._tasks.values() if task.state != "COMPLETED"]
        if not failed:
            return None
        task = min(failed, key=lambda task: task.state == GONE)  # one of which more is known
        if task.state == GONE:
            reason = "Slurm has forgotten it, and no accounting tells its end: look at its log"
        elif task.reason == "DependencyNeverSatisfied":
            reason = "never started, since what it waits for failed"
        else:
            reason = task.state.lower()
            if task.exit_code:
                reason += f", exit code {task.exit_code}"
        if len(self._tasks) > 1:
            reason += f" ({len(failed)} of {len(self._tasks)} tasks)"
        log = _log(self._job, task)
        if log.exists():
            reason += f", log {log}: {last_line(log) or 'it is empty'}"
        return Failure(name=self._job.written.job.name, job_id=self._job.job_id, reason=reason)


def _log(job: Submitted, task: TaskState) -> Path:
    log = job.written.log
    number = f"{job.job_id}_{task.task}"
    return log.with_name(log.name.replace("%A_%a", number).replace("%j", job.job_id))
