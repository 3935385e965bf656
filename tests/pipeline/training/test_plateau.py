"""CTC's first plateau: its height against CTC itself, and who is told of it."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from interkd.kernels.ctc import ctc_loss
from interkd.pipeline.progress import Reporter
from interkd.pipeline.training import plateau
from interkd.pipeline.training.config import OptimiserConfig
from interkd.pipeline.training.plateau import is_on_plateau, plateau_loss
from interkd.pipeline.training.trainer import Trainer
from tests.reporters import Heard
from tests.students import training


def test_height_is_what_ctc_says_of_one_distribution_for_all_frames(
    tone_corpus: Any, tmp_path: Path
) -> None:
    trainer = Trainer(training(tone_corpus, tmp_path / "run"), resume=False, reporter=Reporter())
    trainer.close()
    loader, blank = trainer.loader, trainer.corpus.tokenizer.blank_index
    counts = Counter(token for target in loader.targets for token in target.tolist())
    assert blank not in counts
    frames = torch.tensor([loader.student_formula.count(u.samples) for u in loader.utterances])
    lengths = torch.tensor([len(target) for target in loader.targets])
    targets = torch.nn.utils.rnn.pad_sequence(loader.targets, batch_first=True, padding_value=blank)
    share = torch.zeros(trainer.corpus.tokenizer.vocab_size)
    for token, count in counts.items():
        share[token] = count / counts.total()
    losses = []
    for of_blank in torch.linspace(0.02, 0.98, 49):
        distribution = (1 - of_blank) * share
        distribution[blank] = of_blank
        logits = distribution.log().clamp(min=-60).expand(len(frames), int(frames.max()), -1)
        loss = ctc_loss(logits, targets, frames, lengths, blank_index=blank)
        losses.append(float(loss.mean()))
    height = plateau_loss(loader, "utterance")
    assert height < min(losses) < 1.2 * height
    tokens, units = int(lengths.sum()), {"frame": int(frames.sum()), "token": int(lengths.sum())}
    entropy = -sum(n / tokens * math.log(n / tokens) for n in counts.values())
    assert height == pytest.approx(entropy * tokens / len(frames))
    for unit, count in units.items():
        assert plateau_loss(loader, unit) == pytest.approx(entropy * tokens / count)
    loader.views = 2
    assert plateau_loss(loader, "utterance") == pytest.approx(height)
    loader.targets = [target[:0] for target in loader.targets]
    assert plateau_loss(loader, "utterance") == 0


def test_all_three_must_hold() -> None:
    there: dict[str, Any] = {"step": 1000, "loss": 430.0, "plateau": 442.0, "dev_wer": 97.0}
    assert is_on_plateau(**there)
    for change in ({"step": 999}, {"loss": 400.0}, {"plateau": 0.0}, {"dev_wer": 80.0}):
        assert not is_on_plateau(**{**there, **change})


@pytest.mark.parametrize(("rate", "epochs", "told"), [(1e-5, 1, True), (3e-3, 40, False)])
def test_who_learns_nothing_is_told(
    rate: float,
    epochs: int,
    told: bool,
    tone_corpus: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plateau, "MIN_STEPS", 1)
    reporter = Heard()
    config = training(
        tone_corpus,
        tmp_path / "run",
        epochs=epochs,
        dev_every=epochs,
        optimiser=OptimiserConfig(learning_rate=rate, warmup_steps=1),
    )
    trainer = Trainer(config, resume=False, reporter=reporter)
    trainer.run()
    trainer.close()
    assert any("dev WER %" in line for line in reporter.lines)
    assert any("CTC's first plateau: its loss was" in line for line in reporter.lines) == told
