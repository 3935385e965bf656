"""Checkpoint averaging."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from interkd.kernels.errors import CheckpointError
from interkd.pipeline.students.checkpoint import unique_weights


@torch.no_grad()
def average_weights(model: nn.Module, files: Sequence[Path]) -> None:
    """Puts the mean of several checkpoints' weights into a model, in place.

    Floating weights and batch-norm statistics are averaged in float64; counters are the last's.

    Args:
        model: Of the checkpoints' shape.
        files: safetensors files.

    Raises:
        CheckpointError: If there is none.
    """
    if not files:
        raise CheckpointError("no checkpoint to average")
    own = unique_weights(model)
    states = [load_file(file) for file in files]
    for name, weight in own.items():
        if weight.is_floating_point():
            mean = torch.stack([state[name].double() for state in states]).mean(0)
            weight.copy_(mean)
        else:
            weight.copy_(states[-1][name])
