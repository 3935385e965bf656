"""The losses on the autograd tape: a backend makes them forward, and their gradient backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from interkd.kernels.backends import load_kernel
from interkd.kernels.problem import Problem

State = tuple[Tensor, ...]
Heads = tuple[Tensor, ...]


class WeightedLosses(NamedTuple):
    """Losses of a batch, float32; only `total` is differentiable.

    Attributes:
        total: Weighted sum over the heads, `(B,)`.
        ctc: CTC loss of each head, `(H, B)`.
        distill: Divergence of each head, `(H, B)`.
    """

    total: Tensor
    ctc: Tensor
    distill: Tensor


class _Kernel(NamedTuple):
    """A backend.

    Attributes:
        losses: Maps logits, problem and whether a gradient will be wanted to the CTC losses and
            divergences `(H, B)` and the state that `gradients` reads.
        gradients: Fills its last argument, tensors like the logits, from logits, problem, state
            and the scales `(H, B)` of both kinds of term.
    """

    losses: Callable[[Heads, Problem, bool], tuple[Tensor, Tensor, State]]
    gradients: Callable[[Heads, Problem, State, Tensor, Tensor, Heads], None]


def weighted_losses(
    logits: Tensor | Heads,
    problem: Problem,
    *,
    backend: str,
    ctc_weights: tuple[float, ...],
    distill_weights: tuple[float, ...],
    zero_infinity: bool,
) -> WeightedLosses:
    """Runs a backend and puts the weighted total on the tape.

    The gradient of a term whose loss is infinite is exactly zero.

    Args:
        logits: `(H, B, T, V)`, or H of `(B, T, V)`.
        problem: What to compute.
        backend: A resolved backend.
        ctc_weights: Weight of each head's CTC loss.
        distill_weights: Weight of each head's divergence.
        zero_infinity: Whether an infinite CTC loss counts 0 in the total.
    """
    kernel = _Kernel(
        load_kernel(backend, "ctc_distill", "losses"),
        load_kernel(backend, "ctc_distill", "gradients"),
    )
    inputs = (logits,) if isinstance(logits, Tensor) else logits
    settings = _Settings(
        kernel, problem, ctc_weights, distill_weights, zero_infinity, isinstance(logits, Tensor)
    )
    return WeightedLosses(*_Losses.apply(settings, *inputs))  # type: ignore[no-untyped-call]


class _Settings(NamedTuple):
    kernel: _Kernel
    problem: Problem
    ctc_weights: tuple[float, ...]
    distill_weights: tuple[float, ...]
    zero_infinity: bool
    stacked: bool


class _Losses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, settings: _Settings, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with_gradient = any(ctx.needs_input_grad)
        heads = _heads(settings, [tensor.detach() for tensor in inputs])
        ctc, distill, state = settings.kernel.losses(heads, settings.problem, with_gradient)
        ctc, distill = ctc.float(), distill.float()
        counted = ctc.masked_fill(ctc.isposinf(), 0.0) if settings.zero_infinity else ctc
        total = (
            _on_device(settings.ctc_weights, ctc.device) * counted
            + _on_device(settings.distill_weights, ctc.device) * distill
        ).sum(0)
        if with_gradient:
            ctx.settings = settings
            ctx.save_for_backward(*inputs, ctc, distill, *state)
        ctx.mark_non_differentiable(ctc, distill)
        return total, ctc, distill

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        settings: _Settings = ctx.settings
        count = len(ctx.needs_input_grad) - 1
        inputs, (ctc, distill, *state) = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        ctc_scales, distill_scales = (
            (_on_device(weights, loss.device) * upstream.float()).masked_fill(loss.isinf(), 0.0)
            for weights, loss in ((settings.ctc_weights, ctc), (settings.distill_weights, distill))
        )
        gradients = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs]
        settings.kernel.gradients(
            _heads(settings, inputs),
            settings.problem,
            tuple(state),
            ctc_scales,
            distill_scales,
            _heads(settings, gradients),
        )
        return None, *gradients


def _heads(settings: _Settings, tensors: Sequence[Tensor]) -> Heads:
    return tuple(tensors[0].unbind(0)) if settings.stacked else tuple(tensors)


@lru_cache(maxsize=64)
def _on_device(weights: tuple[float, ...], device: torch.device) -> Tensor:
    """float32 `(H, 1)`; kept, since making one from the host waits for the device."""
    return torch.tensor(weights, device=device)[:, None]
