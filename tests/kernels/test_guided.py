"""Guided CTC: against a formula in plain Python, and what must not leak into it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from interkd.kernels.errors import ShapeError
from interkd.kernels.guided import guided_loss
from interkd.kernels.sparse import SparsePosteriors
from tests.kernels.gradients import JUNK, int64, loss_and_gradient
from tests.kernels.posteriors import Utterances, random_utterances, sparse, valueless


def expected(
    logits: Tensor, utterances: Utterances, compared: list[int], blank_index: int
) -> tuple[Tensor, Tensor]:
    """Loss `(B,)` and its gradient `(B, T, V)`, float64 on the CPU."""
    rows = logits.double().cpu().tolist()
    loss = [0.0] * len(rows)
    gradient = torch.zeros(logits.shape, dtype=torch.float64)
    for b, utterance in enumerate(utterances):
        for t in range(min(len(utterance), len(rows[b]), compared[b])):
            token = next(iter(utterance[t]), blank_index)
            if token == blank_index:
                continue
            peak = max(rows[b][t])
            total = math.fsum(math.exp(z - peak) for z in rows[b][t])
            q = [math.exp(z - peak) / total for z in rows[b][t]]
            loss[b] -= q[token]
            for v in range(len(q)):
                gradient[b, t, v] = -q[token] * ((v == token) - q[v])
    return torch.tensor(loss, dtype=torch.float64), gradient


def run(
    logits: Tensor, teacher: SparsePosteriors, compared: list[int], upstream: list[float]
) -> tuple[Tensor, Tensor]:
    lengths = int64(compared, logits.device)
    loss, gradient = loss_and_gradient(
        lambda leaf: guided_loss(leaf, teacher, lengths), logits, upstream
    )
    return loss.cpu(), gradient.cpu()


def check(
    logits: Tensor,
    utterances: Utterances,
    compared: list[int],
    blank_index: int = 0,
    tolerance: float = 2e-6,
) -> None:
    upstream = [0.7, -1.3, 2.1, 1.0, 0.25][: len(utterances)]
    teacher = sparse(utterances, logits.shape[2], logits.device, blank_index)
    loss, gradient = run(logits, teacher, compared, upstream)
    right_loss, right_gradient = expected(logits, utterances, compared, blank_index)
    right_gradient *= torch.tensor(upstream)[:, None, None]
    torch.testing.assert_close(loss, right_loss.float(), rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(gradient.double(), right_gradient, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("frames", "vocab_size", "std"), [(1, 2, 1.0), (7, 3, 2.0), (11, 29, 5.0), (13, 31, 1e4)]
)
def test_values_and_gradient(
    device: torch.device, frames: int, vocab_size: int, std: float
) -> None:
    torch.manual_seed(frames)
    lengths = [frames, 0, max(0, frames - 1), frames + 1, frames]
    compared = [frames, 0, max(0, frames - 1), frames, frames // 2]
    for blank_index in (0, vocab_size - 1):
        utterances = random_utterances(lengths, vocab_size, 4, falling=True)
        logits = std * torch.randn(5, frames, vocab_size, device=device)
        check(logits, utterances, compared, blank_index)


@pytest.mark.parametrize("offset", [1e4, -1e4])
def test_a_common_offset_costs_no_digits(device: torch.device, offset: float) -> None:
    torch.manual_seed(3)
    utterances = random_utterances([7], 13, 4, falling=True)
    check(3 * torch.randn(1, 7, 13, device=device) + offset, utterances, [7])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_and_strides(device: torch.device, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    utterances = random_utterances([5, 3], 11, 4, falling=True)
    logits = torch.randn(11, 5, 4, device=device).to(dtype).permute(2, 1, 0)[::2]
    check(logits, utterances, [5, 3], tolerance=2e-6 + torch.finfo(dtype).eps)


def test_frames_that_do_not_count_never_leak(device: torch.device) -> None:
    torch.manual_seed(2)
    spike = {2: 0.6, 0: 0.1}
    teacher = sparse([[spike, {0: 0.9, 2: 0.1}, {}, spike, spike], [spike] * 2], 5, device)
    logits = torch.randn(2, 6, 5, device=device)
    counted = torch.zeros(2, 6, dtype=torch.bool, device=device)
    counted[0, 0] = counted[0, 3] = counted[1, 0] = counted[1, 1] = True
    for junk in JUNK:
        filled = torch.where(counted[:, :, None], logits, junk)
        # Beyond what is compared, and beyond what the teacher has.
        clean_loss, clean_gradient = run(logits, teacher, [4, 6], [1.0, 3.0])
        loss, gradient = run(filled, teacher, [4, 6], [1.0, 3.0])
        assert torch.equal(loss, clean_loss)
        assert torch.equal(gradient, clean_gradient)
        assert (gradient[~counted.cpu()] == 0).all()
        assert (gradient[counted.cpu()] != 0).any(1).all()


def test_the_first_entry_is_the_argmax(device: torch.device) -> None:
    """Rounding may make its rival as probable, or more."""
    utterances: Utterances = [[{5: 0.3, 0: 0.4}, {0: 0.3, 5: 0.4}]]
    logits = torch.zeros(1, 2, 8, device=device)
    loss, _ = run(logits, sparse(utterances, 8, device), [2], [1.0])
    assert loss.tolist() == [pytest.approx(-1 / 8)]


def test_a_certain_student_has_one_a_spike_and_rests(device: torch.device) -> None:
    logits = torch.full((1, 3, 4), -1e4, device=device)
    logits[:, :, 2] = 1e4
    teacher = sparse([[{2: 0.5}, {2: 0.5}, {1: 0.9}]], 4, device)
    loss, gradient = run(logits, teacher, [3], [1.0])
    assert loss.tolist() == [-2.0]
    assert (gradient == 0).all()


@pytest.mark.parametrize("shape", [(0, 3, 5), (2, 0, 5), (2, 3, 5)])
def test_nothing_to_compare(device: torch.device, shape: tuple[int, int, int]) -> None:
    teacher = sparse([[] for _ in range(shape[0])], 5, device)
    loss, gradient = run(
        torch.randn(shape, device=device), teacher, [shape[1]] * shape[0], [1.0] * shape[0]
    )
    assert loss.shape == shape[:1]
    assert (loss == 0).all()
    assert (gradient == 0).all()


def test_no_size_depends_on_values(device: torch.device) -> None:
    """Tensors without data: whatever looked at a value, and so waited for a GPU, would raise."""
    with FakeTensorMode():
        logits = torch.zeros(2, 9, 7, device=device, requires_grad=True)
        loss = guided_loss(
            logits, valueless(device), torch.zeros(2, dtype=torch.int64, device=device)
        )
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert gradient.shape == logits.shape


def test_misfits_are_refused() -> None:
    teacher = sparse([[{1: 0.5}], [{2: 0.5}]], 4, torch.device("cpu"))
    logits, lengths = torch.zeros(2, 1, 4), torch.tensor([1, 1])
    refused: list[tuple[str, dict[str, Any]]] = [
        ("logits", {"logits": torch.zeros(2, 4)}),
        ("tokens", {"logits": torch.zeros(2, 1, 5)}),
        ("compared_lengths", {"compared_lengths": torch.tensor([1.0, 1.0])}),
        ("compared_lengths", {"compared_lengths": torch.tensor([1])}),
    ]
    for message, change in refused:
        arguments: dict[str, Any] = {"logits": logits, "compared_lengths": lengths, **change}
        with pytest.raises(ShapeError, match=message):
            guided_loss(teacher=teacher, **arguments)
