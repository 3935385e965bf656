"""Jobs on a real Slurm: shared work, preemption, requeues, exact continuation, failures."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from interkd.pipeline.cache.verify import verify
from interkd.pipeline.cache_settings import CacheTeacherConfig
from interkd.pipeline.cache_teacher import cache_teacher

pytestmark = pytest.mark.xdist_group("slurm")  # one Slurm for all of them

Capture = pytest.CaptureFixture[str]


def slurm(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def write_sweep(desk: Any, **changes: Any) -> None:
    """Writes `sweep.yaml`: two runs that share a node, of which one has no teacher."""
    desk.write_student("base", **changes)
    runs = [{"name": "kd"}, {"name": "ctc", "set": {"objective": {"recipe": "ctc"}}}]
    score = {"dev": str(desk.corpus.dev)}
    sweep = {"base": "base.yaml", "out": "sweep", "score": score, "jobs": 2, "runs": runs}
    (desk.folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))


@pytest.fixture
def calm(desk: Any) -> Path:
    """The store of a single process that nothing disturbed."""
    out: Path = desk.folder / "calm.zarr"
    config = CacheTeacherConfig(
        teacher="python:loudness:make",
        manifest=desk.corpus.train,
        out=out,
        device="cpu",
        part_minutes=0.03,
    )
    assert cache_teacher(config).parts >= 16
    return out


def test_an_array_fills_the_store_of_a_single_process(
    desk: Any, calm: Path, capsys: Capture
) -> None:
    options = [*desk.cache_options("array's.zarr"), "--tasks", "4"]
    code = desk.interkd("slurm", "cache-teacher", *options, "--wait", "--poll", "0.5")
    said = capsys.readouterr()
    assert code == 0, said
    store = desk.folder / "array's.zarr"
    assert desk.contents(store) == desk.contents(calm)
    assert verify(store).problems == ()
    assert len(list(desk.folder.glob("slurm/logs/cache-teacher-*.log"))) == 4
    assert sum((desk.folder / f"at-work-{task}").exists() for task in range(4)) > 1
    assert "every digest matches" in desk.log("index")
    assert "cache-teacher-array-s.zarr" in said.out
    assert "4 completed" in said.out


def test_stopped_and_killed_tasks_go_on(desk: Any, calm: Path, capsys: Capture) -> None:
    """One task is warned and requeues itself alone, one is killed mid-part by a requeue."""
    (desk.folder / "gate").touch()
    options = [*desk.cache_options("store.zarr"), "--tasks", "3"]
    array, index = desk.submit("cache-teacher", *options, capsys=capsys)
    for task in range(3):
        desk.wait_until((desk.folder / f"at-work-{task}").exists)
    assert len(desk.writers("store.zarr")) == 3
    # The last task of an array has the array's own job id: its requeue must not be everybody's.
    slurm("scancel", "--signal=USR1", "--batch", f"{array}_2")
    desk.wait_until(lambda: desk.state(f"{array}_2").restarts == 1)
    assert len(desk.writers("store.zarr")) == 2  # its parts are free again
    slurm("scontrol", "requeue", f"{array}_0")
    desk.wait_until(lambda: desk.state(f"{array}_0").restarts == 1)
    assert desk.state(f"{array}_1").restarts == 0
    (desk.folder / "gate").unlink()
    desk.expect("COMPLETED", *(f"{array}_{task}" for task in range(3)), index)
    assert [desk.state(f"{array}_{task}").restarts for task in range(3)] == [1, 0, 1]
    assert "stopped with exit code 3: requeued" in desk.log("cache-teacher-store.zarr")
    assert desk.contents(desk.folder / "store.zarr") == desk.contents(calm)


def test_a_cancelled_task_stays_cancelled_and_is_reported(
    desk: Any, calm: Path, capsys: Capture
) -> None:
    (desk.folder / "gate").touch()
    options = [*desk.cache_options("store.zarr"), "--tasks", "1"]
    array, index = desk.submit("cache-teacher", *options, capsys=capsys)
    desk.wait_until((desk.folder / "at-work-0").exists)
    slurm("scancel", f"{array}_0")
    desk.expect("CANCELLED", f"{array}_0", index)
    assert desk.state(index).reason == "DependencyNeverSatisfied"
    assert not desk.writers("store.zarr")
    (desk.folder / "gate").unlink()
    options[-1] = "3"
    code = desk.interkd("slurm", "cache-teacher", *options, "--wait", "--poll", "0.5")
    assert code == 0, capsys.readouterr()
    assert desk.contents(desk.folder / "store.zarr") == desk.contents(calm)


def weights(run: Path) -> bytes:
    last = json.loads((run / "last.json").read_text())["checkpoint"]
    content: bytes = (run / last / "model.safetensors").read_bytes()
    return content


def steps(run: Path) -> list[Any]:
    rows = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]


def test_training_goes_on_exactly(desk: Any, calm: Path, capsys: Capture) -> None:
    """Warned by Slurm's signal, then killed with its node: the weights of an undisturbed run."""
    config = desk.write_student("student", epochs=3, dev_every=1, checkpoint_minutes=0.02)
    common = ["train-student", "--config", config, "--store", str(calm)]
    (calm_run,) = desk.submit(*common, "--out", "runs/calm", capsys=capsys)
    (job,) = desk.submit(*common, "--out", "runs/disturbed", capsys=capsys)
    (again,) = desk.submit(*common, "--out", "runs/disturbed", capsys=capsys)  # waits: singleton
    run = desk.folder / "runs" / "disturbed"
    log = "train-student-disturbed"

    desk.wait_until((run / "checkpoints" / "epoch-0001").exists)
    slurm("scancel", "--signal=USR1", "--batch", job)
    desk.wait_until(lambda: "stopped with exit code 3: requeued" in desk.log(log))
    stopped_at = json.loads((run / "last.json").read_text())
    assert "step-" in stopped_at["checkpoint"]  # in the middle of an epoch
    desk.wait_until(lambda: desk.state(job).restarts == 1)
    assert desk.state(again).state == "PENDING"

    desk.wait_until(lambda: json.loads((run / "last.json").read_text()) != stopped_at)
    node = subprocess.run(
        ["squeue", "-h", "-j", job, "-o", "%N"], check=True, capture_output=True, text=True
    ).stdout.strip()
    slurm("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    desk.wait_until(lambda: desk.state(job).restarts == 2)
    back = ["scontrol", "update", f"nodename={node}", "state=resume"]
    subprocess.run(back, check=False, capture_output=True)  # it may have come back by itself
    assert desk.state(again).state == "PENDING"

    desk.expect("COMPLETED", calm_run, job, again)
    calm_folder = desk.folder / "runs" / "calm"
    assert weights(run) == weights(calm_folder)
    final = dict(steps(run))
    assert final == dict(steps(calm_folder))
    assert len(final) > 40


def test_the_ranks_of_several_gpus_stop_together(desk: Any, calm: Path, capsys: Capture) -> None:
    config = desk.write_student("student", epochs=2)
    profile = desk.profile(stages={"train-student": {"gpus": 2, "cpus": 1}})
    options = ["train-student", "--config", config, "--store", str(calm), "--profile", profile]
    (job,) = desk.submit(*options, capsys=capsys)
    run = desk.folder / "runs" / "student"
    desk.wait_until((run / "checkpoints" / "epoch-0001").exists, seconds=120)
    slurm("scancel", "--signal=USR1", "--batch", job)
    desk.wait_until(lambda: "stopped with exit code 3: requeued" in desk.log("train-student"))
    assert "step-" in (run / "last.json").read_text()
    desk.expect("COMPLETED", job)
    assert "batches_a_step: 2" in (run / "config.yaml").read_text()
    assert "epoch-0002" in (run / "last.json").read_text()


def test_a_failed_stage_is_named_and_what_waits_for_it_is_called_off(
    desk: Any, capsys: Capture
) -> None:
    student = desk.write_student("student", epochs=1)
    (desk.folder / "empty").mkdir()
    road = f"""
name: broken
cache: {{teacher: "interkd:empty", manifest: {desk.corpus.train}, out: store.zarr, device: cpu}}
students: [{{name: a, config: {student}}}]
score: {{dev: {desk.corpus.dev}}}
"""
    (desk.folder / "road.yaml").write_text(road)
    assert desk.interkd("slurm", "pipeline", "road.yaml", "--wait", "--poll", "0.5") == 1
    error = capsys.readouterr().err
    assert "failed: broken-cache" in error
    assert "exit code 2" in error
    assert "interkd: error:" in error  # the last line of its log
    for name in ("index", "train-a", "score-a"):
        assert f"failed: broken-{name}" in error
    assert error.count("never started, since what it waits for failed") == 3


def test_what_slurm_would_refuse_or_never_start(desk: Any, capsys: Capture) -> None:
    score = ["score", "--checkpoint", "a", "--manifest", str(desk.corpus.dev), "--out", "b"]
    profile = desk.folder / "other.yaml"
    for text, message in (
        ("{gpus: 0, partition: shrt}", "no partition 'shrt' for score; expected debug | short"),
        ("{gpus: 0, partition: shrt}", "did you mean 'short'?"),
        ('{gpus: 0, partition: short, time: "01:00:00"}', "expected at most 10:00"),
        ("{gpus: 0, sbatch: [--no-such-option]}", "sbatch refuses"),
    ):
        profile.write_text(text)
        assert desk.interkd("slurm", *score, "--profile", str(profile), "--submit") == 2
        assert message in capsys.readouterr().err
    queue = subprocess.run(["squeue", "-h"], check=True, capture_output=True, text=True).stdout
    assert queue == ""


def test_a_whole_road(desk: Any, calm: Path, capsys: Capture) -> None:
    """To its end by `--wait`, with a sweep; the same road again finds everything done."""
    student = desk.write_student("student", epochs=1)
    write_sweep(desk, epochs=1, store="store.zarr")
    road = f"""
name: whole
cache: {{teacher: "python:loudness:make", manifest: {desk.corpus.train}, out: store.zarr,
  device: cpu, part_minutes: 0.03}}
tasks: 2
students: [{{name: a, config: {student}, out: runs/a}}]
score: {{dev: {desk.corpus.dev}}}
sweeps: [sweep.yaml]
"""
    (desk.folder / "road.yaml").write_text(road)
    follow = ["slurm", "pipeline", "road.yaml", "--wait", "--poll", "0.5"]
    assert desk.interkd(*follow) == 0, (capsys.readouterr(), desk.log("*"))
    assert desk.contents(desk.folder / "store.zarr") == desk.contents(calm)
    assert (desk.folder / "scores" / "a" / "dev" / "report.html").is_file()
    results = [desk.folder / "sweep" / "results" / f"{name}.json" for name in ("kd", "ctc")]
    assert all(result.is_file() for result in results)
    assert "requeued" not in desk.log("*")
    written = [result.stat().st_mtime_ns for result in results]
    assert desk.interkd(*follow) == 0, (capsys.readouterr(), desk.log("*"))
    assert [result.stat().st_mtime_ns for result in results] == written


def test_a_sweep_that_is_warned_goes_on(desk: Any, calm: Path, capsys: Capture) -> None:
    write_sweep(desk, epochs=6, store=str(calm))  # neither is done before the other has begun
    (job,) = desk.submit("sweep", "sweep.yaml", capsys=capsys)
    runs = [desk.folder / "sweep" / name for name in ("kd", "ctc")]
    for run in runs:
        desk.wait_until((run / "checkpoints" / "epoch-0001").exists)
    slurm("scancel", "--signal=USR1", "--batch", job)
    desk.wait_until(lambda: "stopped with exit code 3: requeued" in desk.log("sweep"))
    assert all(f"{run.name}: stopped" in desk.log("sweep") for run in runs)
    desk.expect("COMPLETED", job)
    assert desk.state(job).restarts == 1
    assert desk.log("sweep").count("started on cpu") == 4
    for run in runs:
        assert "epoch-0006" in (run / "last.json").read_text()


def test_a_warned_scoring_job_goes_on(desk: Any, capsys: Capture) -> None:
    """It is not requeued, since it would begin anew in each life."""
    waits = desk.folder / "interkd-waits"
    waits.write_text("#!/bin/bash\ntouch scoring; while [[ -e gate ]]; do sleep 0.1; done\n")
    waits.chmod(0o755)
    profile = desk.profile(interkd=str(waits))
    (desk.folder / "gate").touch()
    score = ["score", "--checkpoint", "a", "--manifest", str(desk.corpus.dev), "--out", "b"]
    (job,) = desk.submit(*score, "--profile", profile, capsys=capsys)
    desk.wait_until((desk.folder / "scoring").exists)
    slurm("scancel", "--signal=USR1", "--batch", job)
    desk.wait_until(lambda: "raise time (stages: score)" in desk.log("score"))
    (desk.folder / "gate").unlink()
    desk.expect("COMPLETED", job)
    assert desk.state(job).restarts == 0
