"""Locks of runs, on disks that have none, too."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from interkd.pipeline.locks import hold


def test_one_holds_it_at_a_time(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with hold(lock) as mine:
        assert mine
        with hold(lock, tries=2) as second:
            assert not second
    with hold(lock) as again:
        assert again


def test_a_disk_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    said: list[str] = []
    with hold(tmp_path / "lock", message=said.append) as mine:
        assert mine
    (warning,) = said
    assert "cannot lock" in warning
    assert "Function not implemented" in warning


def test_a_lock_that_may_only_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, opened = tmp_path / "lock", Path.open
    lock.touch()

    def open_read_only(path: Path, mode: str = "r") -> object:
        if mode != "r":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(path, mode)

    monkeypatch.setattr(Path, "open", open_read_only)
    said: list[str] = []
    with hold(lock, message=said.append) as mine, hold(lock) as second:
        assert mine
        assert not second
    assert said == []
