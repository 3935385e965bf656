"""Independent tasks side by side: in threads of this process, or on workers that Dask starts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

from interkd.kernels.errors import ConfigError
from interkd.pipeline.config import in_range, one_of
from interkd.pipeline.devices import cores
from interkd.pipeline.progress import SILENT, Message

KINDS = ("auto", "none", "local", "slurm")

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """Where independent tasks run.

    Attributes:
        kind: `none` for threads of this process, `local` for processes of this host, `slurm` for
            Slurm jobs; `auto` for `local` where the work is long enough to be worth their start.
        workers: Threads or processes at work; 0 for one a core, with `slurm` for one job's.
        threads: Cores that each of them needs: 1, unless a task computes with several threads.
        profile: Settings of a Slurm job, YAML; with `slurm` only. The user's own when None.
    """

    kind: str = "none"
    workers: int = 0
    threads: int = 1
    profile: Path | None = None

    def __post_init__(self) -> None:
        one_of("cluster", self.kind, KINDS)
        in_range("", self, "workers", at_least=0)
        in_range("", self, "threads", at_least=1)
        if self.profile is not None and self.kind != "slurm":
            raise ConfigError("profile", expected="with the cluster slurm only", got=self.kind)

    def decided(self, *, is_long: bool) -> ClusterSettings:
        """These settings with `auto` made `local` where the work is long, else `none`."""
        if self.kind != "auto":
            return self
        is_parallel = (self.workers or cores() // self.threads) > 1
        return replace(self, kind="local" if is_long and is_parallel else "none")


IN_PROCESS = ClusterSettings()


class TaskFuture(Protocol):
    """What Python's and Dask's futures have in common."""

    def add_done_callback(self, function: Callable[[Any], Any], /) -> None:
        """Calls a function when the result is there."""
        ...

    def result(self) -> Any:
        """The result, or the task's error raised."""
        ...

    def cancel(self) -> Any:
        """Gives the task up, if it has not begun."""
        ...


class Workers(ABC):
    """Threads or processes that stand ready; `open_workers` starts them.

    Attributes:
        count: How many there are, or will be.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def run(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Generator[tuple[int, Result], None, None]:
        """Calls a function with each item, several at once.

        Items are taken as they are needed: at most two a worker are under way, so neither items
        nor results pile up. On processes, the function goes to each worker once, and the task of
        one that died is given to another: a task may run twice, so it must publish what it writes
        whole, if nobody else has.

        Args:
            function: For processes one that pickle can take: of a module, a `partial` of one, or
                an object of a class. The first error ends the work and is raised as it is.
            items: Small ones; they are sent with their tasks.

        Returns:
            Each item's position and result, in the order in which they are done.
        """
        finished: SimpleQueue[int] = SimpleQueue()
        under_way: dict[int, TaskFuture] = {}
        numbered = enumerate(items)
        try:
            while True:
                for position, item in islice(numbered, 2 * self.count - len(under_way)):
                    future = self._submit(function, item)
                    under_way[position] = future
                    future.add_done_callback(partial(_put, finished, position))
                if not under_way:
                    return
                position = self._next(finished)
                yield position, self._result(under_way.pop(position))
        finally:
            for future in under_way.values():
                future.cancel()

    @abstractmethod
    def _submit(self, function: Callable[[Item], Result], item: Item) -> TaskFuture:
        """Gives the workers a task."""

    def _next(self, finished: SimpleQueue[int]) -> int:
        return finished.get()

    def _result(self, future: TaskFuture) -> Any:
        return future.result()


def _put(finished: SimpleQueue[int], position: int, _: object) -> None:
    finished.put(position)


class ThreadWorkers(Workers):
    """Threads of this process."""

    def __init__(self, pool: ThreadPoolExecutor, count: int) -> None:
        super().__init__(count)
        self._pool = pool

    def _submit(self, function: Callable[[Item], Result], item: Item) -> TaskFuture:
        return self._pool.submit(function, item)


@contextmanager
def open_workers(
    settings: ClusterSettings, message: Message = SILENT, *, tasks: int
) -> Iterator[Workers]:
    """Starts workers, and ends them with whatever they are at.

    Args:
        settings: Where and how many; `auto` must have been decided.
        message: Told what a user waits for.
        tasks: How many there will be: no more workers are started, and no cluster for none.

    Raises:
        ClusterError: If they cannot be started.
    """
    if settings.kind == "none" or tasks == 0:
        count = max(1, min(settings.workers or cores(), tasks))
        pool = ThreadPoolExecutor(count)
        try:
            yield ThreadWorkers(pool, count)
        finally:
            pool.shutdown(cancel_futures=True)
        return
    from interkd.pipeline.cluster.dask_cluster import open_dask_workers  # distributed is slow

    with open_dask_workers(settings, message, tasks) as workers:
        yield workers
