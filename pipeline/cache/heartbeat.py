"""Signs of life: one thread a process that calls whatever it was given, every so often."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Protocol


class Beating(Protocol):
    """Something that shows from time to time that its owner lives."""

    def beat(self) -> None:
        """Gives one sign of life."""
        ...


class Heartbeat:
    """Beats for what is kept; its thread ends when nothing is, and is not inherited by a fork."""

    def __init__(self) -> None:
        self._begin()
        os.register_at_fork(after_in_child=self._begin)  # a lock may have been held at the fork

    def _begin(self) -> None:
        self._kept: dict[Beating, float] = {}
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._is_running = False

    def keep(self, beating: Beating, seconds: float) -> None:
        """Beats for it every `seconds` from now on."""
        with self._lock:
            self._kept[beating] = seconds
            if not self._is_running:
                self._is_running = True
                threading.Thread(target=self._run, name="claims", daemon=True).start()
            self._changed.set()

    def forget(self, beating: Beating) -> None:
        """Beats for it no longer."""
        with self._lock:
            self._kept.pop(beating, None)
            self._changed.set()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._kept:
                    self._is_running = False
                    return
                kept, pause = list(self._kept), min(self._kept.values())
                self._changed.clear()
            for beating in kept:
                with contextlib.suppress(OSError):  # the disk may be back at the next beat
                    beating.beat()
            self._changed.wait(pause)
