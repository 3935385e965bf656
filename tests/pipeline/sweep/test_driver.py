"""Whole sweeps: stopped, killed, resumed, skipped, failing, and two at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from interkd.kernels.errors import ConfigError
from interkd.pipeline.locks import hold
from interkd.pipeline.sweep import processes
from interkd.pipeline.sweep.config import SweepConfig, read_sweep
from interkd.pipeline.sweep.driver import run_sweep
from interkd.pipeline.sweep.report import report_sweep
from interkd.pipeline.sweep.results import read_result
from interkd.pipeline.sweep.runs import expand
from interkd.pipeline.sweep.states import states
from interkd.pipeline.sweep.worker import (
    EXIT_BUSY,
    EXIT_DONE,
    EXIT_ERROR,
    Job,
    read_job,
    write_job,
)
from interkd.pipeline.sweep.worker import main as work
from tests.reporters import Heard
from tests.students import steps_of

WriteSweep = Callable[..., Path]
WriteResult = Callable[..., None]
EPOCHS, STEPS = 30, 5  # steps an epoch


def rows(sweep: SweepConfig, name: str) -> int:
    log = sweep.out / name / "log.jsonl"
    return log.read_text().count("\n") if log.exists() else 0


def wait_until(condition: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)


def worker_of(sweep: SweepConfig, name: str) -> int:
    """Process id of the worker of a run."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_text()
        except OSError:
            continue
        if "interkd.pipeline.sweep.worker" in command and f"{sweep.out}/{name}.job.json" in command:
            return int(folder.name)
    raise AssertionError(f"no worker of {name}")


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes lines of shell the worker of every run."""

    def write(lines: str) -> None:
        script = tmp_path / "worker"
        script.write_text(f"#!/bin/sh\n{lines}\n")
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))

    return write


def standing(sweep: SweepConfig) -> list[str]:
    return [row.state for row in states(sweep)]


def test_stopped_and_killed_runs_go_on_and_finished_ones_are_left_alone(
    write_sweep: WriteSweep,
) -> None:
    long = {"objective.recipe": "ctc", "epochs": EPOCHS, "dev_every": 15}
    path = write_sweep(
        {"checkpoint_minutes": 0.001},
        runs=[{"name": "ctc", "set": long}, {"name": "inter-ctc"}],  # the second is never stopped
    )
    sweep = read_sweep(path)
    assert standing(sweep) == ["waiting"] * 4
    process = subprocess.Popen(
        [sys.executable, "-m", "interkd", "sweep", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    wait_until(lambda: rows(sweep, "ctc-seed1") and rows(sweep, "ctc-seed2"), process)
    assert standing(sweep) == ["running", "running", "waiting", "waiting"]
    assert worker_of(sweep, "ctc-seed1")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 3
    assert b"unfinished: inter-ctc-seed1, inter-ctc-seed2, ctc-seed" in errors
    assert standing(sweep) == ["started", "started", "waiting", "waiting"]
    steps = [
        json.loads((sweep.out / f"ctc-seed{seed}" / "last.json").read_text())["step"]
        for seed in (1, 2)
    ]
    assert 0 < min(steps) <= max(steps) < STEPS * EPOCHS

    process = subprocess.Popen(
        [sys.executable, "-m", "interkd", "sweep", str(path), "--only", "ctc", "--jobs", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    wait_until(lambda: rows(sweep, "ctc-seed1") > steps[0] + 1, process)
    subprocess.run(["kill", "-KILL", str(worker_of(sweep, "ctc-seed1"))], check=True)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1  # the other one was trained all the same
    assert b"failed: ctc-seed1, exit code -9, log" in errors
    assert standing(sweep) == ["failed", "done", "waiting", "waiting"]

    outcome = run_sweep(sweep)
    assert outcome.exit_code == 0
    assert {run.name for run in outcome.done} == {run.name for run in expand(sweep)}
    assert standing(sweep) == ["done"] * 4
    for run in expand(sweep):
        result = read_result(run.result)
        epochs = run.config.epochs
        last = STEPS * epochs
        assert (result.trained.steps, result.trained.epochs) == (last, epochs)
        assert [row["step"] for row in steps_of(run.config.out)] == list(range(1, last + 1))
        assert [row["epochs_done"] for row in result.curve] == ([15, 30] if epochs > 2 else [1, 2])
        best = json.loads((run.config.out / "best.json").read_text())
        assert best["checkpoint"] == f"checkpoints/{result.trained.best}"
        final = result.scores["dev"].heads[-1]
        assert final.words.rate == pytest.approx(best["dev_wer"]["final"])
        assert len(result.scores["test"].heads[-1].words.errors) == 36
        heads = 1 if run.entry == "ctc" else 2
        assert len(result.scores["test"].heads) == heads
    assert [row.seeds for row in report_sweep(sweep, samples=100).rows] == [(1, 2), (1, 2)]

    times = [run.result.stat().st_mtime_ns for run in expand(sweep)]
    heard = Heard()
    assert run_sweep(sweep, reporter=heard).exit_code == 0
    assert heard.lines == ["4 of 4 runs done already"]
    assert [run.result.stat().st_mtime_ns for run in expand(sweep)] == times


def test_a_failing_run_and_one_held_elsewhere_do_not_stop_the_others(
    write_sweep: WriteSweep,
) -> None:
    entries = [
        {"name": "bad", "set": {"student.features.sample_rate": 8000}},
        {"name": "held"},
        {"name": "good", "set": {"epochs": 1}},
    ]
    sweep = read_sweep(write_sweep(runs=entries, grid=None, baselines=None))
    held = expand(sweep)[1]
    sweep.out.mkdir()
    heard = Heard()
    with hold(held.lock) as mine:
        assert mine
        outcome = run_sweep(sweep, reporter=heard, devices=["cpu"])
    assert outcome.exit_code == 1
    (failure,) = outcome.failed
    assert (failure.run.name, failure.code) == ("bad", EXIT_ERROR)
    dev = failure.run.config.data.dev_manifest
    assert f"error: sample rate of {dev}; expected 8000, got 16000" in failure.reason
    assert [run.name for run in outcome.elsewhere] == ["held"]
    assert [run.name for run in outcome.done] == ["good"]
    assert standing(sweep) == ["failed", "waiting", "done"]
    assert any(line.startswith("held: another process has it") for line in heard.lines)
    assert report_sweep(sweep, samples=100).missing == ("bad", "held")
    # A result that is lost is made again from the checkpoint, without training.
    good = expand(sweep)[2]
    first = read_result(good.result)
    good.result.unlink()
    assert run_sweep(sweep, only=["good"]).exit_code == 0
    assert read_result(good.result) == first


def test_time_that_is_up_starts_nothing_new(write_sweep: WriteSweep) -> None:
    sweep = read_sweep(write_sweep())
    heard = Heard()
    outcome = run_sweep(sweep, minutes=1e-9, reporter=heard)
    assert outcome.exit_code == 3
    assert len(outcome.unfinished) == 4
    assert standing(sweep) == ["waiting"] * 4


@pytest.mark.parametrize("how", ["at once", "deaf", "by another signal"])
def test_signals_stop_the_runs_and_a_second_one_kills_them(
    write_sweep: WriteSweep, stand_in: Callable[[str], None], how: str
) -> None:
    deaf = how == "deaf"
    trap = {"deaf": "trap '' USR2", "by another signal": "trap 'kill -TERM $$' USR2"}.get(how, "")
    stand_in(f"{trap}\necho ready\n{'exec ' if how == 'at once' else ''}sleep 60")
    sweep = read_sweep(write_sweep(jobs=3))
    logs = [run.log for run in expand(sweep)[:3]]

    def send() -> None:
        while not all(log.exists() and "ready" in log.read_text() for log in logs):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
        if deaf:
            os.kill(os.getpid(), signal.SIGINT)

    former = signal.getsignal(signal.SIGINT)
    sender = threading.Thread(target=send)
    sender.start()
    heard = Heard()
    outcome = run_sweep(sweep, reporter=heard)
    sender.join()
    assert signal.getsignal(signal.SIGINT) is former
    assert (outcome.exit_code, outcome.failed) == (3, [])
    assert {run.name for run in outcome.unfinished} == {run.name for run in expand(sweep)}
    assert "signal: 3 runs write a checkpoint and stop" in heard.lines


def test_only_a_result_makes_a_run_done(
    write_sweep: WriteSweep, stand_in: Callable[[str], None]
) -> None:
    stand_in("echo all is well")
    sweep = read_sweep(write_sweep())
    outcome = run_sweep(sweep, only=["ctc-seed1"])
    (failure,) = outcome.failed
    assert (outcome.exit_code, failure.code, failure.reason) == (1, 0, "all is well")
    assert standing(sweep) == ["failed", "waiting", "waiting", "waiting"]


def test_devices_are_given_in_turn(
    write_sweep: WriteSweep, stand_in: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in("exec sleep 0.5")
    monkeypatch.setattr(processes, "resolve_device", lambda name: name)
    sweep = read_sweep(write_sweep())
    run_sweep(sweep, jobs=4, devices=["cuda:0", "cuda:1"])
    devices = [read_job(run.job).run.config.device for run in expand(sweep)]
    assert devices == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    run_sweep(sweep, devices=["cuda:0", "cuda:1", "cuda:2", "cuda:3"])  # a run each
    devices = [read_job(run.job).run.config.device for run in expand(sweep)]
    assert devices == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]


def test_mistakes_show_before_anything_starts(
    write_sweep: WriteSweep, write_made_up: WriteResult, tmp_path: Path
) -> None:
    sweep = read_sweep(write_sweep())
    run = expand(sweep)[-1]
    write_made_up(run, rate=0.2)
    with pytest.raises(ConfigError, match="has a result of another 'dev' manifest"):
        run_sweep(sweep)
    changed = read_sweep(write_sweep({"epochs": 5}))
    with pytest.raises(ConfigError, match="'inter-ctc-seed2' has a result with other settings"):
        run_sweep(changed)
    run.result.unlink()
    moved = [{"name": "moved", "set": {"data.dev_manifest": "absent"}}]
    with pytest.raises(
        ConfigError, match=r"'moved-seed1': data.dev_manifest; .* got no file at absent"
    ):
        run_sweep(read_sweep(write_sweep(runs=moved, baselines=[])))
    distilled = {"objective.recipe": "inter-kd"}
    with pytest.raises(ConfigError, match=r"'kd-seed1': recipe 'inter-kd' learns from a teacher"):
        run_sweep(read_sweep(write_sweep(runs=[{"name": "kd", "set": distilled}], baselines=[])))
    distilled["store"] = "nope.zarr"
    with pytest.raises(
        ConfigError, match=r"'kd-seed1': store; .* got nothing at nope.zarr; make it"
    ):
        run_sweep(read_sweep(write_sweep(runs=[{"name": "kd", "set": distilled}], baselines=[])))
    headless = [{"name": "deep", "set": {"student.head_layers": [99]}}]
    with pytest.raises(
        ConfigError,
        match=r"run 'deep-seed1': student.head_layers; expected layers from 1 to 1; .* got \[99\]",
    ):
        run_sweep(read_sweep(write_sweep(runs=headless, baselines=[])))
    same = {"objective.recipe": "cr-ctc", "student.conformer.dropout": 0}
    with pytest.raises(ConfigError, match=r"run 'same-seed1': two views .* got neither"):
        run_sweep(read_sweep(write_sweep(runs=[{"name": "same", "set": same}], baselines=[])))
    with pytest.raises(ConfigError, match=r"teacher.test: there is no .*nope.trn"):
        run_sweep(read_sweep(write_sweep(teacher={"test": "nope.trn"})))
    (tmp_path / "short.trn").write_text("A B (someone-else)\n")
    with pytest.raises(ConfigError, match=r"teacher.test: .*short.trn lacks utterances"):
        run_sweep(read_sweep(write_sweep(teacher={"test": str(tmp_path / "short.trn")})))
    with pytest.raises(ConfigError, match="ms_a_step has no time of recipe 'inter-ctc'"):
        run_sweep(read_sweep(write_sweep(ms_a_step={"ctc": 9.0})))
    with pytest.raises(ConfigError, match="jobs; expected at least 1"):
        run_sweep(sweep, jobs=0)
    with pytest.raises(ConfigError, match="no run fits 'x'"):
        run_sweep(sweep, only=["x"])
    assert list(sweep.out.iterdir()) == []


def test_worker_leaves_a_held_run_alone(
    write_sweep: WriteSweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = read_sweep(write_sweep())
    run = expand(sweep)[0]
    sweep.out.mkdir()
    job = Job(run=run, score={scored.split: scored.manifest for scored in sweep.score})
    write_job(job)
    assert read_job(run.job) == job
    former = signal.getsignal(signal.SIGUSR2)
    try:
        with hold(run.lock):
            assert work([str(run.job)]) == EXIT_BUSY
        assert "another process holds" in capsys.readouterr().out
        (tmp_path / "broken.json").write_text("{}")
        assert work([str(tmp_path / "broken.json")]) == EXIT_ERROR
        assert "is not a sweep's job" in capsys.readouterr().out
    finally:
        signal.signal(signal.SIGUSR2, former)
    assert not run.config.out.exists()
    assert EXIT_DONE == 0
