"""A real Slurm inside this machine, from Debian's packages; a folder from which jobs are sent."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from interkd.cli.main import main
from interkd.kernels.errors import ClusterError
from interkd.pipeline.cluster.states import TaskState, look

HERE = Path(__file__).parent
NODES = 3
CONFORMER = {"dim": 16, "layers": 2, "attention_heads": 2, "feed_forward_dim": 32}

# Posteriors of nothing but the frame's samples. While the file `gate` stands, every batch waits.
TEACHER = """
import os
import time
from pathlib import Path

import torch

from interkd.pipeline.frames import FrameFormula
from interkd.pipeline.teachers.protocol import TeacherInfo


class Loudness:
    info = TeacherInfo(
        name="loudness",
        weights_sha256="cd" * 32,
        tokens=("<blk>", "\\u2581", *"ABCDEFGH"),
        blank_index=0,
        sample_rate=16000,
        frame_formula=FrameFormula.parse("1,640,0"),
    )

    def log_probs(self, waveforms, sample_lengths):
        task = os.environ.get("SLURM_ARRAY_TASK_ID")
        if task is not None:
            Path(f"at-work-{task}").touch()
            time.sleep(0.1)
        while Path("gate").exists():
            time.sleep(0.05)
        frames = -(-waveforms.shape[1] // 640)
        padded = torch.nn.functional.pad(waveforms, (0, 640 * frames - waveforms.shape[1]))
        logits = 40 * padded.unflatten(1, (frames, 640))[..., :10]
        return logits.log_softmax(-1), -(-sample_lengths // 640)


def make(*, device, precision):
    return Loudness()
"""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Nodes n1..n3 of two cores in the partition debug, the default; its `slurm.conf`."""
    if os.geteuid() != 0:
        pytest.skip("bringing up Slurm needs root")
    if shutil.which("slurmctld") is None and not os.environ.get("INTERKD_SLURM_TESTS"):
        pytest.skip("Slurm is not installed (INTERKD_SLURM_TESTS=1 installs Debian's)")
    folder = tmp_path_factory.mktemp("slurm")
    up = ["bash", str(HERE / "up.sh"), str(folder), str(NODES), str(_free_ports(NODES + 1))]
    try:
        subprocess.run(up, check=True)
        yield folder / "slurm.conf"
    finally:
        subprocess.run(["bash", HERE / "down.sh", folder], check=True)


def _free_ports(count: int) -> int:
    """The first of so many neighbouring ports that nobody listens on."""
    for first in range(26800, 32000, count):
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise AssertionError("no free ports")


@dataclass(frozen=True)
class Desk:
    """A working folder with a corpus and a profile, whose name a script must quote."""

    folder: Path
    corpus: Any

    def interkd(self, *arguments: str) -> int:
        """Runs the command line; its exit code."""
        try:
            main(arguments)
        except SystemExit as stopped:
            return int(stopped.code or 0)
        return 0

    def profile(self, **changes: Any) -> str:
        """Writes the user's own profile; its path."""
        values = {
            "gpus": 0,
            "time": "00:10:00",
            "lead_seconds": 60,
            "interkd": str(Path(sys.executable).with_name("interkd")),
            "prologue": ["export OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1"],
            **changes,
        }
        path = self.folder / "interkd" / "slurm.yaml"
        path.write_text(yaml.safe_dump(values))
        return str(path)

    def cache_options(self, out: str) -> list[str]:
        options = ["--teacher", "python:loudness:make", "--manifest", str(self.corpus.train)]
        return [*options, "--out", out, "--device", "cpu", "--part-minutes", "0.03"]

    def write_student(self, name: str, **changes: Any) -> str:
        """Settings of a small student with some thirty steps an epoch."""
        settings = {
            "data": {
                "train_manifest": str(self.corpus.train),
                "dev_manifest": str(self.corpus.dev),
                "tokenizer": str(self.corpus.tokens),
                "batch_seconds": 2.5,
                "buckets": 3,
            },
            "out": f"runs/{name}",
            "student": {
                "head_layers": [1],
                "features": {"mels": 24},
                "conformer": {**CONFORMER, "convolution_kernel": 7, "stride": 4},
            },
            "device": "cpu",
            **changes,
        }
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(settings))
        return f"{name}.yaml"

    def submit(self, *arguments: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
        """Submits with `interkd slurm`; the job ids."""
        assert self.interkd("slurm", *arguments, "--submit") == 0
        return [line.split()[0] for line in capsys.readouterr().out.splitlines()]

    def log(self, name: str) -> str:
        """What jobs of that name wrote."""
        logs = sorted((self.folder / "slurm" / "logs").glob(f"{name}-*.log"))
        return "".join(log.read_text() for log in logs)

    @staticmethod
    def state(job_id: str) -> TaskState:
        """The state of one job, or of one task of an array."""
        while True:
            try:
                tasks = look(job_id)
                break
            except ClusterError:  # a busy controller
                time.sleep(0.5)
        assert len(tasks) == 1, tasks
        return tasks[0]

    @staticmethod
    def wait_until(condition: Callable[[], object], *, seconds: float = 60.0) -> None:
        """Waits for something that takes a while."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it does not come"
            time.sleep(0.1)

    def expect(self, state: str, *job_ids: str, seconds: float = 120.0) -> None:
        """Waits until jobs have ended, all of them in that state."""

        def all_ended() -> bool:
            return not any(self.state(job_id).goes_on for job_id in job_ids)

        self.wait_until(all_ended, seconds=seconds)
        states = [self.state(job_id) for job_id in job_ids]
        assert [found.state for found in states] == [state] * len(states), (states, self.log("*"))

    def writers(self, store: str) -> set[int]:
        """The processes that have claimed parts of a store; each claims some ahead."""
        claims = (self.folder / store).glob(".part-*.claim")
        return {json.loads(claim.read_text())["pid"] for claim in claims}

    @staticmethod
    def contents(folder: Path) -> dict[str, bytes]:
        """Every file of a folder."""
        return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def desk(
    cluster: Path, tone_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Desk]:
    folder = tmp_path / "it's 100 %j here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SLURM_CONF", str(cluster))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder))
    (folder / "loudness.py").write_text(TEACHER)
    (folder / "interkd").mkdir()
    desk = Desk(folder, tone_corpus)
    desk.profile()
    threads = torch.get_num_threads()
    yield desk
    torch.set_num_threads(threads)
    subprocess.run(["scancel", "--user=root"], check=True)
    sys.modules.pop("loudness", None)
