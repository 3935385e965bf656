"""Depthwise convolution over time, at the speed that the CPU has for it."""

from __future__ import annotations

from torch import Tensor, nn


def depthwise_over_time(convolution: nn.Conv1d, x: Tensor) -> Tensor:
    """A depthwise convolution of frames that hold their channels side by side.

    torch's CPU kernel for a depthwise `(B, C, T)` convolution is 7 times slower, forward and
    backward, than oneDNN's for the same numbers with channels last (docs/log.md, 2026-11-24).

    Args:
        convolution: Depthwise, zero-padded, of stride 1.
        x: `(B, T, C)`.

    Returns:
        `(B, T, C)`.
    """
    if x.device.type != "cpu":
        result: Tensor = convolution(x.transpose(1, 2)).transpose(1, 2)
        return result
    kernel = convolution.kernel_size[0]
    frames = nn.functional.conv2d(
        x.transpose(1, 2)[:, :, None],  # (B, C, 1, T), channels last in memory
        convolution.weight[:, :, None],
        convolution.bias,
        padding=(0, kernel // 2),
        groups=convolution.groups,
    )
    return frames[:, :, 0].transpose(1, 2)
