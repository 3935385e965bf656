"""Parts in memory: read once for all who ask, the least recently used let go past a budget."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future

from interkd.pipeline.cache.part import Part


class PartMemory:
    """Keeps parts that were asked for; any number of threads may ask at once.

    Args:
        read: Reads and checks a part.
        budget_bytes: Of the columns of all parts together; the part last read always stays.

    Attributes:
        held_bytes: Of the columns in memory.
    """

    def __init__(self, read: Callable[[int], Part], *, budget_bytes: float) -> None:
        self.held_bytes = 0
        self._read = read
        self._budget_bytes = budget_bytes
        self._parts: OrderedDict[int, Future[Part]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, index: int) -> Part:
        """A part, read now unless it is held or on its way."""
        with self._lock:
            future = self._parts.get(index)
            is_mine = future is None
            if future is None:
                future = self._parts[index] = Future()
            self._parts.move_to_end(index)
        if is_mine:
            self._read_into(future, index)
        return future.result()

    def _read_into(self, future: Future[Part], index: int) -> None:
        """Reads a part for everyone who waits for it; a failure is not kept."""
        try:
            part = self._read(index)
        except BaseException as error:
            with self._lock:
                del self._parts[index]
            future.set_exception(error)
            return
        future.set_result(part)
        with self._lock:
            self.held_bytes += part.nbytes
            for oldest in list(self._parts):
                if self.held_bytes <= self._budget_bytes or oldest == index:
                    break
                if self._parts[oldest].done():
                    self.held_bytes -= self._parts.pop(oldest).result().nbytes
