"""Consistency of two views: against a formula in plain Python, and where its gradient stops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from interkd.kernels.consistency import consistency_loss
from interkd.kernels.errors import ShapeError
from tests.kernels.gradients import JUNK, int64, loss_and_gradient


def log_softmax(row: list[float]) -> list[float]:
    peak = max(row)
    total = math.log(math.fsum(math.exp(z - peak) for z in row))
    return [z - peak - total for z in row]


def expected(logits: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Loss `(B,)` and its gradient `(2B, T, V)`, float64 on the CPU."""
    rows = logits.double().cpu().tolist()
    pairs = len(rows) // 2
    loss = [0.0] * pairs
    gradient = torch.zeros(logits.shape, dtype=torch.float64)
    for b in range(pairs):
        for t in range(min(lengths[b], lengths[pairs + b])):
            for own, other in ((b, pairs + b), (pairs + b, b)):
                log_q, log_p = log_softmax(rows[own][t]), log_softmax(rows[other][t])
                for v in range(len(log_q)):
                    p, q = math.exp(log_p[v]), math.exp(log_q[v])
                    loss[b] += 0.5 * p * (log_p[v] - log_q[v])
                    gradient[own, t, v] = 0.5 * (q - p)
    return torch.tensor(loss, dtype=torch.float64), gradient


def run(logits: Tensor, lengths: list[int], upstream: list[float]) -> tuple[Tensor, Tensor]:
    columns = int64(lengths, logits.device)
    loss, gradient = loss_and_gradient(
        lambda leaf: consistency_loss(leaf, columns), logits, upstream
    )
    return loss.cpu(), gradient.cpu()


def check(logits: Tensor, lengths: list[int], tolerance: float = 3e-6) -> None:
    upstream = [0.7, -1.3, 2.1][: len(lengths) // 2]
    loss, gradient = run(logits, lengths, upstream)
    right_loss, right_gradient = expected(logits, lengths)
    right_gradient *= torch.tensor(upstream).repeat(2)[:, None, None]
    torch.testing.assert_close(loss, right_loss.float(), rtol=1e-5, atol=3e-6)
    torch.testing.assert_close(gradient.double(), right_gradient, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("frames", "vocab_size", "std"),
    [(1, 2, 1.0), (7, 3, 2.0), (11, 29, 5.0), (13, 31, 1e4), (3, 1, 1.0)],
)
def test_values_and_gradient(
    device: torch.device, frames: int, vocab_size: int, std: float
) -> None:
    torch.manual_seed(frames)
    logits = std * torch.randn(6, frames, vocab_size, device=device)
    check(logits, [frames, 0, frames - 1, frames, 0, frames])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_and_strides(device: torch.device, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    logits = torch.randn(11, 5, 8, device=device).to(dtype).permute(2, 1, 0)[::2]
    check(logits, [5, 3, 5, 3], tolerance=3e-6 + torch.finfo(dtype).eps)


def test_a_target_has_no_gradient(device: torch.device) -> None:
    """A view's gradient is that of its own divergence: moving a target is no way out."""
    torch.manual_seed(2)
    logits = torch.randn(2, 3, 5, device=device)
    view, target = (row.detach().clone().requires_grad_() for row in logits)
    divergence = torch.nn.functional.kl_div(
        view.log_softmax(1), target.detach().softmax(1), reduction="sum"
    )
    (gradient,) = torch.autograd.grad(0.5 * divergence, view)
    _, found = run(logits, [3, 3], [1.0])
    torch.testing.assert_close(found[0], gradient.cpu(), rtol=0, atol=1e-6)


def test_equal_views_agree_exactly(device: torch.device) -> None:
    torch.manual_seed(3)
    logits = (4 * torch.randn(2, 7, 13, device=device)).repeat(2, 1, 1)
    loss, gradient = run(logits, [7, 5, 7, 5], [1.0, 2.0])
    assert (loss == 0).all()
    assert gradient.abs().max() < 1e-6


def test_frames_that_do_not_count_never_leak(device: torch.device) -> None:
    torch.manual_seed(4)
    logits = torch.randn(4, 6, 5, device=device)
    lengths = [4, 0, 5, 6]
    clean_loss, clean_gradient = run(logits, lengths, [1.0, 3.0])
    for junk in JUNK:
        filled = logits.clone()
        filled[0, 4:] = filled[2, 4:] = filled[1] = filled[3] = junk
        loss, gradient = run(filled, lengths, [1.0, 3.0])
        assert torch.equal(loss, clean_loss)
        assert torch.equal(gradient, clean_gradient)
        assert (gradient[[0, 2], 4:] == 0).all()
        assert (gradient[[1, 3]] == 0).all()


@pytest.mark.parametrize("std", [1e4, 1e6])
def test_extreme_logits_have_a_finite_gradient(device: torch.device, std: float) -> None:
    logits = torch.full((2, 1, 4), -std, device=device)
    logits[0, 0, 1] = logits[1, 0, 3] = std
    loss, gradient = run(logits, [1, 1], [1.0])
    assert loss.tolist() == [pytest.approx(2 * std)]
    assert gradient[0, 0].tolist() == [0.0, 0.5, 0.0, -0.5]


@pytest.mark.parametrize("shape", [(0, 3, 5), (4, 0, 5), (4, 3, 5)])
def test_nothing_to_compare(device: torch.device, shape: tuple[int, int, int]) -> None:
    loss, gradient = run(torch.randn(shape, device=device), [0] * shape[0], [1.0] * (shape[0] // 2))
    assert loss.shape == (shape[0] // 2,)
    assert (loss == 0).all()
    assert (gradient == 0).all()


def test_no_size_depends_on_values(device: torch.device) -> None:
    """Tensors without data: whatever looked at a value, and so waited for a GPU, would raise."""
    with FakeTensorMode():
        logits = torch.zeros(4, 9, 7, device=device, requires_grad=True)
        loss = consistency_loss(logits, torch.zeros(4, dtype=torch.int64, device=device))
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert gradient.shape == logits.shape


def test_misfits_are_refused() -> None:
    for message, shape, lengths in (
        ("two views", (3, 1, 4), torch.tensor([1, 1, 1])),
        ("logits", (2, 4), torch.tensor([1, 1])),
        ("frame_lengths", (2, 1, 4), torch.tensor([1])),
        ("frame_lengths", (2, 1, 4), torch.tensor([1.0, 1.0])),
    ):
        with pytest.raises(ShapeError, match=message):
            consistency_loss(torch.zeros(shape), lengths)
