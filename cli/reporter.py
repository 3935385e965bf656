"""Progress in the terminal: a bar with figures, and plain lines where there is no terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from interkd.pipeline.progress import LineReporter


class TerminalReporter(LineReporter):
    """Shows each stage as a rich progress bar on standard error, or a line a minute in a file."""

    def __init__(self) -> None:
        super().__init__()
        self.console = Console(stderr=True)
        self.progress: Progress | None = None
        self.task = TaskID(0)

    def begin(self, task: str, total: float, *, done: float = 0.0) -> None:
        """Starts a bar."""
        super().begin(task, total, done=done)
        self.end()
        if not self.console.is_terminal:
            return
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self.console,
        )
        self.progress.start()
        self.task = self.progress.add_task(task, total=total, figures="")
        self.progress.update(self.task, completed=done)

    def advance(self, amount: float, figures: str = "") -> None:
        """Moves the bar."""
        if self.progress is None:
            super().advance(amount, figures)
        else:
            if figures:
                self.progress.update(self.task, advance=amount, figures=figures)
            else:
                self.progress.update(self.task, advance=amount)

    def end(self) -> None:
        """Stops the bar."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def message(self, text: str) -> None:
        """Prints a line above the bar."""
        super().message(text)
        (self.progress.console if self.progress else self.console).print(
            text, highlight=False, markup=False, soft_wrap=True
        )
