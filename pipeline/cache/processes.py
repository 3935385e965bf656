"""Which process is which: alive or dead, of this boot and namespace, or an id used again."""

from __future__ import annotations

import os
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PID_NAMESPACE = Path("/proc/self/ns/pid")


def boot() -> str:
    """The host's current boot, which ends every process of an earlier one; "" where unknown."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def namespace() -> str:
    """This process's namespace of process ids; "" where unknown."""
    try:
        return str(_PID_NAMESPACE.readlink())
    except OSError:
        return ""


def process_start(pid: int) -> str:
    """Clock ticks from boot to a process's start; "dead", or "alive" where there is no /proc."""
    if not Path("/proc/self/stat").exists():
        return "alive" if is_alive(pid) else "dead"
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return "dead"
    return "dead" if stat[0] in "ZX" else stat[19]


def is_alive(pid: int) -> bool:
    """Whether a process of this host has that id."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
