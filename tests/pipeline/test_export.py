"""Exported checkpoints: half the bytes, the same model, read by everything that reads the other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from interkd.kernels.errors import CheckpointError, ConfigError
from interkd.pipeline.corpus.tokens import Tokenizer
from interkd.pipeline.export import export
from interkd.pipeline.students.checkpoint import load_student, save_student
from interkd.pipeline.students.config import ConformerConfig, StudentConfig
from interkd.pipeline.students.model import Student


def test_export_in_half_precision(tmp_path: Path) -> None:
    config = StudentConfig(
        conformer=ConformerConfig(dim=32, layers=3, attention_heads=2, feed_forward_dim=64)
    )
    tokenizer = Tokenizer.from_characters(["ABC"])
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    torch.manual_seed(0)
    student = Student(config, tokenizer.vocab_size).eval()
    save_student(checkpoint, student, config, tokenizer, {"step": 7})
    size = export(checkpoint, tmp_path / "shipped")
    full = (checkpoint / "model.safetensors").stat().st_size
    assert size < 0.6 * full
    shipped = load_student(tmp_path / "shipped")
    assert shipped.facts == {"step": 7}
    waveforms, lengths = 0.1 * torch.randn(1, 16000), torch.tensor([16000])
    a, b = student(waveforms, lengths).logits, shipped.model(waveforms, lengths).logits
    assert len(a) == len(b) == 3
    torch.testing.assert_close(a[-1], b[-1], rtol=0, atol=2e-2)
    assert not torch.equal(a[-1], b[-1])
    with pytest.raises(CheckpointError, match="is there already"):
        export(checkpoint, tmp_path / "shipped")
    with pytest.raises(ConfigError, match="dtype"):
        export(checkpoint, tmp_path / "other", dtype="int8")
