"""The depthwise convolution against torch's, forward and backward, whatever the shape."""

from __future__ import annotations

import pytest
import torch

from interkd.kernels.depthwise import depthwise_convolution

pytest.importorskip("triton")


def expected(x: torch.Tensor, weight: torch.Tensor, dilation: int) -> torch.Tensor:
    taps, channels = weight.shape
    out = torch.nn.functional.conv1d(
        x.transpose(1, 2),
        weight.t()[:, None],
        padding=dilation * (taps // 2),
        dilation=dilation,
        groups=channels,
    )
    return out.transpose(1, 2)


@pytest.mark.parametrize(
    ("batch", "frames", "channels", "taps", "dilation"),
    [
        (2, 37, 5, 11, 1),
        (1, 1, 3, 3, 1),
        (3, 2, 1, 1, 1),
        (2, 70, 130, 5, 2),
        (1, 129, 67, 29, 2),
        (1, 300, 3, 9, 3),
    ],
)
def test_values_and_gradients_are_torchs(
    device: torch.device, batch: int, frames: int, channels: int, taps: int, dilation: int
) -> None:
    torch.manual_seed(0)
    x = torch.randn(batch, frames, channels, dtype=torch.float64)
    weight = torch.randn(taps, channels, dtype=torch.float64)
    upstream = torch.randn(batch, frames, channels, dtype=torch.float64)
    x64, weight64 = x.clone().requires_grad_(), weight.clone().requires_grad_()
    wanted = expected(x64, weight64, dilation)
    wanted_gradients = torch.autograd.grad(wanted, (x64, weight64), upstream)
    x32, weight32 = (leaf.float().to(device).requires_grad_() for leaf in (x, weight))
    got = depthwise_convolution(x32, weight32, dilation=dilation)
    gradients = torch.autograd.grad(got, (x32, weight32), upstream.float().to(device))
    torch.testing.assert_close(got.cpu().double(), wanted, rtol=0, atol=2e-5)
    for own, right in zip(gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(own.cpu().double(), right, rtol=1e-5, atol=5e-5)


def test_shares_of_the_weights_gradient_are_of_several_tiles(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    from interkd.kernels._triton import depthwise

    torch.manual_seed(0)
    x, weight = torch.randn(20, 35, 3), torch.randn(3, 3)
    wanted_weight = weight.double().requires_grad_()
    out = expected(x.double(), wanted_weight, 1)
    (wanted,) = torch.autograd.grad(out.square().sum(), wanted_weight)
    monkeypatch.setattr(depthwise, "_MOST_SHARES", 2)  # of the five tiles of eight lanes
    got_weight = weight.to(device).requires_grad_()
    out = depthwise_convolution(x.to(device), got_weight)
    (got,) = torch.autograd.grad(out.square().sum(), got_weight)
    torch.testing.assert_close(got.cpu().double(), wanted, rtol=1e-5, atol=1e-3)


def test_bfloat16_frames_keep_their_dtype_and_any_strides(device: torch.device) -> None:
    torch.manual_seed(0)
    frames = torch.randn(2, 7, 19).to(device, torch.bfloat16)
    weight = torch.randn(7, 5, device=device)
    x = frames.transpose(1, 2).requires_grad_()  # (2, 19, 7)
    out = depthwise_convolution(x, weight.t())
    assert out.dtype == torch.bfloat16
    wanted = expected(x.detach().float(), weight.t(), 1)
    torch.testing.assert_close(out.float(), wanted, rtol=1e-2, atol=2e-2)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert gradient.dtype == torch.bfloat16
    assert gradient.shape == x.shape
