from __future__ import annotations

import itertools
import threading

import pytest

from interkd.pipeline.cache.parts_parallel import map_parts
from interkd.pipeline.cluster.tasks import ClusterSettings


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("count", [0, 1, 37])
def test_results_in_order_and_progress(workers: int, count: int) -> None:
    seen: list[tuple[int, int]] = []
    found = map_parts(
        lambda part: part * part,
        count,
        lambda done, total: seen.append((done, total)),
        cluster=ClusterSettings(workers=workers),
    )
    assert found == [part * part for part in range(count)]
    assert seen == [(done, count) for done in range(1, count + 1)]


def test_neighbours_are_near_in_time() -> None:
    order: list[int] = []
    lock = threading.Lock()

    def note(part: int) -> None:
        with lock:
            order.append(part)

    map_parts(note, 200)
    steps = [abs(later - earlier) for earlier, later in itertools.pairwise(order)]
    assert sorted(order) == list(range(200))
    assert sum(steps) / len(steps) < 10


def test_an_error_is_raised_as_it_is() -> None:
    def fail(part: int) -> int:
        if part == 3:
            raise ValueError("part 3")
        return part

    with pytest.raises(ValueError, match="part 3"):
        map_parts(fail, 5)


def test_equal_results_are_not_shared() -> None:
    first, second = map_parts(lambda _: [0], 2)
    assert first is not second
