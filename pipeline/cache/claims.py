"""Claims on names in a folder: who works on what, by O_EXCL and rename alone, on any file system.

A claim is a file that its owner creates exclusively and touches while it lives. It saves work; it
guards nothing: what two claimants would both write must be published exclusively anyhow.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HEARTBEAT_SECONDS = 30.0
STALE_SECONDS = 900.0
_TRIES = 20
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Who holds a claim, as its file says; fields are empty where the file says nothing.

    Attributes:
        host: Its host name.
        boot: Its host's boot, which ends every process of an earlier one.
        pid: Its process id.
        process_start: Clock ticks from boot to the process's start: tells a reused pid.
        token: Of this one claim.
        since: When it was claimed, ISO 8601.
        silent_seconds: Age of its last sign of life by the file system's clock.
    """

    host: str = ""
    boot: str = ""
    pid: int = 0
    process_start: int = 0
    token: str = ""
    since: str = ""
    silent_seconds: float = 0.0

    def __str__(self) -> str:
        if not self.host:
            return f"an unnamed process (last sign of life {self.silent_seconds:.0f} s ago)"
        return (
            f"process {self.pid} on {self.host} (since {self.since}, last sign of life "
            f"{self.silent_seconds:.0f} s ago)"
        )

    def is_stale(self, stale_seconds: float) -> bool:
        """Whether the owner is known to be dead, or silent for too long elsewhere."""
        if self.host == socket.gethostname() and self.token:
            return self.boot != _boot_id() or self.process_start != _process_start(self.pid)
        return self.silent_seconds > stale_seconds


class Claim:
    """A name that this process holds, until it is released or the process ends."""

    def __init__(self, path: Path, owner: Owner) -> None:
        self.path = path
        self.owner = owner

    def release(self) -> None:
        """Frees the name, unless someone has taken it over meanwhile."""
        _heartbeat.forget(self)
        if self.owner.pid == os.getpid() and self.is_held():
            self.path.unlink(missing_ok=True)

    def is_held(self) -> bool:
        """Whether the file is still this claim's."""
        return _read(self.path).token == self.owner.token


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
        OSError: If the folder cannot be written.
    """
    path = _path(folder, name)
    me = Owner(
        host=socket.gethostname(),
        boot=_boot_id(),
        pid=os.getpid(),
        process_start=_process_start(os.getpid()),
        token=secrets.token_hex(8),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    for _ in range(_TRIES):
        if _create(path, _to_json(me)):
            held = Claim(path, me)
            _heartbeat.keep(held, heartbeat_seconds)
            return held
        owner = owner_of(folder, name)
        if owner is None:
            continue  # released just now
        if not owner.is_stale(stale_seconds):
            return owner
        _remove_stale(path, owner)
    return owner_of(folder, name) or Owner()


def owner_of(folder: Path, name: str) -> Owner | None:
    """Who holds a name; None if nobody does.

    Raises:
        OSError: If the folder cannot be written: its clock is read from a file made there.
    """
    path = _path(folder, name)
    try:
        touched = path.stat().st_mtime
    except FileNotFoundError:
        return None
    owner = _read(path)
    return replace(owner, silent_seconds=max(0.0, file_system_time(folder) - touched))


def is_claim(name: str) -> bool:
    """Whether a file of that name is a claim, or one that was being taken over."""
    return name.startswith(".") and (name.endswith(".claim") or ".claim." in name)


def file_system_time(folder: Path) -> float:
    """Now, by the clock that stamps files in a folder: a server's, on a network disk."""
    probe = folder / f".clock.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}.claim"
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _path(folder: Path, name: str) -> Path:
    return folder / f".{name}.claim"


def _create(path: Path, content: str) -> bool:
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    try:
        os.write(handle, content.encode())
    finally:
        os.close(handle)
    return True


def _remove_stale(path: Path, judged: Owner) -> None:
    """Moves a stale claim out of the way; of several contenders one succeeds.

    Between the judgement and the move another contender may have put its own claim there: then
    that one is put back.
    """
    moved = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        path.rename(moved)
    except FileNotFoundError:
        return
    try:
        found = _read(moved)
        if found.token != judged.token:
            _create(path, _to_json(found))
    finally:
        moved.unlink(missing_ok=True)


def _to_json(owner: Owner) -> str:
    values: dict[str, Any] = dict(vars(owner))
    del values["silent_seconds"]
    return json.dumps(values) + "\n"


def _read(path: Path) -> Owner:
    """The owner that a claim's file names; an empty one for a file that is gone or garbled."""
    try:
        values = json.loads(path.read_bytes())
        owner = Owner(**values)
    except (OSError, ValueError, TypeError):
        return Owner()
    kinds = {"host": str, "boot": str, "pid": int, "process_start": int, "token": str}
    is_right = all(isinstance(getattr(owner, field), kind) for field, kind in kinds.items())
    return replace(owner, silent_seconds=0.0) if is_right else Owner()


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _process_start(pid: int) -> int:
    """Clock ticks from boot to the process's start, -1 where it is dead, 0 where nobody knows."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        if not Path("/proc/self/stat").exists():
            return 0 if _is_alive(pid) else -1
        return -1
    except OSError:
        return 0
    is_dead = fields[0] in "ZX"
    return -1 if is_dead else int(fields[19])


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


class _Heartbeat:
    """One thread a process that touches the files of its claims."""

    def __init__(self) -> None:
        self._claims: dict[Claim, float] = {}
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._thread_pid = 0

    def keep(self, held: Claim, seconds: float) -> None:
        with self._lock:
            self._claims = {c: s for c, s in self._claims.items() if c.owner.pid == os.getpid()}
            self._claims[held] = seconds
            if self._thread_pid != os.getpid():  # none yet, or that of a forked parent
                self._thread_pid = os.getpid()
                self._changed = threading.Event()
                threading.Thread(target=self._beat, name="claims", daemon=True).start()
            self._changed.set()

    def forget(self, held: Claim) -> None:
        with self._lock:
            self._claims.pop(held, None)

    def _beat(self) -> None:
        while True:
            with self._lock:
                if not self._claims:
                    self._thread_pid = 0
                    return
                claims = list(self._claims)
                pause = min(self._claims.values())
                changed = self._changed
                changed.clear()
            for held in claims:
                # a claim that was taken over is not touched; its work goes on and is discarded
                if held.is_held():
                    with contextlib.suppress(OSError):
                        os.utime(held.path)
            changed.wait(pause)


_heartbeat = _Heartbeat()
