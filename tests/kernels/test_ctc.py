"""CTC loss: every backend against the float64 reference, and the reference against all paths."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from interkd.kernels.ctc import ctc_loss
from interkd.kernels.errors import BackendError, ShapeError
from interkd.kernels.reference.ctc import ctc_loss_and_gradient
from tests.kernels.gradients import backends, int64, loss_and_gradient

# Loss: relative. Gradient: absolute; each entry is within [-1, 1].
# torch's recursion is float32 logarithms, whose error grows with the loss itself.
TOLERANCES = {"numba": (1e-6, 2e-6), "torch": (1e-5, 2e-3), "triton": (2e-6, 5e-6)}


def run(
    logits: Tensor, *arguments: Tensor, upstream: Tensor | None = None, **options: Any
) -> tuple[Tensor, Tensor]:
    return loss_and_gradient(lambda leaf: ctc_loss(leaf, *arguments, **options), logits, upstream)


def assert_parity(
    device: torch.device, logits: Tensor, *arguments: Tensor, blank_index: int = 0
) -> Tensor:
    upstream = torch.linspace(0.3, 2.1, len(logits), device=device)
    options: dict[str, Any] = {"blank_index": blank_index, "upstream": upstream}
    expected_loss, expected = run(logits, *arguments, backend="reference", **options)
    for backend in backends(device):
        loss_tolerance, tolerance = TOLERANCES[backend]
        loss, gradient = run(logits, *arguments, backend=backend, **options)
        torch.testing.assert_close(loss, expected_loss, rtol=loss_tolerance, atol=1e-5)
        torch.testing.assert_close(gradient, expected, rtol=0, atol=2.1 * tolerance)
    return expected_loss


@pytest.mark.parametrize(
    ("frames", "vocab_size"),
    [*itertools.product((1, 7), (2, 3, 29, 1031)), (37, 3)],
)
def test_backends_agree(device: torch.device, frames: int, vocab_size: int) -> None:
    torch.manual_seed(vocab_size * 100 + frames)
    blank_index = vocab_size // 2
    tokens = [v for v in range(vocab_size) if v != blank_index][:40]  # few, so that some repeat
    targets = int64(tokens, device)[torch.randint(0, len(tokens), (5, 17), device=device)]
    frame_lengths = int64([frames, frames, frames // 2, frames, 0], device)
    target_lengths = int64([17, 0, 2, min(frames, 5), 0], device)
    logits = 3 * torch.randn(5, frames, vocab_size, device=device)
    loss = assert_parity(
        device, logits, targets, frame_lengths, target_lengths, blank_index=blank_index
    )
    assert loss[4] == 0
    assert math.isinf(loss[0]) == (frames < 17)


@pytest.mark.parametrize(
    ("frames", "labels"), [(6, [1, 1, 2]), (5, [2, 1]), (4, []), (5, [1, 1, 1])]
)
def test_reference_is_the_sum_over_all_paths(frames: int, labels: list[int]) -> None:
    torch.manual_seed(frames)
    log_probs = torch.randn(1, frames, 3, dtype=torch.float64).log_softmax(-1)
    total = 0.0
    for path in itertools.product(range(3), repeat=frames):
        if [token for token, _ in itertools.groupby(path) if token != 0] == labels:
            total += math.exp(sum(float(log_probs[0, t, v]) for t, v in enumerate(path)))
    cpu = torch.device("cpu")
    targets = int64([labels], cpu).reshape(1, len(labels))
    loss, _ = ctc_loss_and_gradient(
        log_probs, targets, int64([frames], cpu), int64([len(labels)], cpu), 0
    )
    assert float(loss[0]) == pytest.approx(-math.log(total), rel=1e-12)


def test_reference_gradient_is_that_of_its_loss() -> None:
    class Reference(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, logits: Tensor) -> Tensor:
            loss, gradient = ctc_loss_and_gradient(logits, *arguments)
            ctx.save_for_backward(gradient)
            return loss

        @staticmethod
        def backward(ctx: Any, upstream: Tensor) -> Tensor:
            gradient: Tensor = ctx.saved_tensors[0] * upstream[:, None, None]
            return gradient

    torch.manual_seed(0)
    cpu = torch.device("cpu")
    logits = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    arguments = (int64([[2, 2], [3, 1]], cpu), int64([5, 3], cpu), int64([2, 1], cpu), 0)
    assert torch.autograd.gradcheck(Reference.apply, logits)


def test_torch_itself_agrees(device: torch.device) -> None:
    torch.manual_seed(1)
    logits = torch.randn(3, 17, 11, device=device, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(1, 11, (3, 7), device=device)
    lengths = int64([17, 16, 13], device), int64([7, 5, 6], device)
    expected = F.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1), targets, *lengths, reduction="none"
    )
    (expected_gradient,) = torch.autograd.grad(expected.sum(), logits)
    for backend in ("auto", "reference", *backends(device)):
        loss, gradient = run(logits, targets, *lengths, backend=backend)
        torch.testing.assert_close(loss, expected.detach().float(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=5e-7)


@pytest.mark.parametrize("std", [30.0, 1e4])
def test_extreme_logits(device: torch.device, std: float) -> None:
    torch.manual_seed(2)
    logits = std * torch.randn(3, 31, 13, device=device)
    targets = torch.randint(1, 13, (3, 13), device=device)
    arguments = targets, int64([31, 29, 31], device), int64([13, 11, 3], device)
    upstream = torch.ones(3, device=device)
    expected_loss, expected = run(logits, *arguments, backend="reference", upstream=upstream)
    for backend in backends(device):
        loss, gradient = run(logits, *arguments, backend=backend, upstream=upstream)
        torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-5)
        if backend != "torch" or std < 1e3:
            tolerance = 2e-3 if backend == "torch" else 5e-6
            torch.testing.assert_close(gradient, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("case", ["blank-everywhere", "spikes", "other-transcript"])
def test_long_utterances(device: torch.device, case: str) -> None:
    torch.manual_seed(3)
    targets = torch.randint(1, 17, (1, 160), device=device)
    logits = torch.randn(1, 500, 17, device=device)
    logits[:, :, 0] += 9
    if case != "blank-everywhere":
        labels = targets[0] if case == "spikes" else targets[0].roll(1)
        logits[0, 3 * torch.arange(160, device=device) + 1, labels] += 25
    loss, gradient = {}, {}
    for backend in (("numba",) if device.type == "cpu" else ()) + ("torch",):
        loss[backend], gradient[backend] = run(
            logits.double() if backend == "torch" else logits,
            targets,
            int64([500], device),
            int64([160], device),
            backend=backend,
        )
        torch.testing.assert_close(loss[backend], loss[next(iter(loss))], rtol=1e-6, atol=2e-5)
        first = next(iter(gradient.values()))
        torch.testing.assert_close(gradient[backend].float(), first.float(), rtol=0, atol=5e-6)


def test_impossible_utterances_are_infinite_with_zero_gradient(device: torch.device) -> None:
    torch.manual_seed(4)
    logits = torch.randn(5, 4, 5, device=device)
    logits[3, :, 2] = -torch.inf
    targets = int64(
        [[1, 2, 3, 4, 1], [1, 1, 1, 2, 1], [1, 2, 3, 1, 1], [2, 1, 1, 1, 1], [1] * 5], device
    )
    frame_lengths, target_lengths = int64([4, 4, 4, 4, 0], device), int64([5, 3, 3, 1, 1], device)
    for backend in ("reference", *backends(device)):
        loss, gradient = run(logits, targets, frame_lengths, target_lengths, backend=backend)
        assert loss.isinf().tolist() == [True, True, False, True, True]
        assert (loss > 0).all()
        assert (gradient[[0, 1, 3, 4]] == 0).all()
        assert gradient.isfinite().all()


def test_minus_infinity_off_the_transcript_is_only_a_smaller_vocabulary(
    device: torch.device,
) -> None:
    torch.manual_seed(5)
    logits = torch.randn(2, 11, 7, device=device)
    masked = torch.cat([logits, torch.full_like(logits[..., :1], -torch.inf)], -1)
    arguments = (
        torch.randint(1, 7, (2, 5), device=device),
        int64([11, 9], device),
        int64([5, 4], device),
    )
    for backend in ("reference", *backends(device)):
        loss, gradient = run(logits, *arguments, backend=backend)
        masked_loss, masked_gradient = run(masked, *arguments, backend=backend)
        torch.testing.assert_close(masked_loss, loss, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(masked_gradient[..., :-1], gradient, rtol=0, atol=2e-5)
        assert (masked_gradient[..., -1] == 0).all()


def test_padding_never_leaks(device: torch.device) -> None:
    torch.manual_seed(6)
    logits = torch.randn(3, 8, 5, device=device)
    frame_lengths = int64([5, 0, 8], device)
    targets = int64([[1, 2, -5], [0, 0, 0], [3, 3, 1]], device)
    arguments = targets, frame_lengths, int64([2, 0, 3], device)
    for backend in ("reference", *backends(device)):
        loss, gradient = run(logits, *arguments, backend=backend)
        assert (gradient[0, 5:] == 0).all()
        assert loss[1] == 0
        for filler in (torch.nan, torch.inf, -torch.inf):
            padded = logits.clone()
            padded[0, 5:] = filler
            padded[1] = filler
            padded_loss, padded_gradient = run(padded, *arguments, backend=backend)
            assert torch.equal(padded_loss, loss)
            assert torch.equal(padded_gradient, gradient)


def test_nan_in_a_valid_frame_shows(device: torch.device) -> None:
    logits = torch.zeros(2, 5, 4, device=device)
    logits[0, 2, 3] = torch.nan
    arguments = int64([[1], [1]], device), int64([5, 5], device), int64([1, 1], device)
    for backend in ("reference", *backends(device)):
        loss, gradient = run(logits, *arguments, backend=backend)
        assert loss.isnan().tolist() == [True, False]
        assert gradient[0].isnan().any()
        assert gradient[1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_compute_in_float32_or_better(
    device: torch.device, dtype: torch.dtype
) -> None:
    torch.manual_seed(7)
    logits = torch.randn(2, 13, 6, device=device).to(dtype)
    arguments = (
        torch.randint(1, 6, (2, 4), device=device),
        int64([13, 9], device),
        int64([4, 3], device),
    )
    upstream = torch.tensor([1.0, 2048.0], device=device)
    for backend in backends(device):
        loss, gradient = run(logits, *arguments, backend=backend, upstream=upstream)
        wide_loss, wide = run(logits.double(), *arguments, backend="reference", upstream=upstream)
        torch.testing.assert_close(loss, wide_loss, rtol=1e-6, atol=1e-6)
        rounding = 0.0 if dtype == torch.float64 else torch.finfo(dtype).eps
        torch.testing.assert_close(gradient.double(), wide, rtol=rounding, atol=1e-5 * 2048)


def test_strides_empty_batches_and_second_backward(device: torch.device) -> None:
    torch.manual_seed(8)
    logits = torch.randn(6, 9, 4, device=device)
    arguments = int64([[1, 3], [2, 2]], device), int64([9, 8], device), int64([2, 2], device)
    for backend in ("reference", *backends(device)):
        strided = logits.transpose(0, 1)[:, ::3].transpose(0, 1)
        loss, gradient = run(strided, *arguments, backend=backend)
        again, gradient_again = run(strided.contiguous(), *arguments, backend=backend)
        assert torch.equal(loss, again)
        assert torch.equal(gradient, gradient_again)
        for shape, width in (((0, 9, 4), 2), ((2, 0, 4), 0), ((2, 9, 4), 0), ((2, 9, 1), 0)):
            batch = shape[0]
            no_loss, none = run(
                torch.randn(shape, device=device),
                torch.zeros(batch, width, dtype=torch.int64, device=device),
                torch.full((batch,), shape[1], dtype=torch.int64, device=device),
                torch.zeros(batch, dtype=torch.int64, device=device),
                backend=backend,
            )
            assert no_loss.shape == (batch,)
            assert none.shape == shape
            assert (no_loss == 0).all() == (shape != (2, 9, 4) or batch == 0)

    leaf = logits[:2].clone().requires_grad_()
    loss = ctc_loss(leaf, *arguments).sum()
    (first,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    (second,) = torch.autograd.grad(2 * loss, leaf)
    assert torch.equal(second, 2 * first)


def test_bitwise_reproducible(device: torch.device) -> None:
    torch.manual_seed(9)
    logits = torch.randn(7, 37, 19, device=device)
    arguments = (
        torch.randint(1, 19, (7, 11), device=device),
        torch.randint(23, 38, (7,), device=device),
        torch.randint(0, 12, (7,), device=device),
    )
    for backend in ("numba", "torch") if device.type == "cpu" else ():
        loss, gradient = run(logits, *arguments, backend=backend)
        for _ in range(3):
            again, gradient_again = run(logits, *arguments, backend=backend)
            assert torch.equal(loss, again)
            assert torch.equal(gradient, gradient_again)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(5, 4)}, "logits"),
        ({"logits": torch.zeros(2, 5, 4, dtype=torch.int64)}, "logits"),
        ({"targets": torch.ones(2, 2, dtype=torch.int32)}, "targets"),
        ({"targets": torch.ones(3, 2, dtype=torch.int64)}, "targets"),
        ({"targets": torch.full((2, 2), 4)}, "a target outside"),
        ({"targets": torch.full((2, 2), -1)}, "a target outside"),
        ({"targets": torch.zeros(2, 2, dtype=torch.int64)}, "equal to the blank"),
        ({"frame_lengths": torch.tensor([6, 1])}, "frame_lengths"),
        ({"frame_lengths": torch.tensor([5, -1])}, "frame_lengths"),
        ({"frame_lengths": torch.tensor([5])}, "frame_lengths"),
        ({"target_lengths": torch.tensor([3, 1])}, "target_lengths"),
        ({"target_lengths": torch.tensor([1.0, 1.0])}, "target_lengths"),
        ({"blank_index": 4}, "blank_index"),
    ],
)
def test_misfits_are_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "logits": torch.zeros(2, 5, 4),
        "targets": torch.ones(2, 2, dtype=torch.int64),
        "frame_lengths": torch.tensor([5, 4]),
        "target_lengths": torch.tensor([2, 1]),
        **change,
    }
    with pytest.raises(ShapeError, match=message):
        ctc_loss(**arguments)


def test_backends_that_cannot_run_are_refused() -> None:
    logits = torch.zeros(1, 2, 3, device="meta")
    lengths = torch.zeros(1, dtype=torch.int64, device="meta")
    with pytest.raises(BackendError, match="numba"):
        ctc_loss(logits, lengths[:, None], lengths, lengths, backend="numba")
    with pytest.raises(BackendError, match="unknown backend"):
        ctc_loss(logits, lengths[:, None], lengths, lengths, backend="cuda")
