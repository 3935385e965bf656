"""Work on a store's parts side by side, telling how far it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from interkd.pipeline.cluster.tasks import IN_PROCESS, ClusterSettings, open_workers
from interkd.pipeline.progress import SILENT, Message

Result = TypeVar("Result")
Progress = Callable[[int, int], None]


def map_parts(
    function: Callable[[int], Result],
    count: int,
    progress: Progress | None = None,
    *,
    cluster: ClusterSettings = IN_PROCESS,
    long_work: int = 1,
    message: Message = SILENT,
) -> list[Result]:
    """Calls `function` with 0 to `count - 1`, several at once.

    Args:
        function: Given the number of a part; its first error ends the work and is raised. What a
            process may be given, see `Workers.run`.
        count: Number of parts.
        progress: Called with the parts done and the parts in all, after each part.
        cluster: Where.
        long_work: Parts that are worth the seconds in which processes start, where `cluster` leaves
            it open.
        message: Told what a user waits for.

    Returns:
        The results in the order of the parts.
    """
    results: dict[int, Result] = {}
    where = cluster.decided(is_long=count >= long_work)
    with open_workers(where, message, tasks=count) as workers:
        for part, result in workers.run(function, range(count)):
            results[part] = result
            if progress is not None:
                progress(len(results), count)
    return [results[part] for part in range(count)]
