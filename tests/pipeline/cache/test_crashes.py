"""Writers that race, die and leave things behind."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from interkd.pipeline.cache import writer
from interkd.pipeline.cache.files import publish_file, temporary_path
from interkd.pipeline.cache.fingerprint import Fingerprint
from interkd.pipeline.cache.verify import verify
from interkd.pipeline.cache.writer import EncodedUtterance, PartPlan, StoreWriter

if TYPE_CHECKING:
    from tests.pipeline.cache.conftest import StoreMaker


def dead_process() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_two_writers_race_for_one_part(
    tmp_path: Path,
    fingerprint: Fingerprint,
    utterances: list[EncodedUtterance],
    plan: PartPlan,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "store"
    barrier = threading.Barrier(2)

    def publish_together(target: Path, content: bytes, *, replace: bool) -> bool:
        if target.name.startswith("part-"):
            barrier.wait()
        return publish_file(target, content, replace=replace)

    monkeypatch.setattr(writer, "publish_file", publish_together)
    stands: list[bool] = []

    def write() -> None:
        stands.append(StoreWriter.open(path, fingerprint, plan).write_part(0, utterances[:2]))

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(stands) == [False, True]
    assert sorted(p.name for p in path.iterdir()) == ["part-00000.zip", "zarr.json"]
    assert not StoreWriter.open(path, fingerprint, plan).write_part(0, utterances[:2])


def test_leftovers_of_the_dead_are_removed(
    tmp_path: Path, fingerprint: Fingerprint, plan: PartPlan
) -> None:
    path = tmp_path / "store"
    path.mkdir()
    mine = temporary_path(path / "part-00000.zip").name
    pid = f".{os.getpid()}."
    dead = mine.replace(pid, f".{dead_process()}.")
    earlier_run = mine.replace(mine.split(".")[-2], "0123abcd-0")
    living = mine.replace(pid, f".{os.getppid()}.")
    elsewhere = dead.replace(".zip.", ".zip.other-host-than-")
    old = elsewhere.replace(".tmp", "9.tmp")
    for name in (mine, dead, earlier_run, living, elsewhere, old):
        (path / name).write_bytes(b"half a part")
    yesterday = time.time() - 100_000
    os.utime(path / old, (yesterday, yesterday))
    metadata = dead.replace("part-00000.zip", "zarr.json")
    (path / metadata).write_text("{")
    StoreWriter.open(path, fingerprint, plan)
    left = {p.name for p in path.iterdir()}
    assert left == {mine, living, elsewhere, "zarr.json"}


def test_leftovers_of_writers_that_die_meanwhile_are_removed(
    tmp_path: Path, fingerprint: Fingerprint, utterances: list[EncodedUtterance], plan: PartPlan
) -> None:
    opened = StoreWriter.open(tmp_path / "store", fingerprint, plan)
    for index, positions in enumerate(plan.parts):
        opened.write_part(index, [utterances[i] for i in positions])
    mine = temporary_path(opened.path / "part-00000.zip")
    dead = mine.name.replace(f".{os.getpid()}.", f".{dead_process()}.")
    mine.with_name(dead).write_bytes(b"half a part")
    opened.finish({})
    assert [p.name for p in opened.path.iterdir() if p.name.startswith(".")] == []


CHILD = """
import pickle, sys
from interkd.pipeline.cache.writer import StoreWriter

path, job = sys.argv[1:]
with open(job, "rb") as file:
    fingerprint, plan, utterances = pickle.load(file)
writer = StoreWriter.open(path, fingerprint, plan)
for index in writer.missing_parts():
    writer.write_part(index, [utterances[i] for i in plan.parts[index]])
"""


def test_a_killed_process_leaves_whole_parts_only(
    tmp_path: Path, maker: StoreMaker, fingerprint: Fingerprint
) -> None:
    utterances = maker.utterances(fingerprint, [8] * 24)
    plan = maker.plan(utterances, 24)
    job, path = tmp_path / "job", tmp_path / "store"
    job.write_bytes(pickle.dumps((fingerprint, plan, utterances)))
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(path), str(job)])
    try:
        deadline = time.monotonic() + 60
        while not (path / "part-00001.zip").exists():
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.001)
        while not list(path.glob(".part-*.tmp")):
            assert child.poll() is None
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()

    opened = StoreWriter.open(path, fingerprint, plan)
    assert list(path.glob(".*")) == []
    missing = opened.missing_parts()
    assert 0 < len(missing) < 23
    problems = verify(path).problems
    assert {p.where for p in problems if "missing" not in p.what} == {"zarr.json", "index"}
    for index in missing:
        assert opened.write_part(index, [utterances[i] for i in plan.parts[index]])
    opened.finish({})
    assert verify(path).problems == ()


def test_a_store_without_hard_links(
    tmp_path: Path, maker: StoreMaker, fingerprint: Fingerprint, monkeypatch: pytest.MonkeyPatch
) -> None:
    utterances = maker.utterances(fingerprint, [8] * 6)
    calm = maker.write(tmp_path / "calm", utterances, fingerprint, parts=3)

    def refuse(self: Path, target: Path) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    path = maker.write(tmp_path / "store", utterances, fingerprint, parts=3)
    assert {p.name: p.read_bytes() for p in path.iterdir()} == {
        p.name: p.read_bytes() for p in calm.iterdir()
    }
    again = StoreWriter.open(path, fingerprint, maker.plan(utterances, 3))
    assert not again.write_part(0, utterances[:2])
