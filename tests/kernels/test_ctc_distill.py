"""The fused loss: every backend against the reference, and against its own two halves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from interkd.kernels.autograd import Losses
from interkd.kernels.ctc import ctc_loss
from interkd.kernels.ctc_distill import ctc_distill_loss
from interkd.kernels.distill import sparse_divergence
from interkd.kernels.errors import ConfigError, ShapeError
from interkd.kernels.selection import FrameSelection, select_frames
from interkd.kernels.sparse import SparsePosteriors
from tests.kernels.gradients import backends, racing_backends
from tests.properties import examples

LOSS, GRADIENT = 1e-5, 5e-6


def make_teacher(
    frame_lengths: list[int], vocab_size: int, most: int, device: torch.device
) -> SparsePosteriors:
    """Frames with 0 to `most` entries, the most probable first."""
    frames = sum(frame_lengths)
    most = min(most, vocab_size)
    top = (3 * torch.randn(frames, vocab_size)).log_softmax(1).topk(most, 1)
    counts = torch.randint(0, most + 1, (frames,))
    kept = torch.arange(most) < counts[:, None]
    return SparsePosteriors(
        frame_offsets=torch.tensor([0, *frame_lengths]).cumsum(0),
        entry_offsets=torch.nn.functional.pad(counts.cumsum(0), (1, 0)),
        tokens=top.indices[kept].int(),
        log_probs=top.values[kept],
        vocab_size=vocab_size,
    ).to(device)


def make_arguments(
    device: torch.device,
    *,
    batch: int = 2,
    frames: int = 6,
    vocab_size: int = 7,
    targets: int = 2,
    most: int = 5,
) -> dict[str, Any]:
    frame_lengths = torch.randint(1, frames + 1, (batch,))
    frame_lengths[0] = frames
    return {
        "targets": torch.randint(1, vocab_size, (batch, targets)).to(device),
        "frame_lengths": frame_lengths.to(device),
        "target_lengths": torch.randint(0, targets + 1, (batch,)).to(device),
        "teacher": make_teacher(frame_lengths.tolist(), vocab_size, most, device),
    }


def run(
    logits: list[Tensor], arguments: dict[str, Any], upstream: Tensor | None = None, **options: Any
) -> tuple[Losses, list[Tensor]]:
    leaves = [head.detach().clone().requires_grad_() for head in logits]
    losses = ctc_distill_loss(leaves, **arguments, **options)
    if upstream is None:
        upstream = torch.linspace(0.4, 1.7, len(losses.total), device=losses.total.device)
    gradients = torch.autograd.grad(losses.total, leaves, upstream)
    return losses, list(gradients)


def assert_parity(
    logits: list[Tensor],
    arguments: dict[str, Any],
    *,
    names: Sequence[str] | None = None,
    **options: Any,
) -> None:
    expected, expected_gradients = run(logits, arguments, backend="reference", **options)
    for backend in names or backends(logits[0].device):
        # torch's float32 recursion is on logarithms: see TOLERANCES of test_ctc.
        tolerance = 2e-3 if backend == "torch" else GRADIENT
        losses, gradients = run(logits, arguments, backend=backend, **options)
        for name in ("total", "ctc", "distill"):
            torch.testing.assert_close(
                getattr(losses, name), getattr(expected, name), rtol=LOSS, atol=2e-5
            )
        assert torch.equal(losses.impossible, expected.impossible)
        for gradient, exact in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(gradient, exact, rtol=0, atol=tolerance)


@pytest.mark.parametrize("tail", ["bucket", "uniform", "renormalise"])
@pytest.mark.parametrize(("divergence", "temperature"), [("kl", 1.0), ("l2", 2.5)])
def test_backends_agree(
    device: torch.device, divergence: str, tail: str, temperature: float
) -> None:
    torch.manual_seed(0)
    batch, frames = (3, 11) if device.type == "cuda" else (2, 6)  # interpreted row by row
    arguments = make_arguments(device, batch=batch, frames=frames)
    logits = [2 * torch.randn(batch, frames, 7, device=device) for _ in range(3)]
    assert_parity(
        logits,
        arguments,
        divergence=divergence,
        tail=tail,
        temperature=temperature,
        selection="symmetric(1)",
        ctc_weights=[0.3, 0.0, 0.7],
        distill_weights=[0.25, 2.0, 0.0],
        zero_infinity=True,
    )


@pytest.mark.parametrize(("vocab_size", "most"), [(5, 5), (1031, 9), (2503, 40)])
def test_vocabularies_of_one_block_and_of_several(
    device: torch.device, vocab_size: int, most: int
) -> None:
    torch.manual_seed(1)
    arguments = make_arguments(
        device, batch=2, frames=3, vocab_size=vocab_size, targets=2, most=most
    )
    logits = [3 * torch.randn(2, 3, vocab_size, device=device) for _ in range(2)]
    for divergence, tail, temperature in (("kl", "bucket", 1.0), ("l2", "uniform", 2.0)):
        options: dict[str, Any] = {"divergence": divergence, "tail": tail}
        assert_parity(logits, arguments, temperature=temperature, **options, zero_infinity=True)


def shapes(*, batch: int, frames: int) -> dict[str, st.SearchStrategy[Any]]:
    """Problems of up to so many utterances and frames."""
    return {
        "heads": st.integers(1, 6),
        "batch": st.integers(1, batch),
        "frames": st.integers(1, frames),
        "vocab_size": st.integers(2, 9),
        "targets": st.integers(0, 4),
        "seed": st.integers(0, 1000),
        "std": st.sampled_from([0.0, 1.0, 8.0, 60.0]),
        "divergence": st.sampled_from(["kl", "l2"]),
        "tail": st.sampled_from(["bucket", "uniform", "renormalise"]),
    }


@settings(max_examples=examples(50))
@given(**shapes(batch=3, frames=7))
def test_any_shape(device: torch.device, **drawn: Any) -> None:
    assert_any_shape(device, [name for name in backends(device) if name != "triton"], **drawn)


@settings(
    max_examples=examples(8),
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # interpreted Triton shrinks for minutes
)
@example(
    heads=4,
    batch=2,
    frames=7,
    vocab_size=4,
    targets=4,
    seed=647,
    std=60.0,
    divergence="kl",
    tail="bucket",
)
@example(  # a tail of nearly all the mass, under logits whose last digit is 1.5e-5
    heads=3,
    batch=2,
    frames=6,
    vocab_size=8,
    targets=2,
    seed=83,
    std=60.0,
    divergence="l2",
    tail="bucket",
)
@given(**shapes(batch=2, frames=4))
def test_any_shape_in_triton(device: torch.device, **drawn: Any) -> None:
    pytest.importorskip("triton")
    assert_any_shape(device, ["triton"], **drawn)


def assert_any_shape(
    device: torch.device,
    names: Sequence[str],
    *,
    heads: int,
    batch: int,
    frames: int,
    vocab_size: int,
    targets: int,
    seed: int,
    std: float,
    divergence: str,
    tail: str,
) -> None:
    torch.manual_seed(seed)
    arguments = make_arguments(
        device, batch=batch, frames=frames, vocab_size=vocab_size, targets=targets
    )
    logits = [std * torch.randn(batch, frames, vocab_size).to(device) for _ in range(heads)]
    options: dict[str, Any] = {"divergence": divergence, "tail": tail}
    assert_parity(logits, arguments, names=names, zero_infinity=True, **options)


def test_the_sum_of_its_halves(device: torch.device) -> None:
    torch.manual_seed(2)
    arguments = make_arguments(device)
    arguments["target_lengths"].clamp_(max=2)
    selected = torch.rand(len(arguments["teacher"].entry_offsets) - 1, device=device) < 0.6
    logits = [torch.randn(2, 6, 7, device=device) for _ in range(2)]
    lengths = arguments["frame_lengths"]
    for backend in ("reference", *backends(device)):
        losses, gradients = run(
            logits,
            arguments,
            torch.ones(2, device=device),
            ctc_weights=[0.3, 1.0],
            distill_weights=[0.5, 0.25],
            selection=selected,
            backend=backend,
        )
        for head, (ctc_weight, distill_weight) in enumerate(((0.3, 0.5), (1.0, 0.25))):
            leaf = logits[head].clone().requires_grad_()
            ctc = ctc_loss(
                leaf, arguments["targets"], lengths, arguments["target_lengths"], backend=backend
            )
            distill = sparse_divergence(
                leaf, arguments["teacher"], lengths, selected=selected, backend=backend
            )
            assert torch.equal(losses.ctc[head], ctc.detach())
            torch.testing.assert_close(losses.distill[head], distill.detach(), rtol=1e-6, atol=1e-6)
            total = ctc_weight * ctc + distill_weight * distill
            (expected,) = torch.autograd.grad(total.sum(), leaf)
            torch.testing.assert_close(gradients[head], expected, rtol=0, atol=1e-6)


def test_stacked_heads_are_the_same_heads(device: torch.device) -> None:
    torch.manual_seed(3)
    arguments = make_arguments(device, frames=3)
    # More of them than Triton takes at once.
    stacked = torch.randn(5, 2, 3, 7, device=device).requires_grad_()
    for backend in ("reference", *backends(device)):
        losses, gradients = run(list(stacked.unbind(0)), arguments, backend=backend)
        together = ctc_distill_loss(stacked, **arguments, backend=backend)
        upstream = torch.linspace(0.4, 1.7, 2, device=device)
        (gradient,) = torch.autograd.grad(together.total, stacked, upstream)
        assert torch.equal(together.total, losses.total)
        assert torch.equal(gradient, torch.stack(gradients))


def test_terms_of_weight_zero_are_not_computed(device: torch.device) -> None:
    torch.manual_seed(4)
    arguments = make_arguments(device)
    logits = [torch.randn(2, 6, 7, device=device) for _ in range(2)]
    logits.append(torch.full((2, 6, 7), torch.nan, device=device))
    for backend in ("reference", *backends(device)):
        losses, gradients = run(
            logits,
            arguments,
            ctc_weights=[1.0, 0.0, 0.0],
            distill_weights=[0.0, 1.0, 0.0],
            backend=backend,
        )
        assert losses.total.isfinite().all()
        assert (losses.ctc[1:] == 0).all()
        assert (losses.distill[[0, 2]] == 0).all()
        assert (gradients[2] == 0).all()

        without_targets = {"teacher": arguments["teacher"]}
        only, _ = run(
            logits[:2],
            without_targets,
            ctc_weights=[0.0, 0.0],
            compared_lengths=arguments["frame_lengths"],
            backend=backend,
        )
        torch.testing.assert_close(only.distill[1], losses.distill[1])


def test_impossible_utterances(device: torch.device) -> None:
    torch.manual_seed(5)
    arguments = make_arguments(device, batch=3, targets=3)
    arguments["target_lengths"] = torch.tensor([3, 3, 0], device=device)
    arguments["targets"][1] = 2  # two blanks between three equal tokens: five frames
    lengths = arguments["frame_lengths"] = torch.tensor([6, 4, 2], device=device)
    arguments["teacher"] = make_teacher([6, 4, 2], 7, 5, device)
    logits = [torch.randn(3, 6, 7, device=device) for _ in range(2)]
    for backend in ("reference", *backends(device)):
        expected: list[Tensor] = []  # the divergence still teaches where no alignment does
        for head in logits:
            leaf = head.clone().requires_grad_()
            distill = sparse_divergence(leaf, arguments["teacher"], lengths, backend=backend)
            expected += torch.autograd.grad(1.05 * distill[1], leaf)
        for zero_infinity in (False, True):
            losses, gradients = run(logits, arguments, zero_infinity=zero_infinity, backend=backend)
            assert losses.impossible.tolist() == [False, True, False]
            assert losses.ctc[:, 1].isposinf().all()
            assert losses.total.isinf().tolist() == [False, not zero_infinity, False]
            for gradient, alone in zip(gradients, expected, strict=True):
                torch.testing.assert_close(gradient[1], alone[1], rtol=1e-5, atol=1e-6)


def test_padding_never_leaks_and_values_need_no_check(device: torch.device) -> None:
    torch.manual_seed(6)
    arguments = make_arguments(device)
    logits = [torch.randn(2, 6, 7, device=device) for _ in range(2)]
    padded = [head.clone() for head in logits]
    for b, length in enumerate(arguments["frame_lengths"].tolist()):
        for head in padded:
            head[b, length:] = torch.nan
    for backend in ("reference", *backends(device)):
        losses, gradients = run(logits, arguments, backend=backend)
        again, again_gradients = run(padded, arguments, backend=backend, check_values=False)
        assert torch.equal(losses.total, again.total)
        assert all(map(torch.equal, gradients, again_gradients))


def test_without_a_gradient_the_losses_are_the_same(device: torch.device) -> None:
    torch.manual_seed(7)
    arguments = make_arguments(device)
    logits = [torch.randn(2, 6, 7, device=device) for _ in range(2)]
    for backend in ("reference", *backends(device)):
        losses, _ = run(logits, arguments, backend=backend)
        plain = ctc_distill_loss(logits, **arguments, backend=backend)
        assert not plain.total.requires_grad
        assert torch.equal(plain.total, losses.total)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_and_strides(device: torch.device, dtype: torch.dtype) -> None:
    torch.manual_seed(8)
    arguments = make_arguments(device)
    logits = [torch.randn(7, 6, 4, device=device).to(dtype).permute(2, 1, 0)[::2] for _ in range(2)]
    for name in ("targets", "frame_lengths", "target_lengths"):
        arguments[name] = torch.stack([arguments[name], -arguments[name]], -1)[..., 0]
    wide = [head.double() for head in logits]
    upstream = torch.tensor([1.0, 512.0], device=device)
    _, expected = run(wide, arguments, upstream, backend="reference", zero_infinity=True)
    for backend in backends(device):
        _, gradients = run(logits, arguments, upstream, backend=backend, zero_infinity=True)
        for gradient, exact in zip(gradients, expected, strict=True):
            assert gradient.dtype == dtype
            rounding = 0.0 if dtype == torch.float64 else torch.finfo(dtype).eps
            torch.testing.assert_close(gradient.double(), exact, rtol=rounding, atol=1e-5 * 512)


def test_the_same_twice(device: torch.device) -> None:
    torch.manual_seed(9)
    arguments = make_arguments(device)
    logits = [torch.randn(2, 6, 7, device=device) for _ in range(2)]
    for backend in racing_backends(device):
        if backend == "torch" and device.type == "cuda":
            continue  # its own CTC adds up as it comes
        losses, gradients = run(logits, arguments, backend=backend)
        for _ in range(2):
            again, again_gradients = run(logits, arguments, backend=backend)
            assert torch.equal(losses.total, again.total)
            assert all(map(torch.equal, gradients, again_gradients))


def test_selections_by_name_and_by_mask(device: torch.device) -> None:
    torch.manual_seed(10)
    arguments = make_arguments(device)
    logits = [torch.randn(2, 6, 7, device=device)]
    for selection in ("all", "non-blank", "symmetric(2)"):
        mask = select_frames(arguments["teacher"], selection)
        for backend in backends(device):
            by_name, by_kind, by_mask = (
                ctc_distill_loss(logits, **arguments, selection=each, backend=backend).total
                for each in (selection, FrameSelection.parse(selection), mask)
            )
            assert torch.equal(by_name, by_kind)
            torch.testing.assert_close(by_name, by_mask)


def test_misfits_are_refused() -> None:
    arguments = make_arguments(torch.device("cpu"))
    logits = [torch.randn(2, 6, 7) for _ in range(2)]
    refused: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ShapeError, "at least one head", {"logits": []}),
        (ShapeError, r"\(H, B, T, V\)", {"logits": torch.randn(2, 6, 7)}),
        (ShapeError, "logits of the heads", {"logits": [logits[0], torch.randn(2, 6, 8)]}),
        (ShapeError, "logits of the heads", {"logits": [logits[0], logits[1].double()]}),
        (ConfigError, "ctc_weights", {"ctc_weights": [1.0]}),
        (ConfigError, "distill_weights", {"distill_weights": [1.0, float("nan")]}),
        (ConfigError, "CTC", {"targets": None}),
        (ConfigError, "divergence", {"teacher": None, "distill_weights": [1.0, 1.0]}),
        (ConfigError, "frame selection", {"selection": "some"}),
        (ShapeError, "selected", {"selection": torch.ones(1, dtype=torch.bool)}),
        (ShapeError, "compared_lengths beyond", {"compared_lengths": torch.tensor([6, 6])}),
        (ShapeError, "a target outside", {"targets": torch.full((2, 2), 7)}),
    ]
    arguments["target_lengths"].fill_(2)
    for error, message, change in refused:
        with pytest.raises(error, match=message):
            ctc_distill_loss(**{"logits": logits, **arguments, **change})
