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


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("conditioned", [False, True])
def test_export_up_to_a_head(tmp_path: Path, shared: bool, conditioned: bool) -> None:
    config = StudentConfig(
        head_layers=(1, 3),
        shared_heads=shared,
        self_conditioned=conditioned,
        conformer=ConformerConfig(dim=32, layers=4, attention_heads=2, feed_forward_dim=64),
    )
    tokenizer = Tokenizer.from_characters(["ABC"])
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    torch.manual_seed(0)
    student = Student(config, tokenizer.vocab_size).eval()
    rates = {"layer1": 80.0, "layer3": 50.0, "final": 40.0}
    facts = {"step": 7, "dev_wer": rates}
    save_student(checkpoint, student, config, tokenizer, facts)
    waveforms, lengths = 0.1 * torch.randn(2, 16000), torch.tensor([16000, 9000])
    whole = student(waveforms, lengths).logits
    known = {"layer1": {"final": 80.0}, "layer3": {"layer1": 80.0, "final": 50.0}}
    for place, head in enumerate(known):
        export(checkpoint, tmp_path / head, dtype="float32", head=head)
        shorter = load_student(tmp_path / head)
        logits = shorter.model(waveforms, lengths).logits
        assert len(logits) == place + 1
        assert all(torch.equal(a, b) for a, b in zip(logits, whole, strict=False))
        assert shorter.model.weight_counts == student.weight_counts[: place + 1]
        assert shorter.facts == {"step": 7, "dev_wer": known[head]}
    # A student that was cut can be cut again.
    export(tmp_path / "layer3", tmp_path / "again", dtype="float32", head="layer1")
    again = load_student(tmp_path / "again").model(waveforms, lengths).logits
    assert torch.equal(again[-1], whole[0])
    with pytest.raises(ConfigError, match=r"head; expected final .* got 'layer2'"):
        export(checkpoint, tmp_path / "layer2", head="layer2")
    assert not (tmp_path / "layer2").exists()
