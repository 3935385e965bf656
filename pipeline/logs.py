"""The end of a log, for a message about the process that wrote it."""

from __future__ import annotations

from pathlib import Path


def last_line(path: Path) -> str:
    """The last line of a log that says something; empty where there is none, or no log."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            lines = file.read().decode("utf-8", errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
