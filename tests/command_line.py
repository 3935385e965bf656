"""The command line, in this process."""

from __future__ import annotations

from interkd.cli.main import main


def interkd(*arguments: str) -> int:
    """Runs a command; its exit code."""
    try:
        main(arguments)
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0
