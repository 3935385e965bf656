"""A reporter that keeps what it was told."""

from __future__ import annotations

from interkd.pipeline.progress import Reporter


class Heard(Reporter):
    """Keeps the messages in `lines`."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)
