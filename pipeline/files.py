"""Files that stand whole or not at all: written under another name, then renamed."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from interkd.kernels.errors import ConfigError

_LINE = 100  # of compact JSON: what is no longer stands on one line, as lists of numbers always do


def temporary_name(path: Path) -> Path:
    """A sibling of `path` that no other process uses: hidden, with host and process id."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Makes a folder for what follows; what fails leaves no empty one behind.

    Raises:
        ConfigError: If it cannot be made.
    """
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write to {folder}", got=error.strerror) from error
    try:
        yield
    except BaseException:
        if is_new and not any(folder.iterdir()):
            folder.rmdir()
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    temporary = temporary_name(path)
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically, indented for people."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_compact_json(path: Path, value: Any) -> None:
    """Writes JSON for people and diffs, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, _compact(value) + "\n")


def _compact(value: Any, indent: str = "") -> str:
    """JSON with short values and lists of numbers on one line."""
    line = json.dumps(value, ensure_ascii=False)
    is_flat = isinstance(value, list | tuple) and not any(
        isinstance(item, dict | list) for item in value
    )
    if is_flat:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if not isinstance(value, dict | list) or len(indent) + len(line) <= _LINE:
        return line
    inner = indent + "  "
    if isinstance(value, dict):
        items = [f"{json.dumps(key)}: {_compact(item, inner)}" for key, item in value.items()]
    else:
        items = [_compact(item, inner) for item in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return f"{opening}\n{inner}" + f",\n{inner}".join(items) + f"\n{indent}{closing}"


def publish_folder(temporary: Path, path: Path) -> None:
    """Renames a finished folder to its name, replacing one that stands there.

    Everything is flushed to disk first, so a power cut cannot leave empty files behind the name.
    Files get the folder's permissions: safetensors makes its own readable by the owner alone.
    """
    permissions = temporary.stat().st_mode & 0o666
    for file in sorted(temporary.rglob("*")):
        if file.is_file():
            file.chmod(permissions)
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    former = path.with_name(f"{temporary.name}.former")
    if path.exists():
        path.rename(former)
    temporary.rename(path)
    sync_folder(path.parent)
    shutil.rmtree(former, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Flushes the names in a folder to disk, so that a rename survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
