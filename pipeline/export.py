"""A checkpoint to ship: weights cast, nothing of the training left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from interkd.kernels.errors import CheckpointError, ConfigError
from interkd.pipeline.config import one_of
from interkd.pipeline.files import publish_folder, temporary_name
from interkd.pipeline.students.checkpoint import load_student, save_student

DTYPES = {"float32": torch.float32, "float16": torch.float16}


def export(checkpoint: Path, out: Path, *, dtype: str = "float16") -> int:
    """Writes a checkpoint's weights, shape and tokens to a folder of their own.

    Args:
        checkpoint: A checkpoint folder, or a training run, whose best one is taken.
        out: A new folder; `interkd score` and `interkd:OUT` read it as they read the checkpoint.
        dtype: Of the stored weights, `float32` or `float16`; they are computed with in float32.

    Returns:
        Bytes written.

    Raises:
        CheckpointError: If there is no checkpoint, or `out` is there already.
        ConfigError: For another dtype, or a folder that cannot be written.
    """
    one_of("dtype", dtype, DTYPES)
    if out.exists():
        raise CheckpointError(f"{out} is there already", remedy="choose another folder")
    loaded = load_student(checkpoint)
    temporary = temporary_name(out)
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"cannot write to {out}", got=error.strerror) from error
    config = replace(loaded.config, head_layers=loaded.model.head_layers[:-1])
    save_student(
        temporary, loaded.model, config, loaded.tokenizer, loaded.facts, dtype=DTYPES[dtype]
    )
    publish_folder(temporary, out)
    return sum(file.stat().st_size for file in out.iterdir())
