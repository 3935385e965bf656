"""Mass3 and NTDK: the support against all paths, the loss against a formula in plain Python."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from interkd.kernels.errors import ConfigError, ShapeError
from interkd.kernels.sparse import SparsePosteriors
from interkd.kernels.token_distill import TokenSupport, token_distill_loss, token_support
from tests.kernels.gradients import JUNK, int64, loss_and_gradient
from tests.kernels.posteriors import Frame, Utterances, random_utterances, sparse, valueless


def dense(frame: Frame, vocab_size: int) -> list[float]:
    """All tokens' probabilities, the tail spread evenly."""
    mass = math.fsum(frame.values())
    unkept = vocab_size - len(frame)
    scale = mass if mass > 1 or not unkept else 1.0
    share = max(0.0, 1 - mass) / unkept if unkept else 0.0
    return [frame[v] / scale if v in frame else share for v in range(vocab_size)]


# --- the support ----------------------------------------------------------------------------


def occupancy(
    utterance: Sequence[Frame], labels: list[int], vocab_size: int, blank_index: int, penalty: float
) -> list[list[float]] | None:
    """`(T, V)` by the sum over every path; None where no path collapses to the labels."""
    probs = []
    for frame in utterance:
        raw = [max(p, 1e-8) for p in dense(frame, vocab_size)]
        raw[blank_index] *= math.exp(-penalty)
        probs.append([p / sum(raw) for p in raw])
    occupied = [[0.0] * vocab_size for _ in utterance]
    total = 0.0
    for path in itertools.product(range(vocab_size), repeat=len(utterance)):
        if [token for token, _ in itertools.groupby(path) if token != blank_index] != labels:
            continue
        path_prob = math.prod(probs[t][v] for t, v in enumerate(path))
        total += path_prob
        for t, v in enumerate(path):
            occupied[t][v] += path_prob
    return [[p / total for p in row] for row in occupied] if total else None


def check_support(
    device: torch.device,
    utterances: Utterances,
    labels: list[list[int]],
    vocab_size: int,
    blank_index: int,
    penalty: float,
    **options: Any,
) -> TokenSupport:
    # What pads the targets is never read.
    width = max(map(len, labels)) + 1
    targets = int64([row + [10**6] * (width - len(row)) for row in labels], device)
    support = token_support(
        sparse(utterances, vocab_size, device, blank_index),
        targets,
        int64([len(row) for row in labels], device),
        blank_penalty=penalty,
        **options,
    )
    assert support.tokens.dtype == torch.int64
    assert support.weights.dtype == torch.float32
    assert not support.weights.requires_grad
    for b, utterance in enumerate(utterances):
        weights, tokens = support.weights[b].tolist(), support.tokens[b].tolist()
        assert not any(weights[len(utterance) :])
        occupied = occupancy(utterance, labels[b], vocab_size, blank_index, penalty)
        for t in range(len(utterance)):
            if occupied is None:
                assert weights[t] == 0
                continue
            others = [p for v, p in enumerate(occupied[t]) if v != blank_index]
            assert weights[t] == pytest.approx(max(others, default=0.0), abs=1e-5)
            if weights[t] > 0:
                assert tokens[t] != blank_index
                assert occupied[t][tokens[t]] == pytest.approx(weights[t], abs=1e-5)
    return support


@pytest.mark.parametrize("penalty", [0.0, 1.5, -0.7, 40.0])
@pytest.mark.parametrize("backend", ["auto", "reference", "torch"])
def test_support_is_that_of_all_paths(device: torch.device, penalty: float, backend: str) -> None:
    torch.manual_seed(0)
    lengths = [5, 1, 3, 0, 4, 2, 0]
    labels = [[1, 1, 2], [2], [], [], [3, 1], [1, 1], [1]]  # the last two are impossible
    for blank_index, rename in ((0, [0, 1, 2, 3]), (2, [2, 1, 0, 3])):
        utterances = random_utterances(lengths, 4, 4)
        named = [[rename[v] for v in row] for row in labels]
        support = check_support(device, utterances, named, 4, blank_index, penalty, backend=backend)
        assert support.weights.shape == (7, 5)
        assert (support.weights[[2, 5]] == 0).all()


@pytest.mark.parametrize("vocab_size", [1, 2])
def test_support_of_few_tokens(device: torch.device, vocab_size: int) -> None:
    torch.manual_seed(1)
    labels: list[list[int]] = [[], [1] * (vocab_size - 1)]
    check_support(device, random_utterances([3, 4], vocab_size, 2), labels, vocab_size, 0, 1.0)


def test_support_padded_further_is_the_same(device: torch.device) -> None:
    torch.manual_seed(2)
    utterances, labels = random_utterances([4, 3], 3, 3), [[1, 2], [2]]
    support = check_support(device, utterances, labels, 3, 0, 0.5)
    padded = check_support(device, utterances, labels, 3, 0, 0.5, frames=9, check_values=False)
    assert padded.weights.shape == (2, 9)
    torch.testing.assert_close(padded.weights[:, :4], support.weights, rtol=0, atol=1e-6)
    with pytest.raises(ShapeError, match="frame_lengths"):
        check_support(device, utterances, labels, 3, 0, 0.5, frames=3)


def test_a_penalty_widens_a_spike(device: torch.device) -> None:
    blank, spike = {0: 0.98, 1: 0.02}, {1: 0.98, 0: 0.02}
    teacher = sparse([[blank, blank, spike, blank, blank]], 3, device)
    masses = []
    for penalty in (0.0, 2.0, 5.0):
        support = token_support(
            teacher, int64([[1]], device), int64([1], device), blank_penalty=penalty
        )
        assert int(support.weights.argmax()) == 2
        masses.append(float(support.weights.sum()))
    assert masses[0] < masses[1] < masses[2]


@pytest.mark.parametrize("batch", [0, 2])
def test_support_of_nothing(device: torch.device, batch: int) -> None:
    support = token_support(
        sparse([[] for _ in range(batch)], 5, device),
        torch.ones((batch, 3), dtype=torch.int64, device=device),
        torch.full((batch,), 2, device=device),
        blank_penalty=1.0,
    )
    assert support.weights.shape == support.tokens.shape == (batch, 0)


def test_support_refuses_misfits() -> None:
    cpu = torch.device("cpu")
    teacher, lengths = sparse([[{1: 0.5}] * 2], 4, cpu), int64([1], cpu)
    for target in (0, 4, -1):
        with pytest.raises(ShapeError, match="target"):
            token_support(teacher, int64([[target]], cpu), lengths, blank_penalty=0.0)
    for penalty in (math.nan, math.inf):
        with pytest.raises(ConfigError, match="blank_penalty"):
            token_support(teacher, int64([[1]], cpu), lengths, blank_penalty=penalty)


# --- the loss -------------------------------------------------------------------------------


def log_sum_exp(values: list[float]) -> float:
    peak = max(values)
    return peak + math.log(math.fsum(math.exp(z - peak) for z in values))


def frame_loss(
    scores: list[float], frame: Frame, right: int, blank: int, rest_weight: float
) -> tuple[float, list[float]]:
    """Loss and its gradient `(V,)`, both KL over classes of members."""
    vocab_size = len(scores)
    p = dense(frame, vocab_size)
    rest = [v for v in range(vocab_size) if v not in (blank, right)]
    tail = [v for v in rest if v not in frame]
    rest_mass = math.fsum(p[v] for v in rest)
    split = [[v] for v in rest if v in frame] + ([tail] if tail else [])
    terms = [(1.0, 1.0, [[blank], [right]] + ([rest] if rest else []))]
    if rest_mass >= 1e-7:
        terms.append((rest_weight, rest_mass, split))
    loss, gradient = 0.0, [0.0] * vocab_size
    for weight, mass, classes in terms:
        total = log_sum_exp([scores[v] for members in classes for v in members])
        for members in classes:
            class_p = math.fsum(p[v] for v in members) / mass
            log_q = log_sum_exp([scores[v] for v in members]) - total
            if class_p > 0:
                loss += weight * class_p * (math.log(class_p) - log_q)
            for v in members:
                share = math.exp(scores[v] - total - log_q)
                gradient[v] += weight * (math.exp(log_q) - class_p) * share
    return loss, gradient


def expected(
    logits: Tensor,
    utterances: Utterances,
    support: TokenSupport,
    compared: list[int],
    blank_index: int,
    rest_weight: float,
) -> tuple[Tensor, Tensor]:
    """Loss `(B,)` and its gradient `(B, T, V)`, float64 on the CPU."""
    rows = logits.double().cpu().tolist()
    tokens, weights = support.tokens.tolist(), support.weights.tolist()
    loss = [0.0] * len(rows)
    gradient = torch.zeros(logits.shape, dtype=torch.float64)
    for b, utterance in enumerate(utterances):
        for t in range(min(len(utterance), len(rows[b]), compared[b])):
            if weights[b][t] > 0:
                one, slope = frame_loss(
                    rows[b][t], utterance[t], tokens[b][t], blank_index, rest_weight
                )
                loss[b] += weights[b][t] * one
                gradient[b, t] = weights[b][t] * torch.tensor(slope, dtype=torch.float64)
    return torch.tensor(loss, dtype=torch.float64), gradient


def run(
    logits: Tensor,
    teacher: SparsePosteriors,
    support: TokenSupport,
    compared: list[int],
    upstream: list[float],
    **options: Any,
) -> tuple[Tensor, Tensor]:
    lengths = int64(compared, logits.device)
    loss, gradient = loss_and_gradient(
        lambda leaf: token_distill_loss(leaf, teacher, support, lengths, **options),
        logits,
        upstream,
    )
    return loss.cpu(), gradient.cpu()


def random_support(
    batch: int, frames: int, vocab_size: int, blank_index: int, device: torch.device
) -> TokenSupport:
    """Any right tokens, kept by the teacher or not; a third of the frames are the blank's."""
    weights = torch.rand(batch, frames, device=device)
    tokens = torch.randint(1, vocab_size, (batch, frames), device=device)
    return TokenSupport(
        tokens=(tokens + blank_index) % vocab_size,
        weights=weights.masked_fill(torch.rand(batch, frames, device=device) < 0.3, 0),
    )


def check(
    logits: Tensor,
    utterances: Utterances,
    support: TokenSupport,
    compared: list[int],
    blank_index: int = 0,
    rest_weight: float = 1.0,
    tolerance: float = 5e-6,
) -> None:
    upstream = [0.7, -1.3, 2.1, 1.0, 0.25][: len(utterances)]
    teacher = sparse(utterances, logits.shape[2], logits.device, blank_index)
    loss, gradient = run(logits, teacher, support, compared, upstream, rest_weight=rest_weight)
    right_loss, right_gradient = expected(
        logits, utterances, support, compared, blank_index, rest_weight
    )
    right_gradient *= torch.tensor(upstream)[:, None, None]
    torch.testing.assert_close(loss, right_loss.float(), rtol=1e-5, atol=5e-6)
    torch.testing.assert_close(gradient.double(), right_gradient, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("frames", "vocab_size", "most"), [(1, 2, 2), (7, 3, 2), (7, 5, 5), (11, 29, 29), (13, 31, 4)]
)
@pytest.mark.parametrize(("std", "rest_weight"), [(1.0, 1.0), (30.0, 0.3), (1e4, 1.0)])
def test_values_and_gradient(
    device: torch.device, frames: int, vocab_size: int, most: int, std: float, rest_weight: float
) -> None:
    torch.manual_seed(frames + vocab_size)
    lengths = [frames, 0, max(0, frames - 1), frames + 1, frames]
    compared = [frames, 0, max(0, frames - 1), frames, frames // 2]
    for blank_index, supported in ((0, frames), (vocab_size - 1, frames + 1), (1, frames - 1)):
        utterances = random_utterances(lengths, vocab_size, most)
        support = random_support(5, supported, vocab_size, blank_index, device)
        # Frames that the support lacks have no weight.
        padded = TokenSupport(
            tokens=torch.nn.functional.pad(support.tokens, (0, 1)),
            weights=torch.nn.functional.pad(support.weights, (0, 1)),
        )
        logits = std * torch.randn(5, frames, vocab_size, device=device)
        check(logits, utterances, padded, compared, blank_index, rest_weight)
        teacher = sparse(utterances, vocab_size, device, blank_index)
        short, long = (
            run(logits, teacher, each, compared, [1.0] * 5) for each in (support, padded)
        )
        assert torch.equal(short[0], long[0])
        assert torch.equal(short[1], long[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_and_strides(device: torch.device, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    utterances = random_utterances([5, 3], 11, 4)
    support = random_support(2, 5, 11, 0, device)
    logits = torch.randn(11, 5, 4, device=device).to(dtype).permute(2, 1, 0)[::2]
    check(logits, utterances, support, [5, 3], tolerance=5e-6 + torch.finfo(dtype).eps)


@pytest.mark.parametrize(("vocab_size", "most"), [(2, 2), (7, 7), (31, 4)])
def test_zero_at_the_teacher(device: torch.device, vocab_size: int, most: int) -> None:
    """Wherever the tail's mass lies among the tokens that are in no other class."""
    torch.manual_seed(2)
    utterances = random_utterances([9, 6], vocab_size, most)
    probs = torch.zeros(2, 9, vocab_size)
    for b, utterance in enumerate(utterances):
        for t, frame in enumerate(utterance):
            probs[b, t] = torch.tensor(dense(frame, vocab_size))
    logits = probs.log().to(device)
    support = random_support(2, 9, vocab_size, 0, device)
    teacher = sparse(utterances, vocab_size, device)
    loss, gradient = run(logits, teacher, support, [9, 6], [1.0, 1.0])
    assert loss.abs().max() < 5e-6
    assert gradient.abs().max() < 2e-6
    worse, _ = run(logits + torch.randn_like(logits), teacher, support, [9, 6], [1.0, 1.0])
    assert (worse > 1e-3).all()


def test_the_tail_is_one_class(device: torch.device) -> None:
    teacher = sparse([[{0: 0.3, 1: 0.4, 2: 0.1}]], 6, device)
    support = TokenSupport(
        tokens=int64([[1]], device), weights=torch.tensor([[0.8]], device=device)
    )
    probs = torch.tensor([[[0.3, 0.4, 0.1, 0.15, 0.03, 0.02]]], device=device)
    loss, gradient = run(probs.log(), teacher, support, [1], [1.0])
    assert abs(float(loss)) < 1e-6
    assert gradient.abs().max() < 1e-6


def test_a_rest_without_mass_teaches_nothing(device: torch.device) -> None:
    torch.manual_seed(3)
    logits = torch.randn(1, 4, 5, device=device)
    frames: list[Frame] = [
        {0: 0.25, 1: 0.75},
        {1: 1.0},
        {0: 0.5, 1: 0.5 + 1e-6},
        {0: 0.25, 1: 0.75, 2: 0.0, 3: 0.0, 4: 0.0},
    ]
    support = TokenSupport(
        tokens=torch.ones(1, 4, dtype=torch.int64, device=device),
        weights=torch.ones(1, 4, device=device),
    )
    teacher = sparse([frames], 5, device)
    alone = run(logits, teacher, support, [4], [1.0], rest_weight=0.0)
    both = run(logits, teacher, support, [4], [1.0], rest_weight=1.0)
    assert torch.equal(alone[0], both[0])
    assert torch.equal(alone[1], both[1])
    check(logits, [frames], support, [4])


@pytest.mark.parametrize("std", [1e4, 1e6])
def test_extreme_logits_have_a_finite_gradient(device: torch.device, std: float) -> None:
    """The student is certain of one token, and each class in turn holds none of its mass."""
    torch.manual_seed(4)
    frame = {0: 0.2, 1: 0.5, 2: 0.1, 3: 0.05}
    support = TokenSupport(
        tokens=torch.ones(1, 6, dtype=torch.int64, device=device),
        weights=torch.full((1, 6), 0.9, device=device),
    )
    logits = torch.where(torch.eye(6, device=device) > 0, std, -std)[None]
    loss, gradient = run(logits, sparse([[frame] * 6], 6, device), support, [6], [1.0])
    assert loss.isfinite().all()
    assert gradient.isfinite().all()
    check(logits, [[frame] * 6], support, [6])


@pytest.mark.parametrize("offset", [1e4, -1e4])
def test_a_common_offset_costs_no_digits(device: torch.device, offset: float) -> None:
    torch.manual_seed(7)
    utterances = random_utterances([7], 13, 5)
    logits = 3 * torch.randn(1, 7, 13, device=device) + offset
    check(logits, utterances, random_support(1, 7, 13, 0, device), [7])


def test_a_tail_far_below_the_rest_keeps_its_gradient(device: torch.device) -> None:
    """Where 1 - q has no digits left, log-sum-exp has them all."""
    frame = {0: 0.3, 1: 0.5, 2: 0.1}
    logits = torch.tensor([[[50.0, 51.0, -30.0, -50.0, -51.0]]], device=device)
    support = TokenSupport(tokens=int64([[1]], device), weights=torch.ones(1, 1, device=device))
    check(logits, [[frame]], support, [1])


def test_frames_that_do_not_count_never_leak(device: torch.device) -> None:
    torch.manual_seed(5)
    utterances = random_utterances([5, 2], 5, 4)
    teacher = sparse(utterances, 5, device)
    weights = torch.tensor([[0.5, 0.0, 1.0, 0.2, 0.3, 0.4], [0.6] * 6], device=device)
    support = TokenSupport(tokens=torch.randint(1, 5, (2, 6), device=device), weights=weights)
    logits = torch.randn(2, 6, 5, device=device)
    counted = torch.zeros(2, 6, dtype=torch.bool, device=device)
    counted[0, 0] = counted[0, 2] = counted[0, 3] = counted[1, 0] = counted[1, 1] = True
    # Beyond what is compared, beyond what the teacher has, and what the blank owns.
    clean_loss, clean_gradient = run(logits, teacher, support, [4, 6], [1.0, 3.0])
    for junk in JUNK:
        filled = torch.where(counted[:, :, None], logits, junk)
        loss, gradient = run(filled, teacher, support, [4, 6], [1.0, 3.0])
        assert torch.equal(loss, clean_loss)
        assert torch.equal(gradient, clean_gradient)
        assert (gradient[~counted.cpu()] == 0).all()
        assert (gradient[counted.cpu()] != 0).any(1).all()


@pytest.mark.parametrize("shape", [(0, 3, 5), (2, 0, 5), (2, 3, 5)])
def test_nothing_to_compare(device: torch.device, shape: tuple[int, int, int]) -> None:
    batch, frames, _ = shape
    support = random_support(batch, frames, 5, 0, device)
    teacher = sparse([[] for _ in range(batch)], 5, device)
    loss, gradient = run(
        torch.randn(shape, device=device), teacher, support, [frames] * batch, [1.0] * batch
    )
    assert loss.shape == shape[:1]
    assert (loss == 0).all()
    assert (gradient == 0).all()


def test_bitwise_reproducible(device: torch.device) -> None:
    torch.manual_seed(6)
    teacher = sparse(random_utterances([17, 11], 37, 7), 37, device)
    targets, lengths = torch.randint(1, 37, (2, 5), device=device), int64([5, 3], device)
    logits = torch.randn(2, 17, 37, device=device)
    runs = []
    for _ in range(2):
        support = token_support(teacher, targets, lengths, blank_penalty=1.0)
        runs.append((support.weights, *run(logits, teacher, support, [17, 11], [1.0, 2.0])))
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


def test_no_size_depends_on_values(device: torch.device) -> None:
    """Tensors without data: whatever looked at a value, and so waited for a GPU, would raise."""
    with FakeTensorMode():
        logits = torch.zeros(2, 9, 7, device=device, requires_grad=True)
        support = random_support(2, 10, 7, 0, device)
        lengths = torch.zeros(2, dtype=torch.int64, device=device)
        loss = token_distill_loss(logits, valueless(device), support, lengths)
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert gradient.shape == logits.shape


def test_misfits_are_refused() -> None:
    cpu = torch.device("cpu")
    support = random_support(2, 1, 4, 0, cpu)
    fits = {
        "logits": torch.zeros(2, 1, 4),
        "teacher": sparse([[{1: 0.5}], [{2: 0.5}]], 4, cpu),
        "support": support,
        "compared_lengths": torch.tensor([1, 1]),
    }
    refused: list[tuple[str, dict[str, Any]]] = [
        ("logits", {"logits": torch.zeros(2, 4)}),
        ("tokens", {"logits": torch.zeros(2, 1, 5)}),
        ("compared_lengths", {"compared_lengths": torch.tensor([1])}),
        ("support.tokens", {"support": random_support(3, 1, 4, 0, cpu)}),
        (
            "support.weights",
            {"support": TokenSupport(tokens=support.tokens, weights=torch.ones(2, 2))},
        ),
    ]
    for message, change in refused:
        arguments: dict[str, Any] = {**fits, **change}
        with pytest.raises(ShapeError, match=message):
            token_distill_loss(**arguments)
