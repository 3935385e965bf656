"""Small students: their settings, untaught checkpoints, and what a run of theirs leaves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from interkd.pipeline.corpus.tokens import Tokenizer
from interkd.pipeline.students.checkpoint import save_student
from interkd.pipeline.students.config import (
    ConformerConfig,
    FeatureConfig,
    JasperConfig,
    StudentConfig,
)
from interkd.pipeline.students.model import Student
from interkd.pipeline.training.config import DataConfig, OptimiserConfig, TrainConfig
from interkd.pipeline.training.recipes import ObjectiveConfig

FEATURES = FeatureConfig(mels=24)
JASPER = JasperConfig(
    stride=4,
    stem_channels=16,
    block_channels=(16, 24),
    block_kernels=(5, 7),
    repeat=2,
    dilated_kernel=5,
    last_channels=(24, 32),
)


def conformer(dim: int, **changes: Any) -> StudentConfig:
    """Two layers, a head after the first, frames of 40 ms; changes are the encoder's."""
    encoder = ConformerConfig(
        dim=dim,
        layers=2,
        attention_heads=2,
        feed_forward_dim=2 * dim,
        convolution_kernel=7,
        stride=4,
    )
    return StudentConfig(head_layers=(1,), features=FEATURES, conformer=replace(encoder, **changes))


def save_untaught(
    folder: Path, config: StudentConfig, tokens: Path, *, seed: int = 0, peaked: float = 1.0
) -> Path:
    """Saves a student that never learnt anything, its last head's weights times `peaked`."""
    tokenizer = Tokenizer.load(tokens)
    torch.manual_seed(seed)
    student = Student(config, tokenizer.vocab_size)
    with torch.no_grad():
        next(student.heads[-1].parameters()).mul_(peaked)
    folder.mkdir(exist_ok=True)
    save_student(folder, student, config, tokenizer, {})
    return folder


def training(
    corpus: Any, out: Path, *, data: dict[str, Any] | None = None, **changes: Any
) -> TrainConfig:
    """A run of seconds over a `tone_corpus`: batches of 12 s, six of them an epoch."""
    config = TrainConfig(
        data=DataConfig(
            **{
                "train_manifest": corpus.train,
                "dev_manifest": corpus.dev,
                "tokenizer": corpus.tokens,
                "batch_seconds": 12.0,
                "buckets": 3,
                **(data or {}),
            }
        ),
        out=out,
        student=conformer(32),
        objective=ObjectiveConfig(recipe="inter-ctc"),
        optimiser=OptimiserConfig(learning_rate=5e-3, warmup_steps=5),
        epochs=3,
        device="cpu",
    )
    return replace(config, **changes)


def log_rows(run: Path) -> list[dict[str, Any]]:
    """The log, a step or an epoch a row."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def steps_of(run: Path) -> list[dict[str, Any]]:
    """The log's steps."""
    return [row for row in log_rows(run) if "loss" in row]


def losses(run: Path) -> list[float]:
    """Each step's loss."""
    return [row["loss"] for row in steps_of(run)]


def last_weights(run: Path) -> dict[str, torch.Tensor]:
    """The newest checkpoint's weights."""
    pointer = json.loads((run / "last.json").read_text())
    weights: dict[str, torch.Tensor] = load_file(run / pointer["checkpoint"] / "model.safetensors")
    return weights
