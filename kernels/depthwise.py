"""Depthwise convolution over time, for students whose frames hold their channels side by side."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from interkd.kernels.backends import OLDEST_TRITON, load_kernel, triton_version

_HAS_TRITON = triton_version() >= OLDEST_TRITON


def has_fast_depthwise(device: torch.device) -> bool:
    """Whether `depthwise_convolution` runs on that device."""
    return device.type == "cuda" and _HAS_TRITON


def depthwise_convolution(x: Tensor, weight: Tensor, *, dilation: int = 1) -> Tensor:
    """`out[b, t, c] = sum over k of weight[k, c] * x[b, t + (k - K // 2) * dilation, c]`.

    Frames outside count as zeros, so T stays. cuDNN takes several times as long for it, above all
    for the gradient of the weights (docs/log.md). Sums are float32, whatever the dtype of `x`, and
    the same from run to run. B utterances, T frames, C channels, K taps.

    Args:
        x: `(B, T, C)`, float32, bfloat16 or float16, where `has_fast_depthwise` says so.
        weight: `(K, C)`, K odd.
        dilation: Frames from one tap to the next.

    Returns:
        `(B, T, C)` of the dtype of `x`.
    """
    convolve = load_kernel("triton", "depthwise", "depthwise")
    return cast(Tensor, convolve(x, weight.contiguous(), dilation, False))  # turned over once
