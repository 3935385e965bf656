"""Workers that Dask starts: processes of this host, or Slurm jobs through dask-jobqueue."""

from __future__ import annotations

import logging
import math
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import dask
from distributed import Client, LocalCluster, Security, WorkerPlugin, get_worker
from distributed.scheduler import KilledWorker

from interkd.kernels.errors import ClusterError, InterkdError
from interkd.pipeline.cluster.dask_check import SlurmCheck
from interkd.pipeline.cluster.profile import Profile, read_profile
from interkd.pipeline.cluster.tasks import ClusterSettings, TaskFuture, Workers
from interkd.pipeline.cluster.words import shell_word
from interkd.pipeline.devices import cores
from interkd.pipeline.progress import Message

DEATHS_BORNE = 5  # workers that one task may outlive: a job may be preempted, but not for ever
_NO_PORT = "127.0.0.1:0"  # Dask always serves HTTP: here any free port, and no page
_POLL_SECONDS = 5.0

Item = TypeVar("Item")
Result = TypeVar("Result")


class DaskWorkers(Workers):
    """Workers of a Dask cluster.

    Args:
        client: Connected to the cluster.
        workers: How many workers there will be.
        check: Called every few seconds without a result; raises if none can come any more.
    """

    def __init__(self, client: Client, workers: int, check: Callable[[], None]) -> None:
        super().__init__(workers)
        self._client = client
        self._check = check
        self._function: Callable[[Any], Any] | None = None
        self._functions, self._tasks = count(), count()
        self._name = ""

    def _submit(self, function: Callable[[Item], Result], item: Item) -> TaskFuture:
        if function is not self._function:
            # A plugin reaches each worker once, those too that come in place of a dead one.
            self._name = f"interkd-function-{next(self._functions)}"
            self._client.register_plugin(_Function(function), name=self._name)
            self._function = function
        key = f"interkd-task-{next(self._tasks)}"
        future: TaskFuture = self._client.submit(_call, self._name, item, key=key)
        return future

    def _next(self, finished: SimpleQueue[int]) -> int:
        while True:
            try:
                return finished.get(timeout=_POLL_SECONDS)
            except Empty:
                self._check()

    def _result(self, future: TaskFuture) -> Any:
        try:
            result = future.result()
        except KilledWorker as error:
            raise ClusterError(
                f"{DEATHS_BORNE + 1} workers died over one task",
                remedy="they may lack memory: start fewer with --workers, or give a job more",
            ) from error
        if isinstance(result, _Refusal):
            raise result.error
        return result


class _Function(WorkerPlugin):  # type: ignore[misc]
    """The function of one run, held by a worker."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def setup(self, worker: Any) -> None:
        """Ctrl-C in a terminal reaches every process; what becomes of the tasks is the driver's."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Refusal:
    """An error that a task raised on purpose; as a result, Dask does not log it."""

    def __init__(self, error: InterkdError) -> None:
        self.error = error


def _call(name: str, item: Any) -> Any:
    try:
        return get_worker().plugins[name].function(item)
    except InterkdError as error:
        return _Refusal(error)


@contextmanager
def open_dask_workers(
    settings: ClusterSettings, message: Message, tasks: int
) -> Iterator[DaskWorkers]:
    """Starts a cluster, `local` or `slurm`, and ends it with whatever it is at.

    Connections are encrypted and need a certificate that is made for this one cluster: who can
    speak to a Dask scheduler can run code as its user, and a login node has many users.

    Args:
        settings: Where and how many.
        message: Told what the user waits for.
        tasks: How many there will be; no more workers are started.

    Raises:
        ClusterError: If it cannot be started.
    """
    with ExitStack() as stack:
        scratch = stack.enter_context(TemporaryDirectory(prefix="interkd-dask-"))
        config = {
            "distributed.scheduler.allowed-failures": DEATHS_BORNE,
            "temporary-directory": scratch,
            "distributed.scheduler.http.routes": [],
            "distributed.worker.http.routes": [],
        }
        stack.enter_context(dask.config.set(config))
        security = Security.temporary()
        if settings.kind == "local":
            workers = min(settings.workers or max(1, cores() // settings.threads), tasks)
            cluster = stack.enter_context(_local_cluster(workers, security))
            check: Callable[[], None] = _nothing_to_check
        else:
            profile = read_profile(settings.profile)
            processes = max(1, (profile.cpus or 1) // settings.threads)
            workers = min(settings.workers or processes, tasks)
            processes = min(processes, workers)
            cluster, logs = stack.enter_context(
                _slurm_cluster(profile, processes, settings.threads, security)
            )
            jobs = math.ceil(workers / processes)
            # A job that ends is followed by another; `scale` would not see to that.
            cluster.adapt(minimum_jobs=jobs, maximum_jobs=jobs)
            check = SlurmCheck(cluster, logs, message)
        client = stack.enter_context(Client(cluster, security=security, set_as_default=False))
        yield DaskWorkers(client, workers, check)


def _nothing_to_check() -> None:
    """Processes of this host start again by themselves."""


@contextmanager
def _local_cluster(workers: int, security: Security) -> Iterator[LocalCluster]:
    with LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        memory_limit=None,  # the kernel sees to that
        dashboard_address=_NO_PORT,
        scheduler_kwargs={"dashboard": False},
        security=security,
        silence_logs=logging.CRITICAL,
    ) as cluster:
        yield cluster


@contextmanager
def _slurm_cluster(
    profile: Profile, processes: int, threads: int, security: Security
) -> Iterator[tuple[Any, Path]]:
    """A cluster whose jobs run that many workers each, and the folder with the jobs' logs."""
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError as error:
        raise ClusterError(
            "dask-jobqueue is not installed", remedy="pip install 'interkd[slurm]'"
        ) from error
    with (
        # For certificate and logs: this user's alone, and seen from every node.
        TemporaryDirectory(prefix=".interkd-dask-", dir=Path.cwd()) as shared,
        SLURMCluster(
            **jobqueue_options(profile, processes, threads, logs=Path(shared)),
            # Jobs begin in this working folder too, so a name does, which needs no quoting.
            security=_in_files(security, Path(Path(shared).name)),
            scheduler_options={"dashboard_address": _NO_PORT, "dashboard": False},
            silence_logs=logging.CRITICAL,
        ) as cluster,
    ):
        _try_submission(cluster.job_script())
        yield cluster, Path(shared)


def _in_files(security: Security, folder: Path) -> Security:
    """The same certificate and key, as files that the command of a job can name."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    certificate.write_text(security.tls_worker_cert)
    key.write_text(security.tls_worker_key)
    roles = ("client", "scheduler", "worker")
    return Security(
        require_encryption=True,
        tls_ca_file=str(certificate),
        **{f"tls_{role}_cert": str(certificate) for role in roles},
        **{f"tls_{role}_key": str(key) for role in roles},
    )


def jobqueue_options(
    profile: Profile, processes: int, threads: int, *, logs: Path
) -> dict[str, Any]:
    """What dask-jobqueue's SLURMCluster takes of a profile; never its GPUs.

    Interface, ports and the like are a site's own: dask-jobqueue reads them from the section
    `jobqueue.slurm` of Dask's configuration.

    Args:
        profile: The cluster.
        processes: Workers in a job.
        threads: Cores of each.
        logs: Absolute; the folder for the jobs' logs.
    """
    log = str(logs).replace("%", "%%") + "/%j.log"
    own = {"--qos": profile.qos, "--constraint": profile.constraint, "--output": log}
    left_to_slurm = {"#SBATCH -t ": profile.time, "#SBATCH --mem=": profile.memory}
    extra = dask.config.get("jobqueue.slurm.worker-extra-args", default=None) or []
    return {
        "job_name": "interkd-dask",
        "queue": profile.partition,
        "account": profile.account,
        "walltime": profile.time or "0",
        "cores": processes,
        "processes": processes,
        "job_cpu": profile.cpus or processes * threads,
        "memory": "1GB",  # it must have one; the job gets the profile's as it is written there
        "job_mem": profile.memory or "0",
        "job_directives_skip": [line for line, value in left_to_slurm.items() if value is None],
        "job_extra_directives": [
            *(f"{name}={shlex.quote(value)}" for name, value in own.items() if value is not None),
            *profile.sbatch,
        ],
        "job_script_prologue": list(profile.prologue),
        "python": " ".join(
            [
                *map(shell_word, profile.container),
                "python" if profile.container else shlex.quote(sys.executable),
            ]
        ),
        "worker_extra_args": [*extra, "--memory-limit", "0", "--no-dashboard"],  # Slurm has one
    }


def _try_submission(script: str) -> None:
    """Asks Slurm whether it would take a job, for its own words if it would not.

    Raises:
        ClusterError: If it would not, or there is no Slurm.
    """
    try:
        subprocess.run(
            ["sbatch", "--test-only"], input=script, text=True, capture_output=True, check=True
        )
    except FileNotFoundError as error:
        raise ClusterError(
            "there is no sbatch on this host", remedy="use --cluster local"
        ) from error
    except subprocess.CalledProcessError as error:
        raise ClusterError(
            "Slurm refuses the job of the profile", got=error.stderr.strip()
        ) from error
