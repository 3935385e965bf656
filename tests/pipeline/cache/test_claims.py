"""Claims between processes that race, die, fork and live on other hosts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from interkd.pipeline.cache.claims import Claim, Owner, claim, is_claim, owner_of

NAME = "part-00007"
FILE = f".{NAME}.claim"

RACER = """
import sys
from pathlib import Path
from interkd.pipeline.cache.claims import Claim, claim
folder = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
held = [taken for n in range(200) if isinstance(taken := claim(folder, f"part-{n:05d}"), Claim)]
print(" ".join(c.path.name for c in held), flush=True)
sys.stdin.readline()
"""


def racer(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RACER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def say(process: subprocess.Popen[str], line: str = "go") -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().split()


def held(folder: Path, **options: float) -> Claim:
    taken = claim(folder, NAME, **options)
    assert isinstance(taken, Claim)
    return taken


def write(folder: Path, **changes: object) -> None:
    """A claim written by hand: this process's own, with some fields changed."""
    with held(folder) as mine:
        fields = json.loads(mine.path.read_bytes())
    (folder / FILE).write_text(json.dumps(fields | {"token": "another"} | changes) + "\n")


def grow_old(path: Path, seconds: float) -> None:
    moment = path.stat().st_mtime - seconds
    os.utime(path, (moment, moment))


def wait_for(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_processes_race_and_the_killed_ones_claims_pass_on(tmp_path: Path) -> None:
    processes = [racer(tmp_path) for _ in range(2)]
    try:
        for process in processes:
            assert hear(process) == ["ready"]
        for process in processes:
            say(process)
        won = [hear(process) for process in processes]
        assert sorted(won[0] + won[1]) == [f".part-{n:05d}.claim" for n in range(200)]
        name = (won[0] or won[1])[0]
        winner = processes[0] if won[0] else processes[1]
        part = name[1:].removesuffix(".claim")
        owner = claim(tmp_path, part, stale_seconds=0.0)
        assert isinstance(owner, Owner)
        assert owner.pid == winner.pid
        winner.send_signal(signal.SIGKILL)
        winner.wait()
        taken = claim(tmp_path, part)
        assert isinstance(taken, Claim)
        taken.release()
        assert not (tmp_path / name).exists()
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_context_holds_and_releases(tmp_path: Path) -> None:
    with held(tmp_path):
        owner = claim(tmp_path, NAME)
        assert isinstance(owner, Owner)
        assert str(owner).startswith(f"process {os.getpid()} on {owner.host} (begun 2")
        assert owner_of(tmp_path, NAME) is not None
        assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert owner_of(tmp_path, NAME) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", [{"process_start": "1"}, {"boot": "earlier"}, {"pid": 2**40}])
def test_this_hosts_dead_are_stale_at_once(tmp_path: Path, change: dict[str, object]) -> None:
    write(tmp_path, **change)
    held(tmp_path).release()


@pytest.mark.parametrize("skew", [-1e6, 0.0, 1e6])
def test_other_hosts_are_judged_by_the_file_systems_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skew: float
) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + skew)
    write(tmp_path, host="elsewhere", pid=1)
    grow_old(tmp_path / FILE, 800)
    owner = claim(tmp_path, NAME)
    assert isinstance(owner, Owner)
    assert owner.host == "elsewhere"
    assert owner.age_seconds == pytest.approx(800, abs=5)
    grow_old(tmp_path / FILE, 200)
    held(tmp_path).release()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": "x"}', b"\xff\xfe"])
def test_garbage_is_stale_by_age_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    assert isinstance(claim(tmp_path, NAME), Owner)
    grow_old(tmp_path / FILE, 1000)
    held(tmp_path).release()


def test_one_contender_gets_a_stale_claim(tmp_path: Path) -> None:
    for _ in range(100):
        write(tmp_path, process_start="1")
        barrier = threading.Barrier(2)
        results: list[Claim | Owner] = []

        def contend(barrier: threading.Barrier, results: list[Claim | Owner]) -> None:
            barrier.wait()
            results.append(claim(tmp_path, NAME))

        threads = [threading.Thread(target=contend, args=(barrier, results)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        winners = [result for result in results if isinstance(result, Claim)]
        assert len(results) == 2
        assert len(winners) == 1
        winners[0].release()
        assert list(tmp_path.iterdir()) == []


def test_heartbeat_refreshes_then_notices_the_loss(tmp_path: Path) -> None:
    mine = held(tmp_path, heartbeat_seconds=0.02)
    grow_old(mine.path, 1000)
    old = mine.path.stat().st_mtime
    wait_for(lambda: mine.path.stat().st_mtime > old + 900)
    assert not mine.lost
    mine.path.unlink()
    wait_for(lambda: mine.lost)
    mine.release()
    wait_for(lambda: all(thread.name != "claims" for thread in threading.enumerate()))


def test_release_leaves_anothers_claim(tmp_path: Path) -> None:
    mine = held(tmp_path, heartbeat_seconds=0.02)
    mine.path.write_bytes(b"another's\n")
    wait_for(lambda: mine.lost)
    mine.release()
    assert mine.path.read_bytes() == b"another's\n"


def test_forked_child_leaves_its_parents_claim(tmp_path: Path) -> None:
    with held(tmp_path) as mine:
        child = os.fork()
        if child == 0:
            mine.release()
            os._exit(0 if threading.active_count() == 1 and mine.path.exists() else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert mine.path.exists()
    assert not mine.path.exists()


def test_names() -> None:
    assert is_claim(FILE)
    assert not is_claim("part-00007.zip")
    assert not is_claim(f".{NAME}.zip.host.1.0-0.tmp")


def test_other_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        claim(tmp_path / "missing", NAME)


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File systems that have none: O_EXCL and rename remain."""

    def refuse(self: Path, target: Path) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    mine = held(tmp_path)
    assert isinstance(claim(tmp_path, NAME), Owner)
    mine.release()
    write(tmp_path, process_start="1")
    held(tmp_path).release()
    assert list(tmp_path.iterdir()) == []
