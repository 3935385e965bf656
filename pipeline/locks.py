"""Locks of runs: held by one process, and freed by the system however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path

_PAUSE = 0.1  # seconds


@contextlib.contextmanager
def hold(lock: Path, *, tries: int = 1) -> Iterator[bool]:
    """Holds a run's lock, if nobody else does; the system frees it when the process ends.

    Yields:
        Whether it is held now.
    """
    with lock.open("a") as file:
        for attempt in range(tries):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if attempt + 1 == tries:
                    yield False
                    return
                time.sleep(_PAUSE)
            else:
                break
        yield True
