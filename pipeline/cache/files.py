"""Files that exist whole or not at all: temporary names, fsync, link or rename, leftovers."""

from __future__ import annotations

import functools
import itertools
import os
import re
import secrets
import shutil
import socket
from pathlib import Path

from interkd.pipeline.cache.processes import process_start
from interkd.pipeline.files import sync_folder

_TEMPORARY = re.compile(
    r"\.(?:part-\d+\.zip|index\.zip|zarr\.json|\.part-\d+\.claim)\.(?P<host>.+)\.(?P<pid>\d+)\.(?P<run>[0-9a-f]{8})-\d+\.tmp"
)
_DAY_SECONDS = 86_400.0
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


def file_system_time(path: Path) -> float:
    """Now, by the clock that stamps files beside `path`: a server's, on a network disk."""
    probe = temporary_path(path)
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> list[str]:
    """Removes what dead writers left under temporary names; returns the names.

    Writers of other hosts cannot be asked whether they live: theirs go when they are a day old, by
    the file system's clock.
    """
    removed = []
    for path in sorted(folder.iterdir()):
        match = _TEMPORARY.fullmatch(path.name)
        if match is None:
            continue
        if match["host"] != socket.gethostname():
            if file_system_time(folder / "zarr.json") - path.stat().st_mtime < _DAY_SECONDS:
                continue
        elif _runs(int(match["pid"]), match["run"]):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        removed.append(path.name)
    return removed


def _runs(pid: int, run: str) -> bool:
    # A process that was killed and not yet reaped has ended, though its id is still taken.
    return run == _run_token() if pid == os.getpid() else process_start(pid) != "dead"


def publish_file(target: Path, content: bytes, *, replace: bool) -> bool:
    """Writes a whole file at once, flushed to disk before it gets its name.

    Args:
        target: The file.
        content: Its bytes.
        replace: Whether a file that stands there gives way.

    Returns:
        Whether these bytes now stand at `target`.
    """
    temporary = temporary_path(target)
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            temporary.replace(target)
        elif not _name_exclusively(temporary, target):
            return False
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(target.parent)
    return True


def _name_exclusively(temporary: Path, target: Path) -> bool:
    """Gives a file a name that is free; a hard link does it at once, on network disks too."""
    try:
        target.hardlink_to(temporary)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        if target.exists():
            return False
        temporary.replace(target)
    return True
