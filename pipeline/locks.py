"""Locks of runs: held by one process, and freed by the system however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from interkd.pipeline.progress import SILENT, Message

LOOKS = 20  # tries that outlast others' looks: each holds the lock for an instant
_PAUSE = 0.1  # seconds


@contextlib.contextmanager
def hold(lock: Path, *, tries: int = 1, message: Message = SILENT) -> Iterator[bool]:
    """Holds a run's lock, if nobody else does; the system frees it when the process ends.

    Some network disks have no locks, and another user's file may not be written. What cannot be
    locked counts as held.

    Args:
        lock: Its file.
        tries: How often, a tenth of a second apart.
        message: Told why it could not be locked.

    Yields:
        Whether it is held now.
    """
    with contextlib.ExitStack() as closed_at_last:
        try:
            file = closed_at_last.enter_context(_opened(lock))
            is_mine = _lock(file.fileno(), tries)
        except OSError as error:
            message(
                f"warning: cannot lock {lock} ({error.strerror}); see to it that no other process "
                "works on this run"
            )
            is_mine = True
        yield is_mine


def _opened(lock: Path) -> IO[str]:
    try:
        return lock.open("a")
    except PermissionError:  # another user's, in a folder that a group shares
        return lock.open()


def _lock(handle: int, tries: int) -> bool:
    for attempt in range(tries):
        if attempt:
            time.sleep(_PAUSE)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False
