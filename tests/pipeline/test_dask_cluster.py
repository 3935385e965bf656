"""Work on Dask workers: results as in one process, workers that are killed, errors, ctrl-C."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import interkd.pipeline.cache_teacher as stage_one
from interkd.kernels.errors import ClusterError, ConfigError, CorruptStoreError, StoreError
from interkd.pipeline.cache.compact import compact
from interkd.pipeline.cache.stats import stats
from interkd.pipeline.cache.verify import verify
from interkd.pipeline.cache_settings import CacheTeacherConfig
from interkd.pipeline.cache_teacher import CacheTeacherSummary, cache_teacher
from interkd.pipeline.cluster import dask_cluster
from interkd.pipeline.cluster.tasks import ClusterSettings, open_workers
from interkd.pipeline.corpus.prepare import BadRowsError, PrepareConfig, prepare
from interkd.pipeline.progress import Reporter
from tests.pipeline import loudness

psutil = pytest.importorskip("psutil")
LOCAL = ClusterSettings(kind="local", workers=2)
ONE = ClusterSettings(kind="local", workers=1)  # where a second shows nothing
PART_MINUTES = 0.05  # about 18 parts of the tone corpus

TASKS = """
import os
import signal
import time
from pathlib import Path

from interkd.kernels.errors import CorpusError


def square(number):
    return number * number


def refuse_three(number):
    if number == 3:
        raise CorpusError("row 3", expected="another", got=3, remedy="mend it")
    return number


def fail_at_three(number):
    if number == 3:
        raise ZeroDivisionError("three")
    return number


def die(number):
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(marker):
    path = Path(marker)
    if not path.exists():
        path.touch()
        time.sleep(0.3)  # another task is under way in the other worker
        os.kill(os.getpid(), signal.SIGKILL)
    return path.name
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Holds the module of tasks, which workers find on the path that they get from here."""
    path = tmp_path_factory.mktemp("modules")
    (path / "dask_test_tasks.py").write_text(TASKS)
    loudness.copy_to(path)
    sys.path.insert(0, str(path))
    yield path
    sys.path.remove(str(path))


@pytest.fixture(scope="module")
def tasks(folder: Path) -> ModuleType:
    import importlib

    return importlib.import_module("dask_test_tasks")


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """Every worker that a test started is gone after it."""
    before = set(psutil.Process().children(recursive=True))
    yield
    assert not [p for p in workers_of(psutil.Process()) if p not in before]


def workers_of(process: Any) -> list[Any]:
    """Dask's workers among a process's children."""
    found = []
    for child in process.children(recursive=True):
        try:
            if "spawn_main" in " ".join(child.cmdline()) and child.status() != "zombie":
                found.append(child)
        except psutil.NoSuchProcess:
            pass
    return found


class WorkerKiller(Reporter):
    """Kills a worker with SIGKILL after some of the work; heard both as reporter and progress."""

    def __init__(self, after: float) -> None:
        self.after, self.heard = after, 0.0
        self.killed: list[int] = []

    def advance(self, amount: float, figures: str = "") -> None:
        self.heard += amount
        self.look()

    def __call__(self, done: int, total: int) -> None:
        self.heard = done
        self.look()

    def look(self) -> None:
        if self.heard >= self.after and not self.killed:
            victim = workers_of(psutil.Process())[0]
            self.killed.append(victim.pid)
            victim.kill()


def caching(corpus: Any, out: Path, **changes: Any) -> CacheTeacherConfig:
    settings: dict[str, Any] = {
        "teacher": loudness.SPECIFICATION,
        "manifest": corpus.train,
        "out": out,
        "device": "cpu",
        "part_minutes": PART_MINUTES,
        "batch_seconds": 6,
        "decode_threads": 1,
    }
    return CacheTeacherConfig(**{**settings, **changes})


def content(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}


def facts(summary: CacheTeacherSummary) -> list[Any]:
    return [
        summary.parts,
        summary.parts_written,
        summary.hours,
        summary.frames,
        summary.teacher_wer,
    ]


@pytest.fixture(scope="module")
def calm(
    tone_corpus: Any, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, CacheTeacherSummary]:
    """A store of one process, and its summary."""
    out = tmp_path_factory.mktemp("stores") / "calm"
    return out, cache_teacher(caching(tone_corpus, out))


def test_results_stream_with_their_positions(tasks: ModuleType) -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(50):
            taken.append(number)
            yield number

    with open_workers(LOCAL, tasks=2) as workers:
        found = {}
        for position, result in workers.run(tasks.square, items()):
            found[position] = result
            assert len(taken) <= len(found) + 2 * LOCAL.workers
        assert found == {number: number * number for number in range(50)}
        again = dict(workers.run(tasks.square, [7]))  # the same workers, another run
        assert again == {0: 49}
        assert list(workers.run(tasks.square, [])) == []


def test_threads_do_the_same(tasks: ModuleType) -> None:
    with open_workers(ClusterSettings(workers=3), tasks=50) as workers:
        assert dict(workers.run(tasks.square, range(50))) == {n: n * n for n in range(50)}
        with pytest.raises(ZeroDivisionError):
            list(workers.run(tasks.fail_at_three, range(50)))


def test_a_killed_worker_loses_nothing(tasks: ModuleType, tmp_path: Path) -> None:
    markers = [str(tmp_path / f"{number}") for number in range(4)]
    with open_workers(LOCAL, tasks=2) as workers:
        found = dict(workers.run(tasks.die_once, markers))
    assert found == {number: f"{number}" for number in range(4)}


def test_a_task_that_kills_every_worker_is_an_error(
    tasks: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_cluster, "DEATHS_BORNE", 1)
    with (
        pytest.raises(ClusterError, match=r"2 workers died over one task.*--workers"),
        open_workers(LOCAL, tasks=2) as workers,
    ):
        list(workers.run(tasks.die, [0]))


def test_an_error_is_raised_as_it_is(tasks: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    with open_workers(LOCAL, tasks=1) as workers:
        with pytest.raises(Exception, match="row 3; expected another, got 3; mend it") as caught:
            list(workers.run(tasks.refuse_three, range(1000)))
        assert type(caught.value).__name__ == "CorpusError"
        assert caught.value.remedy == "mend it"  # type: ignore[attr-defined]
        with pytest.raises(ZeroDivisionError, match="three"):
            list(workers.run(tasks.fail_at_three, range(1000)))
    assert time.monotonic() - started < 60
    captured = capfd.readouterr()
    assert "CorpusError" not in captured.out + captured.err  # the command line prints it, once


def test_errors_survive_pickling() -> None:
    error = StoreError("store", expected=1, got=2, remedy="make it anew")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.what, again.got) == (str(error), "store", 2)


def test_connections_need_the_clusters_certificate(tasks: ModuleType) -> None:
    from distributed import Client

    with open_workers(LOCAL, tasks=1) as workers:
        address = workers._client.scheduler.address  # type: ignore[attr-defined]
        assert address.startswith("tls://127.0.0.1:")
        page = workers._client.scheduler_info()["services"]["dashboard"]  # type: ignore[attr-defined]
        for name in ("health", "info/main/workers.html", "json/counts.json", "metrics"):
            with pytest.raises(OSError, match="404"):
                urllib.request.urlopen(f"http://127.0.0.1:{page}/{name}")
        with pytest.raises((OSError, TypeError)):
            Client(address.replace("tls", "tcp"), timeout=2, set_as_default=False)


def test_verify_and_stats(calm: tuple[Path, CacheTeacherSummary], tmp_path: Path) -> None:
    store, _ = calm
    seen: list[tuple[int, int]] = []
    here = verify(store)
    there = verify(store, cluster=LOCAL, progress=lambda done, all_: seen.append((done, all_)))
    assert here == there
    assert not here.problems
    assert seen == [(done, here.parts) for done in range(1, here.parts + 1)]
    assert stats(store).to_dict() == stats(store, cluster=LOCAL).to_dict()


def test_verify_names_the_same_problems_and_stats_the_same_error(
    calm: tuple[Path, CacheTeacherSummary], tmp_path: Path
) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(calm[0], broken)
    (broken / "part-00002.zip").unlink()
    for index in (4, 9):
        part = broken / f"part-{index:05d}.zip"
        data = bytearray(part.read_bytes())
        data[len(data) // 2] ^= 0xFF
        part.write_bytes(data)
    here, killer = verify(broken), WorkerKiller(after=3)
    assert len(here.problems) >= 3
    assert here == verify(broken, cluster=LOCAL, progress=killer)
    assert killer.killed
    shutil.copy(calm[0] / "part-00002.zip", broken)
    with pytest.raises(CorruptStoreError, match=r"part-0000[49]"):
        stats(broken, cluster=ONE)


def test_compact_while_a_worker_is_killed(
    calm: tuple[Path, CacheTeacherSummary], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"part_minutes": 0.12, "mass": 0.9}
    here = compact(calm[0], tmp_path / "here", **options)
    killer = WorkerKiller(after=2)
    there = compact(calm[0], tmp_path / "there", progress=killer, cluster=LOCAL, **options)
    assert killer.killed
    assert content(tmp_path / "here") == content(tmp_path / "there")
    assert (here.parts, here.copied, here.out_bytes) == (there.parts, there.copied, there.out_bytes)


def test_prepare_while_a_worker_is_killed(tone_corpus: Any, tmp_path: Path) -> None:
    source = tone_corpus.root / "audio" / "train" / "source.jsonl"
    config = PrepareConfig(sources=source, out=tmp_path / "out", tokens=tone_corpus.tokens)
    killer = WorkerKiller(after=1)
    here = prepare(config)
    first = content(config.out)
    settings = {**config.__dict__, "cluster": LOCAL}
    assert prepare(PrepareConfig(**settings), reporter=killer) == here
    assert killer.killed
    assert killer.heard == 36
    assert content(config.out) == first


def test_prepare_names_every_bad_row(tone_corpus: Any, tmp_path: Path) -> None:
    source = tone_corpus.root / "audio" / "dev" / "source.jsonl"
    bad = source.with_name("bad.jsonl")
    lines = source.read_text().splitlines()
    bad.write_text("\n".join(line.replace("-005.flac", "-none.flac") for line in lines))
    config = PrepareConfig(sources=bad, out=tmp_path, tokens=tone_corpus.tokens, cluster=ONE)
    with pytest.raises(BadRowsError, match=r"bad\.jsonl:6"):
        prepare(config)


def test_cache_teacher(
    calm: tuple[Path, CacheTeacherSummary], tone_corpus: Any, tmp_path: Path
) -> None:
    store, summary = calm
    config = caching(tone_corpus, tmp_path / "store", cluster=LOCAL)
    assert facts(cache_teacher(config)) == facts(summary)
    assert content(config.out) == content(store)
    again = cache_teacher(config)
    assert again.parts_written == 0
    (config.out / "part-00003.zip").unlink()
    assert cache_teacher(config).parts_written == 1
    assert content(config.out) == content(store)


def test_a_teacher_that_dies_loses_nothing(
    calm: tuple[Path, CacheTeacherSummary],
    tone_corpus: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    marker = tmp_path / "killed"
    monkeypatch.setenv("KILL_ONCE", str(marker))
    config = caching(tone_corpus, tmp_path / "store", cluster=LOCAL)
    assert facts(cache_teacher(config)) == facts(calm[1])
    assert marker.exists()
    assert content(config.out) == content(calm[0])


def test_parts_are_shared_with_a_writer_outside_the_cluster(
    calm: tuple[Path, CacheTeacherSummary], tone_corpus: Any, tmp_path: Path, folder: Path
) -> None:
    config = caching(tone_corpus, tmp_path / "store", cluster=LOCAL)
    other = subprocess.Popen(command(config, "none"), env=environment(folder, SLOW="2"))
    while not (config.out / "part-00000.zip").exists():
        assert other.poll() is None
        time.sleep(0.05)
    summary = cache_teacher(config)
    assert other.wait(timeout=60) == 0
    assert 0 < summary.parts_written < summary.parts
    assert content(config.out) == content(calm[0])


def command(config: CacheTeacherConfig, cluster: str) -> list[str]:
    return [
        *(sys.executable, "-c", "from interkd.cli.main import main; main()", "cache-teacher"),
        *("--teacher", config.teacher, "--manifest", str(config.manifest)),
        *("--out", str(config.out), "--device", "cpu"),
        *("--part-minutes", str(config.part_minutes), "--batch-seconds", "6"),
        *("--decode-threads", "1", "--cluster", cluster, "--workers", "2", "--worker-threads", "1"),
    ]


def environment(folder: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", **more}


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_a_stop_leaves_nothing_behind(
    calm: tuple[Path, CacheTeacherSummary],
    tone_corpus: Any,
    tmp_path: Path,
    folder: Path,
    kind: signal.Signals,
) -> None:
    config = caching(tone_corpus, tmp_path / "store")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    run = subprocess.Popen(
        command(config, "local"),
        env=environment(folder, SLOW="0.3", TMPDIR=str(scratch)),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (config.out / "part-00000.zip").exists():
        assert run.poll() is None
        time.sleep(0.05)
    workers = workers_of(psutil.Process(run.pid))
    assert len(workers) == 2
    if kind == signal.SIGINT:
        os.killpg(run.pid, kind)  # a terminal tells every process of the foreground
    else:
        run.kill()
    _, errors = run.communicate(timeout=60)
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
    if kind == signal.SIGINT:
        assert run.returncode == 130
        assert errors.strip().splitlines()[-1] == "interkd: stopped"
        assert "Traceback" not in errors
        assert list(scratch.iterdir()) == []
        assert not list(config.out.glob(".*.claim"))
    assert len(list(config.out.glob("part-*.zip"))) < calm[1].parts
    assert cache_teacher(config).parts_written > 0
    assert content(config.out) == content(calm[0])


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"cluster; expected auto \| local \| none \| slurm"):
        ClusterSettings(kind="lokal")
    with pytest.raises(ConfigError, match="profile; expected with the cluster slurm only"):
        ClusterSettings(kind="local", profile=Path("p.yaml"))
    with pytest.raises(ConfigError, match="workers"):
        ClusterSettings(workers=-1)


def test_auto_starts_processes_for_long_work_only() -> None:
    auto = ClusterSettings(kind="auto", workers=2)
    assert auto.decided(is_long=False).kind == "none"
    assert auto.decided(is_long=True) == LOCAL
    assert ClusterSettings(kind="auto", workers=1).decided(is_long=True).kind == "none"
    assert ClusterSettings(kind="none").decided(is_long=True).kind == "none"
    assert LOCAL.decided(is_long=False) == LOCAL


def test_no_more_workers_than_tasks() -> None:
    with open_workers(ClusterSettings(workers=8), tasks=3) as workers:
        assert workers.count == 3
    with open_workers(ClusterSettings(kind="slurm", workers=8), tasks=0) as workers:
        assert list(workers.run(abs, [])) == []  # and no job was submitted


def test_gpus_are_not_dasks(
    tone_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_one, "resolve_device", lambda _: torch.device("cuda:0"))
    config = caching(tone_corpus, tmp_path / "store", cluster=LOCAL)
    with pytest.raises(ConfigError, match=r"expected cpu, got cuda:0; .*a Slurm job array"):
        cache_teacher(config)
