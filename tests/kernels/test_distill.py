"""Sparse divergence: every backend against the float64 reference, the reference against torch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from interkd.kernels.distill import sparse_divergence
from interkd.kernels.errors import BackendError, ConfigError, ShapeError
from interkd.kernels.reference.distill import divergence_and_gradient
from interkd.kernels.sparse import SparsePosteriors
from tests.kernels.gradients import backends, loss_and_gradient, racing_backends
from tests.kernels.posteriors import random_utterances, sparse

RELATIVE, ABSOLUTE = 1e-5, 3e-6  # loss: both; gradient: absolute
PAIRS = list(itertools.product(("kl", "l2"), ("bucket", "uniform", "renormalise")))
SETTINGS = [(*pair, temperature) for pair in PAIRS for temperature in (1.0, 2.5)]
every_setting = pytest.mark.parametrize(("divergence", "tail", "temperature"), SETTINGS)


def random_teacher(
    frame_lengths: Sequence[int], vocab_size: int, most: int, device: torch.device
) -> SparsePosteriors:
    """Peaky frames with 0 to `most` entries, their tokens in no order."""
    return sparse(random_utterances(frame_lengths, vocab_size, most), vocab_size, device)


def run(
    logits: Tensor, teacher: SparsePosteriors, frame_lengths: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    upstream = options.pop("upstream", None)
    return loss_and_gradient(
        lambda leaf: sparse_divergence(leaf, teacher, frame_lengths, **options), logits, upstream
    )


@pytest.mark.parametrize(
    ("vocab_size", "most", "std", "divergence", "tail", "temperature"),
    [
        *((*shape, *setting) for shape in ((3, 2, 2.0), (29, 5, 30.0)) for setting in SETTINGS),
        *(
            # Each size and each pair once more, with one temperature or the other.
            (*shape, *pair, (1.0, 2.5)[number % 2])
            for shape in ((2, 2, 1.0), (29, 29, 3.0), (1031, 9, 3.0))
            for number, pair in enumerate(PAIRS, start=shape[0] // 1000)
        ),
    ],
)
def test_backends_agree(
    device: torch.device,
    vocab_size: int,
    most: int,
    std: float,
    divergence: str,
    tail: str,
    temperature: float,
) -> None:
    torch.manual_seed(vocab_size)
    teacher = random_teacher([3, 0, 4, 1], vocab_size, most, device)
    logits = std * torch.randn(4, 5, vocab_size, device=device)
    options: dict[str, Any] = {
        "divergence": divergence,
        "tail": tail,
        "temperature": temperature,
        "selected": torch.rand(8, device=device) < 0.8,
        "upstream": torch.tensor([1.7, 1.0, 0.25, -1.0], device=device),
    }
    frame_lengths = torch.tensor([2, 0, 4, 1], device=device)
    expected_loss, expected = run(logits, teacher, frame_lengths, backend="reference", **options)
    for backend in backends(device):
        loss, gradient = run(logits, teacher, frame_lengths, backend=backend, **options)
        torch.testing.assert_close(loss, expected_loss, rtol=RELATIVE, atol=ABSOLUTE)
        torch.testing.assert_close(gradient, expected, rtol=0, atol=ABSOLUTE)


def dense_divergence(logits: Tensor, probs: Tensor, divergence: str, temperature: float) -> Tensor:
    p = (probs.log() / temperature).softmax(-1)
    log_q = (logits / temperature).log_softmax(-1)
    if divergence == "l2":
        return (p - log_q.exp()).square().sum((1, 2))
    return torch.nn.functional.kl_div(log_q, p, reduction="none").sum((1, 2))


@every_setting
def test_everything_kept_is_the_dense_divergence(
    device: torch.device, divergence: str, tail: str, temperature: float
) -> None:
    torch.manual_seed(1)
    probs = (2 * torch.randn(2, 3, 7, device=device)).softmax(-1)
    teacher = sparse(
        [[dict(enumerate(frame)) for frame in utterance] for utterance in probs.tolist()], 7, device
    )
    logits = torch.randn(2, 3, 7, device=device, requires_grad=True)
    expected = dense_divergence(logits, probs, divergence, temperature)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), logits)
    for backend in ("auto", "reference", *backends(device)):
        loss, gradient = run(
            logits,
            teacher,
            torch.tensor([3, 3], device=device),
            divergence=divergence,
            tail=tail,
            temperature=temperature,
            backend=backend,
        )
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-6)


@every_setting
def test_zero_where_the_student_equals_the_teacher(
    device: torch.device, divergence: str, tail: str, temperature: float
) -> None:
    probs = torch.tensor([0.6, 0.2, 0.05, 0.05, 0.05, 0.05], device=device)
    teacher = sparse([[{1: 0.2, 0: 0.6}]], 6, device)
    for backend in ("reference", *backends(device)):
        loss, gradient = run(
            probs.log()[None, None],
            teacher,
            torch.tensor([1], device=device),
            divergence=divergence,
            tail=tail,
            temperature=temperature,
            backend=backend,
        )
        assert abs(float(loss[0])) < 1e-6
        assert float(gradient.abs().max()) < 1e-6


def test_tail_conventions_by_hand(device: torch.device) -> None:
    teacher = sparse([[{0: 0.7, 2: 0.2}]], 4, device)
    q = torch.tensor([0.4, 0.1, 0.3, 0.2], device=device)
    classes = {
        "bucket": ([0.7, 0.2, 0.1], [0.4, 0.3, 0.3]),
        "uniform": ([0.7, 0.05, 0.2, 0.05], [0.4, 0.1, 0.3, 0.2]),
        "renormalise": ([7 / 9, 2 / 9], [4 / 7, 3 / 7]),
    }
    for tail, (p_classes, q_classes) in classes.items():
        p, r = torch.tensor(p_classes), torch.tensor(q_classes)
        expected = {"kl": (p * (p / r).log()).sum(), "l2": (p - r).square().sum()}
        for backend, divergence in itertools.product(
            ("reference", *backends(device)), ("kl", "l2")
        ):
            loss, _ = run(
                q.log()[None, None],
                teacher,
                torch.tensor([1], device=device),
                divergence=divergence,
                tail=tail,
                backend=backend,
            )
            assert float(loss[0]) == pytest.approx(float(expected[divergence]), rel=1e-5)


@every_setting
def test_reference_gradient_is_that_of_its_loss(
    divergence: str, tail: str, temperature: float
) -> None:
    torch.manual_seed(2)
    teacher = random_teacher([3, 2], 6, 4, torch.device("cpu"))
    rest = (torch.tensor([3, 2]), torch.ones(5, dtype=torch.bool), divergence, tail, temperature)

    class Reference(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, logits: Tensor) -> Tensor:
            loss, gradient = divergence_and_gradient(logits, teacher, *rest)
            ctx.save_for_backward(gradient)
            return loss

        @staticmethod
        def backward(ctx: Any, upstream: Tensor) -> Tensor:
            gradient: Tensor = ctx.saved_tensors[0] * upstream[:, None, None]
            return gradient

    logits = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Reference.apply, logits)


@every_setting
def test_tail_of_the_student_underflows(
    device: torch.device, divergence: str, tail: str, temperature: float
) -> None:
    teacher = sparse([[{0: 0.5, 3: 0.25}, {1: 0.9}]], 5, device)
    logits = torch.tensor([[[400.0, 1, 0, 390, 2], [-300, 500, -301, -302, -303]]], device=device)
    options: dict[str, Any] = {"divergence": divergence, "tail": tail, "temperature": temperature}
    lengths = torch.tensor([2], device=device)
    expected_loss, expected = run(logits, teacher, lengths, backend="reference", **options)
    assert expected_loss.isfinite().all()
    assert divergence == "l2" or tail == "renormalise" or expected_loss[0] > 100 / temperature
    for backend in backends(device):
        loss, gradient = run(logits, teacher, lengths, backend=backend, **options)
        torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(gradient, expected, rtol=0, atol=ABSOLUTE)


@every_setting
def test_minus_infinity_logits(
    device: torch.device, divergence: str, tail: str, temperature: float
) -> None:
    teacher = sparse([[{0: 1.0}], [{0: 0.9}], [{0: 0.5, 1: 0.5}], [{0: 0.6, 2: 0.41}]], 4, device)
    ninf = -torch.inf
    logits = torch.tensor(
        [[[1.0, ninf, 0, ninf]], [[1, ninf, ninf, ninf]], [[1, ninf, 0, 0]], [[0, ninf, 1, ninf]]],
        device=device,
    )
    options: dict[str, Any] = {"divergence": divergence, "tail": tail, "temperature": temperature}
    lengths = torch.ones(4, dtype=torch.int64, device=device)
    expected_loss, expected = run(logits, teacher, lengths, backend="reference", **options)
    assert not expected_loss.isnan().any()
    assert expected.isfinite().all()
    infinite = [False, tail != "renormalise", True, False] if divergence == "kl" else [False] * 4
    assert expected_loss.isinf().tolist() == infinite
    for backend in backends(device):
        loss, gradient = run(logits, teacher, lengths, backend=backend, **options)
        torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient, expected, rtol=0, atol=ABSOLUTE)
        assert (gradient[loss.isinf()] == 0).all()


@every_setting
def test_kept_mass_that_rounds_above_one_or_is_zero(
    device: torch.device, divergence: str, tail: str, temperature: float
) -> None:
    teacher = sparse([[{0: 0.8, 1: 0.21}, {2: 0.0}, {}, {0: 1.0, 1: 0.0}]], 5, device)
    torch.manual_seed(3)
    logits = torch.randn(1, 4, 5, device=device)
    options: dict[str, Any] = {"divergence": divergence, "tail": tail, "temperature": temperature}
    lengths = torch.tensor([4], device=device)
    expected_loss, expected = run(logits, teacher, lengths, backend="reference", **options)
    assert expected_loss.isfinite().all()
    for backend in backends(device):
        loss, gradient = run(logits, teacher, lengths, backend=backend, **options)
        torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient, expected, rtol=0, atol=ABSOLUTE)


@pytest.mark.parametrize("tail", ["bucket", "uniform", "renormalise"])
def test_padding_and_unselected_frames_never_leak(device: torch.device, tail: str) -> None:
    torch.manual_seed(4)
    teacher = random_teacher([4, 2, 2], 7, 4, device)
    logits = torch.randn(3, 4, 7, device=device)
    selected = torch.ones(8, dtype=torch.bool, device=device)
    selected[1] = False
    lengths = torch.tensor([3, 2, 0], device=device)
    padded = logits.clone()
    padded[0, 3:] = torch.nan
    padded[1, 2:] = torch.inf
    padded[2] = torch.nan
    padded[0, 1] = torch.nan
    for backend, divergence in itertools.product(("reference", *backends(device)), ("kl", "l2")):
        options: dict[str, Any] = {"divergence": divergence, "tail": tail, "selected": selected}
        loss, gradient = run(logits, teacher, lengths, backend=backend, **options)
        padded_loss, padded_gradient = run(padded, teacher, lengths, backend=backend, **options)
        assert torch.equal(loss, padded_loss)
        assert torch.equal(gradient, padded_gradient)
        assert (gradient[0, 1] == 0).all()
        assert (gradient[0, 3:] == 0).all()
        assert loss[2] == 0


def test_nan_in_a_compared_frame_shows(device: torch.device) -> None:
    teacher = sparse([[{0: 0.5, 1: 0.2}], [{0: 0.5}]], 4, device)
    logits = torch.zeros(2, 1, 4, device=device)
    logits[0, 0, 1] = torch.nan
    lengths = torch.tensor([1, 1], device=device)
    for backend, (divergence, tail, temperature) in itertools.product(
        ("reference", *backends(device)), SETTINGS
    ):
        loss, gradient = run(
            logits,
            teacher,
            lengths,
            divergence=divergence,
            tail=tail,
            temperature=temperature,
            backend=backend,
        )
        assert loss.isnan().tolist() == [True, False]
        assert gradient[1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_and_strides(device: torch.device, dtype: torch.dtype) -> None:
    torch.manual_seed(5)
    teacher = random_teacher([5, 3], 11, 4, device)
    logits = torch.randn(11, 5, 4, device=device).to(dtype).permute(2, 1, 0)[::2]
    lengths = torch.tensor([5, 3], device=device)
    upstream = torch.tensor([1.0, 1024.0], device=device)
    for backend, tail in itertools.product(backends(device), ("bucket", "uniform")):
        loss, gradient = run(
            logits, teacher, lengths, tail=tail, backend=backend, upstream=upstream
        )
        expected_loss, expected = run(
            logits.double(), teacher, lengths, tail=tail, backend="reference", upstream=upstream
        )
        torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-6)
        rounding = 0.0 if dtype == torch.float64 else torch.finfo(dtype).eps
        torch.testing.assert_close(gradient.double(), expected, rtol=rounding, atol=1024 * ABSOLUTE)


@pytest.mark.parametrize("shape", [(0, 3, 5), (2, 0, 5), (2, 3, 5)])
def test_nothing_to_compare(device: torch.device, shape: tuple[int, int, int]) -> None:
    teacher = sparse([[] for _ in range(shape[0])], 5, device)
    lengths = torch.zeros(shape[0], dtype=torch.int64, device=device)
    for backend, (divergence, tail) in itertools.product(("reference", *backends(device)), PAIRS):
        loss, gradient = run(
            torch.randn(shape, device=device),
            teacher,
            lengths,
            divergence=divergence,
            tail=tail,
            backend=backend,
        )
        assert loss.shape == shape[:1]
        assert (loss == 0).all()
        assert (gradient == 0).all()


@every_setting
def test_bitwise_reproducible(
    device: torch.device, divergence: str, tail: str, temperature: float
) -> None:
    torch.manual_seed(6)
    teacher = random_teacher([17, 11], 37, 7, device)
    logits = torch.randn(2, 17, 37, device=device)
    lengths = torch.tensor([17, 11], device=device)
    options: dict[str, Any] = {"divergence": divergence, "tail": tail, "temperature": temperature}
    for backend in racing_backends(device):
        first = run(logits, teacher, lengths, backend=backend, **options)
        second = run(logits, teacher, lengths, backend=backend, **options)
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])


def test_misfits_are_refused() -> None:
    cpu = torch.device("cpu")
    teacher = sparse([[{0: 0.5}, {1: 0.5}], [{2: 0.5}]], 4, cpu)
    logits, lengths = torch.zeros(2, 2, 4), torch.tensor([2, 1])
    refused: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ShapeError, "tokens", {"logits": torch.zeros(2, 2, 5)}),
        (ShapeError, "logits", {"logits": torch.zeros(2, 4)}),
        (
            ShapeError,
            "frame_offsets",
            {"logits": torch.zeros(1, 2, 4), "frame_lengths": lengths[:1]},
        ),
        (ShapeError, "teacher's frames", {"frame_lengths": torch.tensor([2, 2])}),
        (ShapeError, "logits' frames", {"frame_lengths": torch.tensor([3, 1])}),
        (ShapeError, "compared_lengths", {"frame_lengths": torch.tensor([-1, 1])}),
        (ShapeError, "compared_lengths", {"frame_lengths": torch.tensor([2.0, 1.0])}),
        (ShapeError, "selected", {"selected": torch.ones(2, dtype=torch.bool)}),
        (ConfigError, "divergence", {"divergence": "cross-entropy"}),
        (ConfigError, "tail", {"tail": "drop"}),
        (ConfigError, "temperature", {"temperature": 0.0}),
        (BackendError, "backend", {"backend": "cuda"}),
    ]
    for error, message, change in refused:
        arguments: dict[str, Any] = {"logits": logits, "frame_lengths": lengths, **change}
        with pytest.raises(error, match=message):
            sparse_divergence(teacher=teacher, **arguments)
    for column, values in (
        ("tokens", torch.tensor([0, 1, 4], dtype=torch.int32)),
        ("entry_offsets", torch.tensor([0, 2, 1, 3])),
        ("frame_offsets", torch.tensor([0, 2, 4])),
    ):
        columns = {name: getattr(teacher, name) for name in teacher.__dataclass_fields__}
        broken = SparsePosteriors(**{**columns, column: values})
        with pytest.raises(ShapeError, match="teacher"):
            sparse_divergence(logits, broken, lengths)
