"""Progress as the stages report it; who listens (a terminal, a log, nobody) is the caller's."""

from __future__ import annotations

import time
from collections.abc import Callable

_LINE_EVERY = 60.0  # seconds


class Reporter:
    """Listens to nothing; the command line's listener overrides what it shows."""

    def begin(self, task: str, total: float, *, done: float = 0.0) -> None:
        """A stage begins, with `done` of its `total` behind it already."""

    def advance(self, amount: float, figures: str = "") -> None:
        """The stage has done `amount` more; `figures` is a short text beside the bar."""

    def end(self) -> None:
        """The stage is over."""

    def message(self, text: str) -> None:
        """One line for the user."""


Message = Callable[[str], None]
SILENT: Message = Reporter().message


class LineReporter(Reporter):
    """Makes messages of a stage's progress, one a minute in which nothing else was said."""

    def __init__(self) -> None:
        self._task, self._total, self._done = "", 0.0, 0.0
        self._said = time.monotonic()

    def begin(self, task: str, total: float, *, done: float = 0.0) -> None:
        """A stage begins."""
        self._task, self._total, self._done = task, total, done

    def advance(self, amount: float, figures: str = "") -> None:
        """Now and then a line."""
        self._done += amount
        if time.monotonic() - self._said > _LINE_EVERY and self._total:
            share = 100 * self._done / self._total
            self.message(f"{self._task}: {share:.0f} %  {figures}".rstrip())

    def message(self, text: str) -> None:
        """A line: the next one of progress is a minute away."""
        self._said = time.monotonic()
