"""Two hundred SIGKILLs at random instants of cache-teacher, and writers that share a store."""

from __future__ import annotations

import itertools
import json
import os
import random
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from interkd.pipeline.cache.reader import TeacherStore
from interkd.pipeline.cache.verify import verify
from interkd.pipeline.corpus.manifest import read_manifest, write_manifest
from tests.pipeline import loudness

pytestmark = pytest.mark.xdist_group("nursery")  # one for all of them

KILLS = 200
UTTERANCES = 14

# Importing torch takes seconds, a run a tenth of one: a nursery imports once and forks each run.
NURSERY = """
import contextlib, importlib, json, os, signal, sys, time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, sys.argv[1])
import loudness_of_tests
from interkd.kernels.stick_breaking import expand_stick_breaking
from interkd.pipeline.cache_settings import CacheTeacherConfig
from interkd.pipeline.cache_teacher import cache_teacher

empty = np.zeros(0, np.uint8)
expand_stick_breaking(empty, empty, empty, np.array([0.5]))  # compiled once, here
modules = Path(sys.argv[1], "modules.json")
print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    delays, children = job.pop("delays"), []
    for _ in delays:
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            config = {k: Path(v) if k in ("out", "manifest") else v for k, v in job.items()}
            try:
                cache_teacher(CacheTeacherConfig(**config))
                if all(delay is None for delay in delays):
                    modules.write_text(json.dumps(sorted(sys.modules)))
                os._exit(0)
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(1)
        children.append(child)
    for child, delay in zip(children, delays):
        if delay is not None:
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    if modules.exists():  # what a run imports late is imported here for the runs to come
        for name in json.loads(modules.read_text()):
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        modules.unlink()
    print(json.dumps(statuses), flush=True)
"""


class Nursery:
    """Runs cache-teacher in forked processes and kills them when told."""

    def __init__(self, folder: Path, manifest: Path) -> None:
        loudness.copy_to(folder)
        self.errors = folder / "errors.txt"
        self.settings: dict[str, Any] = {
            "teacher": loudness.SPECIFICATION,
            "manifest": str(manifest),
            "device": "cpu",
            "part_minutes": 0.04,
            "batch_seconds": 6,
            "decode_threads": 1,
        }
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-c", NURSERY, str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,  # so that its forked children end with it
            )
        assert self._out.readline() == "ready\n", self.errors.read_text()

    @property
    def _out(self) -> IO[str]:
        assert self.process.stdout is not None
        return self.process.stdout

    def run(self, out: Path, *delays: float | None) -> list[int]:
        """Exit statuses of as many writers as there are delays; None lets one finish."""
        assert self.process.stdin is not None
        job = {**self.settings, "out": str(out), "delays": delays}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        is_done, _, _ = select.select([self._out], [], [], 60)
        assert is_done, "a writer hangs"
        statuses: list[int] = json.loads(self._out.readline())
        assert 256 not in statuses, self.errors.read_text()
        return statuses


@pytest.fixture(scope="module")
def nursery(tone_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    folder = tmp_path_factory.mktemp("nursery")
    few = folder / "manifest.jsonl"
    write_manifest(few, read_manifest(tone_corpus.train).utterances[:UTTERANCES])
    made = Nursery(folder, few)
    yield made
    os.killpg(made.process.pid, signal.SIGKILL)
    made.process.communicate()


@pytest.fixture(scope="module")
def calm(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("calm") / "store"
    assert nursery.run(out, None) == [0]
    return out


def contents(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.iterdir()}


def parts_of(store: Path) -> dict[str, tuple[int, int]]:
    """Inode and modification time of every part that stands."""
    stats = {path.name: path.stat() for path in store.glob("part-*.zip")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def test_two_hundred_kills(nursery: Nursery, calm: Path, tmp_path: Path) -> None:
    chance = random.Random(7)
    expected = contents(calm)
    kills = finished_by_itself = 0
    for life in itertools.count():
        out = tmp_path / f"store-{life}"
        standing: dict[str, tuple[int, int]] = {}
        while True:
            (status,) = nursery.run(out, None if kills >= KILLS else chance.uniform(0, 0.2))
            now = parts_of(out)
            assert {name: now.get(name) for name in standing} == standing  # none written twice
            standing = now
            if status == 0:
                break
            assert status == 9
            kills += 1
        finished_by_itself += 1
        assert contents(out) == expected  # column by column, byte by byte; no orphan is left
        if kills >= KILLS:
            break
    assert verify(out).problems == ()
    assert finished_by_itself > 3


def test_writers_share_a_store(nursery: Nursery, calm: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    assert nursery.run(out, None, None, None) == [0, 0, 0]
    assert contents(out) == contents(calm)
    store = TeacherStore.open(out)
    assert store.part_count >= 4
    assert np.isfinite(store.targets(store.utterance_ids).log_probs.numpy()).all()


def test_a_killed_writers_parts_are_taken_over(
    nursery: Nursery, calm: Path, tmp_path: Path
) -> None:
    chance = random.Random(3)
    for attempt in range(5):
        out = tmp_path / f"store-{attempt}"
        assert nursery.run(out, chance.uniform(0, 0.15), None, chance.uniform(0, 0.1))[1] == 0
        assert contents(out) == contents(calm)
