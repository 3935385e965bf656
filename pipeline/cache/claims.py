"""Claims on names in a folder: who works on what, on any file system, network disks too.

A claim is a file that its owner creates exclusively (by a hard link, or O_EXCL where there are
none), touches while it lives, and that others take over by rename: no lock that a network disk may
lack. It saves work; it guards nothing: what two claimants would both write must be published
exclusively anyhow.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from interkd.pipeline.cache import processes
from interkd.pipeline.cache.files import file_system_time, temporary_path
from interkd.pipeline.cache.heartbeat import Heartbeat

HEARTBEAT_SECONDS = 30.0
STALE_SECONDS = 900.0
_WRITING_SECONDS = 60.0
_TRIES = 20
_heartbeat = Heartbeat()


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Who holds a claim, as its file says; fields are empty where the file says nothing.

    Attributes:
        host: Its host name.
        boot: Its host's boot, which ends every process of an earlier one.
        namespace: Its process namespace, in which alone its process id means something.
        pid: Its process id.
        process_start: Clock ticks from boot to the process's start, which tells a reused id.
        token: Of this one claim.
        started: When it was claimed, ISO 8601.
        age_seconds: Since its last sign of life, by the file system's clock.
    """

    host: str = ""
    boot: str = ""
    namespace: str = ""
    pid: int = 0
    process_start: str = ""
    token: str = ""
    started: str = ""
    age_seconds: float = 0.0

    def __str__(self) -> str:
        life = f"last sign of life {self.age_seconds:.0f} s ago"
        if not self.token:
            return f"an unnamed process ({life})"
        return f"process {self.pid} on {self.host} (begun {self.started}, {life})"

    def is_stale(self, stale_seconds: float) -> bool:
        """Whether the owner is known to be dead, or has been silent for too long."""
        if self.token and self.host == socket.gethostname():
            if self.boot != processes.boot():
                return True
            if self.namespace == processes.namespace():
                return self.process_start != processes.process_start(self.pid)
        if not self.token:  # no name: its writer has had the time to write it, or died
            stale_seconds = min(stale_seconds, _WRITING_SECONDS)
        return self.age_seconds > stale_seconds


class Claim:
    """A name that this process holds until it is released; a context manager.

    Attributes:
        path: Its file.
        lost: Whether a heartbeat found the file gone or another's. The work may go on: what it
            publishes is discarded if another was first.
    """

    def __init__(self, path: Path, content: bytes) -> None:
        self.path = path
        self.lost = False
        self._content = content
        self._pid = os.getpid()

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def release(self) -> None:
        """Frees the name, unless another has taken it over or a parent process holds it."""
        if self._pid != os.getpid():
            return
        _heartbeat.forget(self)
        if self._is_held():
            self.path.unlink(missing_ok=True)

    def beat(self) -> None:
        """Gives a sign of life, or notes that the claim is lost."""
        if self._is_held():
            os.utime(self.path)
        else:
            self.lost = True

    def _is_held(self) -> bool:
        try:
            return self.path.read_bytes() == self._content
        except FileNotFoundError:
            return False


def claim(
    folder: Path,
    name: str,
    *,
    stale_seconds: float = STALE_SECONDS,
    heartbeat_seconds: float = HEARTBEAT_SECONDS,
) -> Claim | Owner:
    """Claims a name, taking it over from an owner that is dead or has fallen silent.

    Args:
        folder: Where the claim's file stands.
        name: What is claimed; the file is `.NAME.claim`.
        stale_seconds: Silence after which the claim of another host's process is void.
        heartbeat_seconds: How often this process gives a sign of life.

    Returns:
        The claim, or the owner that holds it.

    Raises:
        OSError: If the folder cannot be read or written.
    """
    path = _path(folder, name)
    me = {
        "host": socket.gethostname(),
        "boot": processes.boot(),
        "namespace": processes.namespace(),
        "pid": os.getpid(),
        "process_start": processes.process_start(os.getpid()),
        "token": secrets.token_hex(8),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    content = (json.dumps(me) + "\n").encode()
    owner = Owner()
    for _ in range(_TRIES):
        if _create(path, content):
            held = Claim(path, content)
            _heartbeat.keep(held, heartbeat_seconds)
            return held
        found = _read(path)
        if found is None:
            continue  # released just now
        owner, judged = found
        if not owner.is_stale(stale_seconds):
            break
        _remove_stale(path, judged)
    return owner


def owner_of(folder: Path, name: str) -> Owner | None:
    """Who holds a name; None if nobody does.

    Raises:
        OSError: If the folder cannot be read or written: its clock is that of a file made there.
    """
    found = _read(_path(folder, name))
    return None if found is None else found[0]


def remove_stale_claims(folder: Path, *, stale_seconds: float = STALE_SECONDS) -> None:
    """Removes the claims of dead and silent owners.

    Raises:
        OSError: If the folder cannot be read or written.
    """
    for path in [path for path in folder.iterdir() if is_claim(path.name)]:
        found = _read(path)
        if found is not None and found[0].is_stale(stale_seconds):
            _remove_stale(path, found[1])


def is_claim(name: str) -> bool:
    """Whether a file of that name is a claim."""
    return name.startswith(".") and name.endswith(".claim")


def _path(folder: Path, name: str) -> Path:
    return folder / f".{name}.claim"


def _create(path: Path, content: bytes) -> bool:
    """Makes a file with its content if the name is free.

    A hard link gives a written file its name, so that a process killed here leaves no empty claim.
    """
    temporary = temporary_path(path)
    try:
        temporary.write_bytes(content)
        return _name_exclusively(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _name_exclusively(temporary: Path, path: Path) -> bool:
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        return False
    except FileNotFoundError:
        raise
    except OSError:  # a file system without hard links
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(handle, "wb") as file:
            file.write(temporary.read_bytes())
    return True


def _read(path: Path) -> tuple[Owner, bytes] | None:
    """The owner and the bytes of a claim; None if there is none."""
    try:
        with path.open("rb") as file:
            touched = os.fstat(file.fileno()).st_mtime  # of these bytes, not of a successor's
            content = file.read()
    except FileNotFoundError:
        return None
    age = max(0.0, file_system_time(path) - touched)
    kinds: dict[str, type] = {field.name: str for field in fields(Owner)} | {"pid": int}
    del kinds["age_seconds"]
    try:
        values: Any = json.loads(content)
        if all(isinstance(values.get(name), kind) for name, kind in kinds.items()):
            return Owner(**{name: values[name] for name in kinds}, age_seconds=age), content
    except (ValueError, AttributeError):
        pass  # its writer died while writing, or is at it: judged by age alone
    return Owner(age_seconds=age), content


def _remove_stale(path: Path, judged: bytes) -> None:
    """Moves a stale claim out of the way; of several contenders one succeeds.

    Between judgement and move another contender may have put its own claim there: then that one is
    put back, the same file where hard links exist.
    """
    moved = temporary_path(path)
    try:
        path.rename(moved)
    except FileNotFoundError:
        return
    try:
        if moved.read_bytes() != judged:
            _name_exclusively(moved, path)
    finally:
        moved.unlink(missing_ok=True)
