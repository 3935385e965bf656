"""Whether workers can still come from Slurm: what the user waits for, or why it is in vain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from interkd.kernels.errors import ClusterError
from interkd.pipeline.cluster.submit import slurm
from interkd.pipeline.logs import last_line
from interkd.pipeline.progress import Message

_POLLS_WITHOUT_JOBS = 4


class SlurmCheck:
    """Tells what a user waits for while there is no worker, and when none can come any more.

    Args:
        cluster: The `SLURMCluster`.
        logs: Folder with its jobs' logs.
        message: Told what the user waits for.
    """

    def __init__(self, cluster: Any, logs: Path, message: Message) -> None:
        self.cluster, self.logs, self.message = cluster, logs, message
        self.told = ""
        self.polls_without_jobs = 0

    def __call__(self) -> None:
        """Compares workers and jobs.

        Raises:
            ClusterError: If there is neither a worker nor a job for a while.
        """
        if self.cluster.scheduler_info["workers"]:
            self.polls_without_jobs, self.told = 0, ""
            return
        try:
            jobs = self._jobs()
        except ClusterError as error:  # that says nothing of the jobs
            self._tell(f"{error}; still waiting")
            return
        self.polls_without_jobs = 0 if jobs else self.polls_without_jobs + 1
        if self.polls_without_jobs >= _POLLS_WITHOUT_JOBS:
            raise ClusterError(
                "every Slurm job ended, none reached this process",
                got=self._last_line(),
                remedy="check the profile, and that the nodes can connect to this host",
            )
        if jobs:
            self._tell(f"waiting for Slurm: {jobs}")

    def _tell(self, text: str) -> None:
        if text != self.told:
            self.message(text)
            self.told = text

    def _jobs(self) -> str:
        """The jobs' states as squeue has them; empty if there is none left.

        Raises:
            ClusterError: If Slurm does not answer.
        """
        ids = [job.job_id for job in self.cluster.workers.values() if job.job_id]
        if not ids:
            return ""
        answer = slurm("squeue", "--noheader", "--jobs", ",".join(ids), "--format", "%i %T (%r)")
        if answer.returncode != 0 and "Invalid job id" not in answer.stderr:
            raise ClusterError("Slurm's controller does not answer", got=answer.stderr.strip())
        return ", ".join(line.strip() for line in answer.stdout.splitlines())

    def _last_line(self) -> str | None:
        """The last words of a job."""
        logs = sorted(self.logs.glob("*.log"), key=lambda path: path.stat().st_mtime)
        return next((line for line in map(last_line, reversed(logs)) if line), None)
