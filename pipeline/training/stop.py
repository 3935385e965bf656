"""A run asked to stop: by its stop signal, or by ctrl-C."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether somebody asked; the training loop looks at it after each step.

    Args:
        stop_signal: Name of the signal that asks, beside ctrl-C's.
    """

    def __init__(self, stop_signal: str) -> None:
        self.asked = False
        self._numbers = {getattr(signal, stop_signal), signal.SIGINT}

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Catches the signals; does nothing outside the main thread, where none arrive."""
        former = {}
        try:
            for number in self._numbers:
                former[number] = signal.signal(number, self._ask)
        except ValueError:
            pass
        try:
            yield
        finally:
            for number, handler in former.items():
                if handler is not None:  # one that Python did not set, and cannot
                    signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.asked:
                raise KeyboardInterrupt
            # Not by the reporter, which the signal may have interrupted.
            os.write(2, b"\nfinishing a step and a checkpoint; ctrl-C again ends it at once\n")
        self.asked = True
