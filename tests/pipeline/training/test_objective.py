"""Every recipe against its written formula, on the float64 reference kernels."""

from __future__ import annotations

import pytest
import torch

from interkd.kernels.consistency import consistency_loss
from interkd.kernels.ctc import ctc_loss
from interkd.kernels.distill import sparse_divergence
from interkd.kernels.errors import ConfigError, FrameCountError
from interkd.kernels.guided import guided_loss
from interkd.kernels.sparse import SparsePosteriors
from interkd.kernels.token_distill import token_distill_loss, token_support
from interkd.pipeline.students.model import StudentOutput
from interkd.pipeline.training.data import compared_lengths
from interkd.pipeline.training.objective import Objective
from interkd.pipeline.training.recipes import (
    RECIPES,
    ObjectiveConfig,
    uses_intermediate_heads,
    uses_teacher,
)

HEADS = ("layer1", "layer2", "final")
VOCAB = 6


class Example:
    """Three utterances, three heads, a sparse teacher with one frame more or fewer.

    With two views each utterance is there twice, with other logits.
    """

    def __init__(self, device: torch.device, *, views: int = 1) -> None:
        generator = torch.Generator().manual_seed(3)
        self.frames = torch.tensor([9, 7, 4])
        self.targets = torch.tensor([[1, 2, 2, 5], [3, 1, 0, 0], [4, 0, 0, 0]])
        self.target_lengths = torch.tensor([4, 2, 1])
        self.logits = tuple(torch.randn(3, 9, VOCAB, generator=generator) for _ in HEADS)
        if views == 2:
            self.logits = tuple(
                torch.cat([logits, torch.randn(3, 9, VOCAB, generator=generator)])
                for logits in self.logits
            )
        teacher_frames = torch.tensor([9, 8, 3])
        log_probs = torch.randn(20, VOCAB, generator=generator).mul(2).log_softmax(-1)
        counts = torch.arange(20) % 3 + 1
        order = log_probs[:, 1:].argsort(descending=True) + 1
        rows = [[0, *row[: int(n) - 1].tolist()] for row, n in zip(order, counts, strict=True)]
        rows = [
            sorted(row, key=lambda t: -float(frame[t]))
            for row, frame in zip(rows, log_probs, strict=True)
        ]
        tokens = torch.tensor([token for row in rows for token in row], dtype=torch.int32)
        kept = torch.cat([log_probs[i, row] for i, row in enumerate(rows)])
        self.compared = torch.tensor([9, 7, 3])
        for name in ("frames", "targets", "target_lengths", "compared"):
            column = getattr(self, name)
            setattr(self, name, column.repeat(views, *[1] * (column.ndim - 1)).to(device))
        teacher_frames, counts = teacher_frames.repeat(views), counts.repeat(views)
        tokens, kept = tokens.repeat(views), kept.repeat(views)
        zero = torch.zeros(1, dtype=torch.int64)
        self.teacher = SparsePosteriors(
            frame_offsets=torch.cat([zero, teacher_frames.cumsum(0)]),
            entry_offsets=torch.cat([zero, counts.cumsum(0)]),
            tokens=tokens,
            log_probs=kept,
            vocab_size=VOCAB,
        ).to(device)
        self.logits = tuple(logits.to(device).requires_grad_() for logits in self.logits)

    def loss(self, config: ObjectiveConfig) -> torch.Tensor:
        objective = Objective(config, HEADS, blank_index=0)
        output = StudentOutput(self.logits, self.frames)
        teacher = self.teacher if uses_teacher(config) else None
        return objective(output, self.targets, self.target_lengths, teacher, self.compared).total

    def ctc(self, head: int) -> torch.Tensor:
        return ctc_loss(
            self.logits[head], self.targets, self.frames, self.target_lengths, backend="reference"
        ).double()

    def divergence(self, head: int, kind: str, tail: str = "bucket") -> torch.Tensor:
        return sparse_divergence(
            self.logits[head],
            self.teacher,
            self.compared,
            divergence=kind,
            tail=tail,
            backend="reference",
        ).double()

    def guided(self, head: int) -> torch.Tensor:
        return guided_loss(self.logits[head], self.teacher, self.compared).double()

    def mass3_ntdk(self, head: int) -> torch.Tensor:
        support = token_support(
            self.teacher, self.targets, self.target_lengths, blank_penalty=2.0, backend="torch"
        )
        return token_distill_loss(self.logits[head], self.teacher, support, self.compared).double()

    def consistency(self, head: int) -> torch.Tensor:
        """For each row its pair's: the mean over rows is the mean over utterances."""
        return consistency_loss(self.logits[head], self.frames).repeat(2).double()


@pytest.fixture
def example(device: torch.device) -> Example:
    return Example(device)


def written_formula(example: Example, recipe: str) -> torch.Tensor:
    """The loss a utterance, as methods and papers write it."""
    ctc, kl = example.ctc, example.divergence
    if recipe == "ctc":
        return ctc(2)
    if recipe == "inter-ctc":
        return 0.7 * ctc(2) + 0.3 * (ctc(0) + ctc(1)) / 2
    if recipe == "skd":
        return ctc(2) + 0.25 * kl(2, "l2")
    if recipe == "kl":
        return ctc(2) + 0.25 * kl(2, "kl")
    if recipe == "inter-ctc-skd":
        return ctc(0) + ctc(1) + ctc(2) + 0.25 * kl(2, "l2")
    if recipe == "inter-ctc-kl":
        return ctc(0) + ctc(1) + ctc(2) + 0.25 * kl(2, "kl")
    if recipe == "inter-kd":
        return sum(ctc(h) + 0.25 * kl(h, "l2") for h in range(3))  # type: ignore[return-value]
    if recipe == "inter-kd-kl":
        return sum(ctc(h) + 0.25 * kl(h, "kl") for h in range(3))  # type: ignore[return-value]
    if recipe == "self-conditioned":
        return 0.5 * ctc(2) + 0.5 * (ctc(0) + ctc(1)) / 2
    if recipe == "guided":
        return ctc(2) + example.guided(2)
    if recipe == "mass3-ntdk":
        return ctc(2) + example.mass3_ntdk(2)
    if recipe == "inter-mass3-ntdk":
        return sum(ctc(h) + example.mass3_ntdk(h) for h in range(3))  # type: ignore[return-value]
    if recipe == "cr-ctc":
        return ctc(2) + 0.2 * example.consistency(2)
    if recipe == "inter-kd-cr":
        return sum(  # type: ignore[return-value]
            ctc(h) + 0.25 * kl(h, "l2") + 0.2 * example.consistency(h) for h in range(3)
        )
    if recipe == "inter-kd-kl-cr":
        return sum(  # type: ignore[return-value]
            ctc(h) + 0.25 * kl(h, "kl") + 0.2 * example.consistency(h) for h in range(3)
        )
    assert recipe == "kd-only"
    return sum(kl(h, "kl") for h in range(3))  # type: ignore[return-value]


def gradients_of(loss: torch.Tensor, example: Example) -> tuple[torch.Tensor, ...]:
    """Gradients on the logits of all heads, zeros where the loss does not reach one."""
    return torch.autograd.grad(loss, example.logits, materialize_grads=True)


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_recipe_is_its_formula(device: torch.device, recipe: str) -> None:
    config = ObjectiveConfig(recipe=recipe)
    example = Example(device, views=config.views)
    loss = example.loss(config)
    expected = written_formula(example, recipe).mean()
    torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=0)
    gradients = gradients_of(loss, example)
    for got, want in zip(gradients, gradients_of(expected, example), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize(
    ("normalisation", "divisor"), [("utterance", 3), ("frame", 20), ("token", 7)]
)
def test_normalisation(example: Example, normalisation: str, divisor: int) -> None:
    config = ObjectiveConfig(recipe="inter-kd", normalisation=normalisation)
    expected = written_formula(example, "inter-kd").sum() / divisor
    torch.testing.assert_close(example.loss(config).double(), expected, rtol=2e-6, atol=0)


def test_weights_and_divergence_depart_from_the_recipe(example: Example) -> None:
    config = ObjectiveConfig(
        recipe="inter-kd",
        final_ctc_weight=0.5,
        inter_ctc_weight=0.0,
        distill_weight=2.0,
        divergence="kl",
        tail="uniform",
    )
    expected = 0.5 * example.ctc(2)
    for head in range(3):
        expected = expected + 2.0 * example.divergence(head, "kl", "uniform")
    torch.testing.assert_close(example.loss(config).double(), expected.mean(), rtol=2e-6, atol=0)


def test_frame_selection_leaves_frames_out(example: Example) -> None:
    everything = example.loss(ObjectiveConfig(recipe="kd-only"))
    spikes = example.loss(ObjectiveConfig(recipe="kd-only", frames="non-blank"))
    around = example.loss(ObjectiveConfig(recipe="kd-only", frames="symmetric(1)"))
    assert 0 < spikes < around <= everything


def test_impossible_utterances_are_counted_and_left_out(example: Example) -> None:
    frames = example.frames.clone()
    frames[0] = 3  # four tokens with a repeat need five frames
    objective = Objective(ObjectiveConfig(recipe="ctc"), HEADS[-1:], blank_index=0)
    terms = objective(
        StudentOutput(example.logits[-1:], frames), example.targets, example.target_lengths
    )
    assert int(terms.impossible) == 1
    expected = example.ctc(2)[1:].sum() / 3
    torch.testing.assert_close(terms.total.double(), expected, rtol=2e-6, atol=0)
    (gradient,) = torch.autograd.grad(terms.total, example.logits[-1:])
    assert not gradient[0].any()
    assert gradient[1].any()


def test_what_recipes_need() -> None:
    needs = {
        name: (
            uses_intermediate_heads(ObjectiveConfig(recipe=name)),
            uses_teacher(ObjectiveConfig(recipe=name)),
        )
        for name in RECIPES
    }
    assert needs == {
        "ctc": (False, False),
        "inter-ctc": (True, False),
        "skd": (False, True),
        "kl": (False, True),
        "inter-ctc-skd": (True, True),
        "inter-ctc-kl": (True, True),
        "inter-kd": (True, True),
        "inter-kd-kl": (True, True),
        "kd-only": (True, True),
        "guided": (False, True),
        "self-conditioned": (True, False),
        "mass3-ntdk": (False, True),
        "inter-mass3-ntdk": (True, True),
        "cr-ctc": (False, False),
        "inter-kd-cr": (True, True),
        "inter-kd-kl-cr": (True, True),
    }


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'inter-kd'"):
        ObjectiveConfig(recipe="interkd")


def test_two_frames_are_trimmed_and_three_are_refused() -> None:
    assert compared_lengths(["a", "b", "c"], [10, 9, 10], [9, 11, 8]) == [9, 9, 8]
    with pytest.raises(FrameCountError, match=r"utterance b.*expected 13 \(teacher\), got 10"):
        compared_lengths(["a", "b"], [10, 10], [10, 13])


def test_divergences_with_rules_of_their_own_refuse_others() -> None:
    with pytest.raises(ConfigError, match=r"'guided'.*tail bucket, frames all"):
        ObjectiveConfig(recipe="guided", frames="non-blank")
    with pytest.raises(ConfigError, match="mass3-ntdk"):
        ObjectiveConfig(recipe="inter-kd", divergence="mass3-ntdk", temperature=2.0)
