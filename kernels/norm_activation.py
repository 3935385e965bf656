"""What follows a convolution, in few passes: norm, the way around, ReLU, dropout, mask."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from interkd.kernels.backends import OLDEST_TRITON, load_kernel, triton_version

_HAS_TRITON = triton_version() >= OLDEST_TRITON


class Running(NamedTuple):
    """What a batch norm averages from batch to batch: float32 `(C,)`, changed in place."""

    mean: Tensor
    var: Tensor
    momentum: float
    epsilon: float


def has_fast_norm_activation(device: torch.device) -> bool:
    """Whether `norm_activation` runs on that device."""
    return device.type == "cuda" and _HAS_TRITON


def norm_activation(
    x: Tensor,
    norm: nn.BatchNorm2d,
    around: Tensor | None,
    norm_around: nn.BatchNorm2d | None,
    mask: Tensor,
    *,
    dropout: float,
    seed: Tensor | None,
    stream: int,
) -> Tensor:
    """`dropout(relu(norm(x) + norm_around(around))) * mask` in training, with its gradients.

    Frames are read twice and written once, forward, and no random number is kept: what is
    positive at the end is what passed. Sums are float32 and the same from run to run; the norms'
    running statistics change as torch changes them (Ioffe and Szegedy 2015; padding counts, as in
    torch's). B utterances, T frames, C channels.

    Args:
        x: `(B, T, C)`, float32, bfloat16 or float16, where `has_fast_norm_activation` says so.
        norm: In training, affine, with running statistics and a momentum.
        around: `(B, T, C)` of the same dtype, or None.
        norm_around: Its norm.
        mask: True at valid frames, bool `(B, T, 1)`.
        dropout: Probability, from 0 to below 1.
        seed: int64, one number on the device of `x`: a step's. None without dropout.
        stream: Tells this use of the seed from the step's others.

    Returns:
        `(B, T, C)` of the dtype of `x`.
    """
    apply = load_kernel("triton", "norm_activation", "apply")
    running = [_running(norm), None if norm_around is None else _running(norm_around)]
    second = (None, None) if norm_around is None else (norm_around.weight, norm_around.bias)
    inputs = (x, norm.weight, norm.bias, around, *second, *running, mask, dropout, seed, stream)
    return cast(Tensor, apply(*inputs))


def _running(norm: nn.BatchNorm2d) -> Running:
    mean, var = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    return Running(mean, var, norm.momentum or 0.0, norm.eps)
