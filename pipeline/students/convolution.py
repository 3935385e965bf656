"""Convolutions over time of frames that hold their channels side by side, fast on each device."""

from __future__ import annotations

from torch import Tensor, nn

from interkd.kernels.depthwise import depthwise_convolution, has_fast_depthwise


def as_image(x: Tensor) -> Tensor:
    """`(B, T, C)` seen as `(B, C, 1, T)`, which has its channels last in memory."""
    return x.transpose(1, 2)[:, :, None]


def as_frames(image: Tensor) -> Tensor:
    """`(B, C, 1, T)` seen as `(B, T, C)`."""
    return image.squeeze(2).transpose(1, 2)  # a view in the backward pass, too


def depthwise_over_time(convolution: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    """A depthwise convolution, zero-padded: with an odd kernel frames stay as many.

    torch's CPU kernel for a depthwise `(B, C, T)` convolution is 7 times slower, forward and
    backward, than oneDNN's for the same numbers with channels last; cuDNN's is slow either way
    (docs/log.md, 2026-11-24).

    Args:
        convolution: Depthwise, of stride 1; 2-D ones over `(B, C, 1, T)`.
        x: `(B, T, C)`.

    Returns:
        `(B, T, C)`.
    """
    taps, dilation = convolution.kernel_size[-1], convolution.dilation[-1]
    if taps % 2 and has_fast_depthwise(x.device):
        out = depthwise_convolution(x, convolution.weight.flatten(1).t(), dilation=dilation)
        return out if convolution.bias is None else out + convolution.bias.to(out.dtype)
    image = nn.functional.conv2d(
        as_image(x),
        convolution.weight.flatten(1)[:, None, None],
        convolution.bias,
        padding=(0, int(convolution.padding[-1])),
        dilation=(1, dilation),
        groups=convolution.groups,
    )
    return as_frames(image)


def pointwise(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1x1 convolution: `(B, T, C)` to `(B, T, C')`.

    On a CPU oneDNN's convolution is faster than a product of matrices (docs/log.md, 2026-11-24).
    """
    if x.device.type == "cpu":
        return as_frames(convolution(as_image(x)))
    return nn.functional.linear(x, convolution.weight.flatten(1), convolution.bias)


def batch_norm(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Batch norm of `(B, T, C)`.

    On a GPU over `(B * T, C)`: seen as an image, compiled code may turn it over in memory.
    """
    if x.device.type == "cpu":
        return as_frames(norm(as_image(x)))
    flat = nn.functional.batch_norm(
        x.flatten(0, 1),
        norm.running_mean,
        norm.running_var,
        norm.weight,
        norm.bias,
        norm.training,
        norm.momentum or 0.0,
        norm.eps,
    )
    return flat.view(x.shape)
