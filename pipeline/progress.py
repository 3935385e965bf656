"""Progress as the stages report it; who listens (a terminal, a log, nobody) is the caller's."""

from __future__ import annotations


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
