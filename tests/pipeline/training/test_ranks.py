"""Several processes train the student that one trains: same losses, same stops, same weights."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from interkd.kernels.errors import ConfigError
from interkd.pipeline.config import as_plain
from interkd.pipeline.training.config import SpecAugmentConfig, TrainConfig
from interkd.pipeline.training.recipes import ObjectiveConfig
from interkd.pipeline.training.trainer import train
from tests.students import conformer, last_weights, log_rows, losses, training


def settings(corpus: Any, out: Path, **changes: Any) -> TrainConfig:
    """Two batches a step, with all that is random in a step switched on."""
    data = {"batch_seconds": 5.0, "batches_a_step": 2}
    config = training(
        corpus,
        out,
        data=data,
        student=conformer(16),
        spec_augment=SpecAugmentConfig(time_width=8, frequency_width=6),
        dev_every=3,
    )
    return replace(config, **changes)


INTERKD = ("-m", "interkd")


class Together:
    """Processes of one run, each a rank."""

    def __init__(
        self, config: TrainConfig, count: int, *extra: str, program: tuple[str, ...] = INTERKD
    ) -> None:
        file = config.out.parent / f"{config.out.name}.yaml"
        file.write_text(yaml.safe_dump(as_plain(config)))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, *program, "train-teacher", "--config", str(file), *extra]
        self.outputs = [config.out.parent / f"{config.out.name}-{r}.txt" for r in range(count)]
        self.processes = []
        for rank, output in enumerate(self.outputs):
            environment = {
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(count),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
            }
            with output.open("ab") as file_:
                self.processes.append(
                    subprocess.Popen(command, env=environment, stdout=file_, stderr=file_)
                )

    def wait(self) -> list[int]:
        return [process.wait(timeout=120) for process in self.processes]

    def text(self) -> str:
        return "\n".join(output.read_text() for output in self.outputs)


def assert_same_run(one: Path, other: Path) -> None:
    torch.testing.assert_close(
        torch.tensor(losses(one)), torch.tensor(losses(other)), rtol=1e-4, atol=0
    )
    mine, theirs = last_weights(one), last_weights(other)
    for name, weight in mine.items():
        # A bias before a batch norm has no gradient but rounding, which Adam makes steps of.
        if name.startswith("heads."):
            torch.testing.assert_close(weight, theirs[name], rtol=1e-3, atol=2e-4)


@pytest.fixture(scope="module")
def alone(tone_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process that takes both batches of each step."""
    out = tmp_path_factory.mktemp("alone") / "run"
    train(settings(tone_corpus, out))
    return out


@pytest.mark.parametrize("normalisation", ["utterance", "frame", "token"])
def test_two_processes_make_the_steps_of_one(
    tone_corpus: Any, tmp_path: Path, alone: Path, normalisation: str
) -> None:
    objective = ObjectiveConfig(recipe="inter-ctc", normalisation=normalisation)
    config = settings(tone_corpus, tmp_path / "two", objective=objective)
    if normalisation != "utterance":
        alone = tmp_path / "alone"
        train(replace(config, out=alone))
    together = Together(config, 2)
    assert together.wait() == [0, 0], together.text()
    assert_same_run(config.out, alone)
    assert [row["processes"] for row in log_rows(config.out) if "dev_wer" in row] == [2]
    assert "dev WER % layer1" in together.outputs[0].read_text()
    assert "dev WER % layer1" not in together.outputs[1].read_text()  # one speaks for all


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_two_gpus_make_the_steps_of_one(
    tone_corpus: Any, tmp_path: Path, device: torch.device, cuda_graphs: bool
) -> None:
    if device.type != "cuda" or torch.cuda.device_count() < 2:
        pytest.skip("needs --device cuda and two GPUs")
    config = settings(tone_corpus, tmp_path / "one", device="cuda", cuda_graphs=cuda_graphs)
    train(config)
    together = Together(replace(config, out=tmp_path / "two"), 2)
    assert together.wait() == [0, 0], together.text()
    one, two = torch.tensor(losses(config.out)), torch.tensor(losses(tmp_path / "two"))
    torch.testing.assert_close(two, one, rtol=2e-2, atol=0)  # sums of floats in another order


def test_one_stop_signal_stops_all_and_one_process_goes_on(
    tone_corpus: Any, tmp_path: Path, alone: Path
) -> None:
    config = settings(tone_corpus, tmp_path / "two", checkpoint_minutes=0.002)
    together = Together(config, 2)
    log = config.out / "log.jsonl"
    deadline = time.monotonic() + 90
    while not (config.out / "last.json").exists() and time.monotonic() < deadline:
        assert all(process.poll() is None for process in together.processes), together.text()
        time.sleep(0.01)
    together.processes[1].send_signal(signal.SIGUSR2)  # not the one that writes
    codes = together.wait()
    assert codes in ([3, 3], [0, 0]), together.text()
    if codes == [0, 0]:
        pytest.skip("the run was over before the signal")
    assert len(losses(config.out)) < len(losses(alone))
    assert log.exists()
    train(config, resume=True)  # alone, with both batches of each step
    assert_same_run(config.out, alone)


SLOWLY = """
import time
from interkd.cli.main import main
from interkd.pipeline.training.checkpoint import CheckpointFolder
publish = CheckpointFolder.publish
def slowly(*arguments):
    time.sleep(2)
    publish(*arguments)
CheckpointFolder.publish = slowly
main()
"""


def test_no_process_leaves_before_the_checkpoint_stands(tone_corpus: Any, tmp_path: Path) -> None:
    """torchrun ends the others, the one that writes it too, when one has ended."""
    config = settings(tone_corpus, tmp_path / "run", epochs=1000, dev_every=1000)
    together = Together(config, 2, program=("-c", SLOWLY))
    log = config.out / "log.jsonl"
    deadline = time.monotonic() + 90
    while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
        assert all(process.poll() is None for process in together.processes), together.text()
        time.sleep(0.01)
    together.processes[1].send_signal(signal.SIGUSR2)
    assert together.processes[1].wait(60) == 3
    assert (config.out / "last.json").exists()
    assert together.wait() == [3, 3]


def test_another_number_of_processes_is_refused_or_works(tone_corpus: Any, tmp_path: Path) -> None:
    data = settings(tone_corpus, tmp_path).data
    config = settings(
        tone_corpus, tmp_path / "run", data=replace(data, batches_a_step=None), epochs=1
    )
    train(config)
    with pytest.raises(ConfigError, match=r"another 'data.batches_a_step'; expected 1, got 2"):
        train(replace(config, data=data), resume=True)


def test_batches_that_processes_cannot_share(tone_corpus: Any, tmp_path: Path) -> None:
    data = replace(settings(tone_corpus, tmp_path).data, batches_a_step=3)
    together = Together(settings(tone_corpus, tmp_path / "run", data=data), 2)
    assert together.wait() == [2, 2]
    assert "data.batches_a_step; expected a multiple of the 2 processes, got 3" in together.text()


def test_torchrun_starts_them(tone_corpus: Any, tmp_path: Path, alone: Path) -> None:
    config = settings(tone_corpus, tmp_path / "run")
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(as_plain(config)))
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
        *("-m", "interkd", "train-teacher", "--config", str(file)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_run(config.out, alone)


LEAVING = """
import os
import torch
from interkd.pipeline.training.ranks import Ranks
ranks = Ranks.join()
torch.optim.AdamW(torch.nn.Linear(1, 1).parameters())
ranks.wait()
ranks.leave()
names = [open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")]
assert not [name for name in names if "gloo" in name], names
"""


def test_no_thread_of_the_others_outlives_the_goodbye(tmp_path: Path) -> None:
    script = tmp_path / "leaving.py"
    script.write_text(LEAVING)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
