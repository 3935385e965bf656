"""Files that exist whole or not at all: temporary names, fsync, rename, and their leftovers."""

from __future__ import annotations

import functools
import itertools
import os
import re
import secrets
import shutil
import socket
from pathlib import Path

from interkd.pipeline.files import sync_folder

_TEMPORARY = re.compile(
    r"\.(?:part-\d+|index|zarr\.json)\.(?P<host>.+)\.(?P<pid>\d+)\.(?P<run>[0-9a-f]{8})-\d+\.tmp"
)
_counter = itertools.count()


@functools.cache
def _run_token() -> str:
    """Tells this process from an earlier one of the same id, as in a restarted container."""
    return secrets.token_hex(4)


def temporary_path(target: Path) -> Path:
    """A name beside `target` that no other writer uses: `.NAME.HOST.PID.RUN-N.tmp`."""
    name = f".{target.name}.{socket.gethostname()}.{os.getpid()}.{_run_token()}-{next(_counter)}"
    return target.with_name(f"{name}.tmp")


def is_temporary(name: str) -> bool:
    """Whether `name` is one that `temporary_path` makes."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_leftovers(folder: Path) -> list[str]:
    """Removes what dead writers of this host left under temporary names; returns the names.

    Writers of other hosts cannot be asked whether they live: theirs stay.
    """
    removed = []
    for path in sorted(folder.iterdir()):
        match = _TEMPORARY.fullmatch(path.name)
        if match is None or match["host"] != socket.gethostname():
            continue
        if _is_alive(int(match["pid"]), match["run"]):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        removed.append(path.name)
    return removed


def _is_alive(pid: int, run: str) -> bool:
    if pid == os.getpid():
        return run == _run_token()
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def sync_tree(folder: Path) -> None:
    """Makes every file and name under a folder last through a power cut."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync_folder(Path(parent, name))
        sync_folder(Path(parent))


def publish_folder(temporary: Path, target: Path) -> bool:
    """Gives a finished folder its name, or discards it where another writer was first.

    Returns:
        Whether this folder now stands at `target`.
    """
    sync_tree(temporary)
    try:
        temporary.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        shutil.rmtree(temporary)
        return False
    sync_folder(target.parent)
    return True


def write_text(target: Path, text: str, *, replace: bool) -> bool:
    """Writes a whole text file at once.

    Args:
        target: The file.
        text: Its content.
        replace: Whether a file that stands there gives way.

    Returns:
        Whether the text now stands at `target`.
    """
    temporary = temporary_path(target)
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            temporary.replace(target)
        else:
            try:
                target.hardlink_to(temporary)
            except FileExistsError:
                return False
            except OSError:  # a file system without hard links
                temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(target.parent)
    return True
