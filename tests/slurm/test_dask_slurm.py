"""Dask workers as jobs of a real Slurm: equal results, jobs that are killed, jobs that fail."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from interkd.pipeline.cache.verify import verify
from interkd.pipeline.cache_settings import CacheTeacherConfig
from interkd.pipeline.cache_teacher import cache_teacher
from interkd.pipeline.cluster import dask_cluster

pytest.importorskip("dask_jobqueue")
Capture = pytest.CaptureFixture[str]

pytestmark = pytest.mark.xdist_group("slurm")  # one Slurm for all of them

WATCHED = """
import os
from pathlib import Path

import loudness


class Watched(loudness.Loudness):
    def log_probs(self, waveforms, sample_lengths):
        if "SLURM_JOB_ID" in os.environ:
            Path("at-work-" + os.environ["SLURM_JOB_ID"]).touch()
        return super().log_probs(waveforms, sample_lengths)


def make(*, device, precision):
    return Watched()
"""


@pytest.fixture
def calm(desk: Any) -> Path:
    """The store of a single process."""
    (desk.folder / "watched.py").write_text(WATCHED)
    desk.profile(cpus=1)
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


def on_slurm(*arguments: str) -> list[str]:
    return [*arguments, "--cluster", "slurm", "--workers", "2"]


def cache_options(desk: Any, out: str) -> list[str]:
    options = desk.cache_options(out)
    options[options.index("python:loudness:make")] = "python:watched:make"
    return on_slurm("cache-teacher", *options, "--worker-threads", "1")


def jobs() -> list[str]:
    command = ["squeue", "--noheader", "--format", "%i", "--states", "PENDING,RUNNING"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_every_command_does_what_it_does_in_one_process(
    desk: Any, calm: Path, capsys: Capture
) -> None:
    assert desk.interkd(*on_slurm("cache", "verify", "calm.zarr")) == 0
    assert "every digest matches" in capsys.readouterr().out
    compact = ["cache", "compact", "calm.zarr"]
    assert desk.interkd(*compact, "here.zarr", "--part-minutes", "0.2", "--cluster", "none") == 0
    assert desk.interkd(*on_slurm(*compact, "there.zarr", "--part-minutes", "0.2")) == 0
    assert desk.contents(desk.folder / "here.zarr") == desk.contents(desk.folder / "there.zarr")
    capsys.readouterr()
    assert desk.interkd("cache", "stats", "calm.zarr") == 0
    here = capsys.readouterr().out
    assert desk.interkd(*on_slurm("cache", "stats", "calm.zarr")) == 0
    assert capsys.readouterr().out == here
    source = str(desk.corpus.root / "audio" / "train" / "source.jsonl")
    prepare = ["prepare", source, "--tokens", str(desk.corpus.tokens), "--out"]
    assert desk.interkd(*prepare, "data/train") == 0
    first = desk.contents(desk.folder / "data" / "train")
    assert desk.interkd(*on_slurm(*prepare, "data/train")) == 0
    assert desk.contents(desk.folder / "data" / "train") == first
    assert desk.interkd(*cache_options(desk, "store.zarr")) == 0
    assert desk.contents(desk.folder / "store.zarr") == desk.contents(calm)
    assert not list(desk.folder.glob(".interkd-dask-*"))
    desk.wait_until(lambda: not jobs())


def test_a_cancelled_job_loses_nothing(desk: Any, calm: Path) -> None:
    """Both workers are in the midst of a part; one job is cancelled, and another one takes over."""
    (desk.folder / "gate").touch()
    cancelled: list[str] = []

    def cancel() -> None:
        try:
            desk.wait_until(lambda: len(list(desk.folder.glob("at-work-*"))) == 2)
            cancelled.append(next(desk.folder.glob("at-work-*")).name.removeprefix("at-work-"))
            subprocess.run(["scancel", "--signal=KILL", "--full", cancelled[0]], check=True)
            desk.wait_until(lambda: cancelled[0] not in jobs())
            desk.wait_until(lambda: len(jobs()) == 2)
        finally:
            (desk.folder / "gate").unlink()

    thread = threading.Thread(target=cancel)
    thread.start()
    assert desk.interkd(*cache_options(desk, "store.zarr")) == 0
    thread.join()
    assert cancelled
    assert len(list(desk.folder.glob("at-work-*"))) >= 2
    assert desk.contents(desk.folder / "store.zarr") == desk.contents(calm)
    assert verify(desk.folder / "store.zarr").problems == ()


def test_a_profile_that_slurm_refuses(desk: Any, calm: Path, capsys: Capture) -> None:
    profile = desk.profile(partition="nowhere")
    code = desk.interkd(*on_slurm("cache", "verify", "calm.zarr"), "--profile", profile)
    assert code == 2
    assert "invalid partition specified: nowhere" in capsys.readouterr().err


def test_jobs_that_end_at_once(
    desk: Any, calm: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_cluster, "_POLL_SECONDS", 0.5)
    desk.profile(cpus=1, prologue=["echo the module is not there >&2", "exit 1"])
    assert desk.interkd(*on_slurm("cache", "verify", "calm.zarr")) == 2
    said = capsys.readouterr().err
    assert "every Slurm job ended, none reached this process; got the module is not there" in said
