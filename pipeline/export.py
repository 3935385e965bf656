"""A checkpoint to ship: weights cast, cut after a head if asked, nothing of the training left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from interkd.kernels.errors import CheckpointError, ConfigError
from interkd.pipeline.config import one_of
from interkd.pipeline.files import publish_folder, temporary_name
from interkd.pipeline.students.checkpoint import load_student, save_student
from interkd.pipeline.students.cut import cut_student

DTYPES = {"float32": torch.float32, "float16": torch.float16}


def export(checkpoint: Path, out: Path, *, dtype: str = "float16", head: str = "final") -> int:
    """Writes a checkpoint's weights, shape and tokens to a folder of their own.

    Args:
        checkpoint: A checkpoint folder, or a training run, whose best one is taken.
        out: A new folder; `interkd score` and `interkd:OUT` read it as they read the checkpoint.
        dtype: Of the stored weights, `float32` or `float16`; they are computed with in float32.
        head: Where the student ends: what comes after this head is left out, and it is the final
            one.

    Returns:
        Bytes written.

    Raises:
        CheckpointError: If there is no checkpoint, or `out` is there already.
        ConfigError: For another dtype, a head that is not there, or a folder that cannot be
            written.
    """
    one_of("dtype", dtype, DTYPES)
    if out.exists():
        raise CheckpointError(f"{out} is there already", remedy="choose another folder")
    loaded = load_student(checkpoint)
    model, facts = loaded.model, loaded.facts
    if head != "final":
        model = cut_student(model, head)
        facts = _facts_up_to(facts, loaded.model.head_names[: len(model.heads)])
    temporary = temporary_name(out)
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"cannot write to {out}", got=error.strerror) from error
    config = replace(model.config, head_layers=model.head_layers[:-1])
    save_student(temporary, model, config, loaded.tokenizer, facts, dtype=DTYPES[dtype])
    publish_folder(temporary, out)
    return sum(file.stat().st_size for file in out.iterdir())


def _facts_up_to(facts: dict[str, Any], heads: tuple[str, ...]) -> dict[str, Any]:
    """What is known of each head, without those behind the last of `heads`: the final one now."""
    kept = dict(facts)
    for name in ("dev_wer", "dev_cer"):
        if name in facts:
            rates = [facts[name][head] for head in heads]
            kept[name] = dict(zip((*heads[:-1], "final"), rates, strict=True))
    return kept
