"""The loop: learning, exact resume after SIGKILL, stop signals, averaging, and refused settings."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from interkd.kernels.errors import CheckpointError, ConfigError
from interkd.pipeline.config import as_plain
from interkd.pipeline.frames import FrameFormula
from interkd.pipeline.progress import Reporter
from interkd.pipeline.students.checkpoint import load_student
from interkd.pipeline.training.config import SpecAugmentConfig, TrainConfig
from interkd.pipeline.training.data import BatchLoader
from interkd.pipeline.training.ranks import Ranks
from interkd.pipeline.training.recipes import ObjectiveConfig
from interkd.pipeline.training.trainer import Trainer, train
from tests.reporters import Heard
from tests.students import conformer, last_weights, log_rows, losses, training


def tiny(corpus: Any, out: Path, **changes: Any) -> TrainConfig:
    """A student that trains in seconds, and stops at SIGUSR2."""
    return training(corpus, out, **{"stop_signal": "SIGUSR2", **changes})


def rows(run: Path) -> list[dict[str, Any]]:
    """The log without wall-clock times."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in log_rows(run)]


def test_training_lowers_loss_and_error_rate(tone_corpus: Any, tmp_path: Path) -> None:
    result = train(tiny(tone_corpus, tmp_path / "run", epochs=40, dev_every=20))
    log = rows(tmp_path / "run")
    steps = [row for row in log if "loss" in row]
    epochs = [row for row in log if "dev_wer" in row]
    assert result.finished
    assert result.steps == len(steps)
    assert steps[-1]["loss"] < 0.5 * steps[0]["loss"]
    assert set(epochs[-1]["dev_wer"]) == {"layer1", "final"}
    assert epochs[-1]["dev_cer"]["final"] < 60
    late = [row["ctc"]["final"] for row in steps[len(steps) // 2 :]]
    assert epochs[-1]["train_ctc"]["final"] == pytest.approx(sum(late) / len(late), abs=1e-3)
    assert result.best_wer == min(row["dev_wer"]["final"] for row in epochs)
    best = json.loads((tmp_path / "run" / "best.json").read_text())
    assert (tmp_path / "run" / best["checkpoint"] / "student.json").exists()


def start(config: TrainConfig, *extra: str) -> subprocess.Popen[bytes]:
    settings = config.out.parent / f"{config.out.name}.yaml"
    settings.write_text(yaml.safe_dump(as_plain(config)))
    command = [sys.executable, "-m", "interkd", "train-teacher", "--config", str(settings), *extra]
    with (config.out.parent / "output.txt").open("ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=output)


def wait_for_rows(run: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        log = run / "log.jsonl"
        if log.exists() and log.read_text().count("\n") >= count:
            return
        time.sleep(0.01)
    raise AssertionError(f"no {count} rows: {(run.parent / 'output.txt').read_text()}")


def test_killed_and_resumed_run_equals_an_undisturbed_one(tone_corpus: Any, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "epochs": 6,
        "checkpoint_minutes": 0.002,
        "spec_augment": SpecAugmentConfig(time_width=8, frequency_width=6),
    }
    train(tiny(tone_corpus, tmp_path / "calm", **settings))
    config = tiny(tone_corpus, tmp_path / "killed", **settings)
    for count, extra in ((2, ()), (14, ("--resume",))):
        process = start(config, *extra)
        wait_for_rows(config.out, count, process)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    result = train(config, resume=True)
    assert result.finished
    assert rows(tmp_path / "killed") == rows(tmp_path / "calm")
    calm, killed = last_weights(tmp_path / "calm"), last_weights(tmp_path / "killed")
    assert all(torch.equal(calm[name], killed[name]) for name in calm)
    leftovers = list(config.out.rglob("*.tmp"))
    assert leftovers == []


def test_stop_signal_writes_a_checkpoint_and_exits_with_3(tone_corpus: Any, tmp_path: Path) -> None:
    config = tiny(tone_corpus, tmp_path / "run", epochs=500, checkpoint_minutes=0.001)
    process = start(config)
    wait_for_rows(config.out, 3, process)
    process.send_signal(signal.SIGUSR2)
    assert process.wait(60) == 3
    step = json.loads((config.out / "last.json").read_text())["step"]
    assert step == max(row["step"] for row in rows(config.out))


def test_a_stop_signal_while_processes_agree_is_not_lost(
    tone_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(tone_corpus, tmp_path / "run")
    trainer = Trainer(config, resume=False, reporter=Reporter())
    calls = []

    def interrupted(ranks: Ranks, *values: float) -> tuple[float, ...]:
        calls.append(values)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGUSR2)
        return values

    monkeypatch.setattr(Ranks, "largest", interrupted)
    assert not trainer.run().finished
    assert len(calls) == 3  # the next step hears of it
    trainer.close()


def test_a_self_conditioned_student_keeps_its_heads_under_any_recipe(
    tone_corpus: Any, tmp_path: Path
) -> None:
    config = tiny(tone_corpus, tmp_path / "run", objective=ObjectiveConfig(recipe="ctc"), epochs=1)
    train(replace(config, student=replace(config.student, self_conditioned=True)))
    student = load_student(config.out).model
    assert student.head_names == ("layer1", "final")
    assert len(student.feedback) == 1


def test_average_is_scored_and_kept(tone_corpus: Any, tmp_path: Path) -> None:
    config = tiny(tone_corpus, tmp_path / "run", epochs=4, average_epochs=3)
    train(config)
    folder = config.out / "checkpoints"
    mean = load_file(folder / "average" / "model.safetensors")
    parts = [load_file(folder / f"epoch-{e:04d}" / "model.safetensors") for e in (2, 3, 4)]
    for name, weight in mean.items():
        if weight.is_floating_point():
            expected = torch.stack([part[name].double() for part in parts]).mean(0)
            torch.testing.assert_close(weight.double(), expected, rtol=0, atol=1e-7)
    assert len([row for row in rows(config.out) if "dev_wer" in row]) == 5


def test_settings_must_fit(tone_corpus: Any, tmp_path: Path) -> None:
    config = tiny(tone_corpus, tmp_path / "run", epochs=1)
    with pytest.raises(ConfigError, match="learns from a teacher"):
        train(replace(config, objective=ObjectiveConfig(recipe="skd")))
    with pytest.raises(CheckpointError, match="no run to resume"):
        train(config, resume=True)
    assert not config.out.exists()
    train(config)
    with pytest.raises(CheckpointError, match="holds a run already"):
        train(config)
    with pytest.raises(ConfigError, match=r"another 'seed'.*expected 1, got 2"):
        train(replace(config, seed=2), resume=True)


def test_settings_without_effect_may_change_between_starts(
    tone_corpus: Any, tmp_path: Path
) -> None:
    config = tiny(tone_corpus, tmp_path / "run", epochs=1)
    train(config)
    settings = (config.out / "config.yaml").read_text()
    older = settings.replace("cuda_graphs: false\n", "")  # as a version without them wrote it
    assert older != settings
    (config.out / "config.yaml").write_text(older)
    data = replace(config.data, decode_threads=3, audio_memory_gb=0.5)
    train(replace(config, data=data, checkpoint_minutes=3.0), resume=True)
    with pytest.raises(ConfigError, match=r"another 'cuda_graphs'.*expected False, got True"):
        train(replace(config, cuda_graphs=True), resume=True)
    with pytest.raises(ConfigError, match=r"another 'data.buckets'"):
        train(replace(config, data=replace(data, buckets=7)), resume=True)


def test_two_views_need_augmentation_or_dropout(tone_corpus: Any, tmp_path: Path) -> None:
    two_views = ObjectiveConfig(recipe="cr-ctc")
    config = tiny(tone_corpus, tmp_path / "run", student=conformer(32, dropout=0.0))
    with pytest.raises(ConfigError, match=r"two views.*spec_augment.*dropout"):
        replace(config, objective=two_views)
    augmented = replace(config, spec_augment=SpecAugmentConfig(time_width=8, frequency_width=6))
    result = train(replace(augmented, objective=two_views))
    steps = len(losses(config.out))
    assert result.steps == steps
    train(replace(augmented, objective=ObjectiveConfig(recipe="ctc"), out=tmp_path / "one-view"))
    assert len(losses(tmp_path / "one-view")) == steps


def test_views_of_dropout_differ(tone_corpus: Any, tmp_path: Path) -> None:
    first = []
    for weight in (0.2, 5.0):
        config = tiny(
            tone_corpus,
            tmp_path / str(weight),
            student=conformer(32, dropout=0.1),
            objective=ObjectiveConfig(recipe="cr-ctc", consistency_weight=weight),
            epochs=1,
        )
        train(config)
        first.append(losses(config.out)[0])
    assert first[1] > first[0] * 1.0001


def test_self_conditioned_recipe_trains_a_self_conditioned_student(
    tone_corpus: Any, tmp_path: Path
) -> None:
    config = tiny(
        tone_corpus, tmp_path / "run", objective=ObjectiveConfig(recipe="self-conditioned")
    )
    train(config)
    assert "feedback.0.weight" in last_weights(config.out)
    assert load_student(config.out).model.config.self_conditioned


def test_heads_that_learn_nothing_are_left_out(tone_corpus: Any, tmp_path: Path) -> None:
    config = tiny(tone_corpus, tmp_path / "run", objective=ObjectiveConfig(recipe="ctc"))
    trainer = Trainer(config, resume=False, reporter=Reporter())
    trainer.close()
    assert trainer.model.head_names == ("final",)


def test_an_epoch_of_other_batches_is_not_gone_on_with(tone_corpus: Any, tmp_path: Path) -> None:
    config = tiny(tone_corpus, tmp_path / "run", epochs=2, max_minutes=1e-6)
    train(config)
    last = json.loads((config.out / "last.json").read_text())["checkpoint"]
    file = config.out / last / "trainer.json"
    state = json.loads(file.read_text())
    state["position"]["order"] = "of another version"
    file.write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match=r"middle of epoch 1: its batches are others; exp"):
        train(replace(config, max_minutes=None), resume=True)


def test_time_limit_keeps_the_place_in_the_epoch(tone_corpus: Any, tmp_path: Path) -> None:
    config = tiny(tone_corpus, tmp_path / "run", epochs=2, max_minutes=1e-6)
    result = train(config)
    assert result.finished
    assert result.steps == 1
    assert rows(config.out)[-1]["epochs_done"] == 0
    again = train(config, resume=True)  # still out of time: nothing is trained
    assert again.steps == 1
    whole = train(replace(config, max_minutes=None), resume=True)
    steps = [row["step"] for row in rows(config.out) if "loss" in row]
    assert steps == list(range(1, whole.steps + 1))
    assert len(steps) == 10


def test_a_loss_that_is_no_number_stops_the_run(tone_corpus: Any, tmp_path: Path) -> None:
    config = tiny(tone_corpus, tmp_path / "run", epochs=30)
    broken = replace(config.optimiser, learning_rate=1e18, warmup_steps=1, grad_clip=None)
    with pytest.raises(ConfigError, match="the loss is nan"):
        train(replace(config, optimiser=broken))


def test_foreign_checkpoints_are_never_touched(tone_corpus: Any, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "mine.pt").write_text("precious")
    with pytest.raises(CheckpointError, match="holds checkpoints that no run of interkd wrote"):
        train(tiny(tone_corpus, tmp_path))
    assert (tmp_path / "checkpoints" / "mine.pt").read_text() == "precious"


def test_time_limit_before_an_epoch_leaves_nothing_to_average(
    tone_corpus: Any, tmp_path: Path
) -> None:
    config = tiny(tone_corpus, tmp_path / "run", epochs=2, average_epochs=2, max_minutes=1e-6)
    assert train(config).finished
    assert json.loads((config.out / "best.json").read_text())["checkpoint"].endswith("00000001")


def test_ctrl_c_writes_a_checkpoint_and_a_run_has_one_process(
    tone_corpus: Any, tmp_path: Path
) -> None:
    config = tiny(tone_corpus, tmp_path / "run", epochs=400)
    process = start(config)
    wait_for_rows(config.out, 2, process)
    with pytest.raises(CheckpointError, match="another process trains"):
        train(config, resume=True)
    assert (config.out / "config.yaml").exists()  # and the other one's run stands
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 3
    said = (tmp_path / "output.txt").read_text()
    assert "finishing a step and a checkpoint" in said
    step = json.loads((config.out / "last.json").read_text())["step"]
    assert f"stopped by a signal at step {step}" in said


def test_a_failed_resume_does_not_keep_others_off(tone_corpus: Any, tmp_path: Path) -> None:
    config = tiny(tone_corpus, tmp_path / "run", epochs=1)
    train(config)
    pointer = config.out / "last.json"
    whole = pointer.read_text()
    pointer.write_text("{")
    with pytest.raises(CheckpointError, match=r"last\.json is damaged") as held:
        train(config, resume=True)
    pointer.write_text(whole)
    assert train(config, resume=True).finished
    assert held.value.__traceback__ is not None  # as an interactive session keeps it


def test_a_run_resumed_before_its_first_checkpoint_is_withdrawn_too(
    tone_corpus: Any, tmp_path: Path
) -> None:
    config = tiny(tone_corpus, tmp_path / "run", epochs=1)
    optimiser = replace(config.optimiser, learning_rate=1e18, warmup_steps=0)
    diverging = replace(config, optimiser=optimiser, epochs=40)
    Trainer(diverging, resume=False, reporter=Reporter()).close()
    with pytest.raises(ConfigError, match="the loss is"):
        train(diverging, resume=True)
    assert [path.name for path in config.out.iterdir()] == ["failed.jsonl"]
    assert train(config).finished


def test_checkpoints_whose_pointer_is_gone_are_not_withdrawn(
    tone_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(tone_corpus, tmp_path / "run", epochs=1)
    train(config)
    (config.out / "last.json").unlink()

    def fail(*_: object) -> None:
        raise ConfigError("no luck")

    monkeypatch.setattr(Trainer, "_train_epoch", fail)
    with pytest.raises(ConfigError, match="no luck"):
        train(config, resume=True)
    assert (config.out / "checkpoints" / "epoch-0001").exists()


def test_utterances_that_ctc_cannot_align_are_counted(
    tone_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard()
    trainer = Trainer(tiny(tone_corpus, tmp_path / "run"), resume=False, reporter=heard)
    trainer.close()
    assert heard.lines == []
    corpus = trainer.corpus
    counts = set()
    for shift in (16000, 4000, 2000, 1000):
        formula = FrameFormula(((1, shift, 0),))
        impossible = 0
        for utterance in corpus.train.utterances:
            tokens = corpus.tokenizer.encode(utterance.text)
            repeats = sum(a == b for a, b in pairwise(tokens))
            impossible += formula.count(utterance.samples) < len(tokens) + repeats
        monkeypatch.setattr(trainer.loader, "student_formula", formula)
        assert trainer.loader.count_impossible() == impossible
        counts.add(impossible)
    assert len(counts) > 1
    monkeypatch.setattr(BatchLoader, "count_impossible", lambda _: 3)
    Trainer(tiny(tone_corpus, tmp_path / "other"), resume=False, reporter=heard).close()
    assert "warning: 3 of 36 utterances have fewer frames of 40 ms than CTC needs" in heard.lines[0]
