"""Work on a store's parts side by side, with Dask, telling how far it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import dask
from dask import delayed
from dask.callbacks import Callback

Result = TypeVar("Result")
Progress = Callable[[int, int], None]


def map_parts(
    function: Callable[[int], Result],
    count: int,
    progress: Progress | None = None,
    *,
    scheduler: str = "threads",
) -> list[Result]:
    """Calls `function` with 0 to `count - 1`, several at once.

    Args:
        function: Given the number of a part; its first error ends the work and is raised.
        count: Number of parts.
        progress: Called with the parts done and the parts in all, after each part.
        scheduler: Dask's: `threads`, or `synchronous` for one after the other.

    Returns:
        The results in the order of the parts.
    """
    # Dask takes independent tasks by their names: then neighbours are near in time, and one that
    # reads another store's parts reads few of them twice.
    tasks = [delayed(function)(part, dask_key_name=f"part-{part:08d}") for part in range(count)]
    with _Counter(progress, count):
        return list(dask.compute(*tasks, scheduler=scheduler))


class _Counter(Callback):  # type: ignore[misc]
    """Tells how many of dask's tasks are done."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        super().__init__(posttask=self._count)
        self.progress = progress
        self.done, self.total = 0, total

    def _count(self, *_: object) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total)
