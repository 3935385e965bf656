"""The losses on the autograd tape: a backend makes them forward, and their gradient backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from interkd.kernels.backends import load_kernel
from interkd.kernels.problem import Problem

Heads = tuple[Tensor, ...]


class Losses(NamedTuple):
    """Losses of a batch; only `total` is differentiable.

    Attributes:
        total: Weighted sum over the heads, float32 `(B,)`.
        ctc: CTC loss of each head, float32 `(H, B)`.
        distill: Divergence of each head, float32 `(H, B)`.
        impossible: Whether an utterance has no alignment under some head, bool `(B,)`.
    """

    total: Tensor
    ctc: Tensor
    distill: Tensor
    impossible: Tensor


class _Settings(NamedTuple):
    """A backend and what it is asked.

    Attributes:
        losses: Maps logits, problem and whether a gradient will be wanted to `Losses` and the
            state that `gradients` reads.
        gradients: Fills its last argument, tensors like the logits, from logits, problem, state
            and the gradient on `total`. Terms whose loss is infinite have none.
        problem: What to compute.
        stacked: Whether all heads are one tensor.
    """

    losses: Callable[[Heads, Problem, bool], tuple[Losses, tuple[Tensor, ...]]]
    gradients: Callable[[Heads, Problem, tuple[Tensor, ...], Tensor, Heads], None]
    problem: Problem
    stacked: bool


def differentiable_losses(logits: Tensor | Heads, problem: Problem, backend: str) -> Losses:
    """Runs a resolved backend and puts its total on the tape.

    Args:
        logits: `(H, B, T, V)`, or H of `(B, T, V)`.
        problem: What to compute.
        backend: A resolved backend.
    """
    settings = _Settings(
        load_kernel(backend, "ctc_distill", "losses"),
        load_kernel(backend, "ctc_distill", "gradients"),
        problem,
        isinstance(logits, Tensor),
    )
    inputs = (logits,) if isinstance(logits, Tensor) else logits
    return Losses(*_Losses.apply(settings, *inputs))  # type: ignore[no-untyped-call]


class _Losses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, settings: _Settings, *inputs: Tensor) -> tuple[Tensor, ...]:
        with_gradient = any(ctx.needs_input_grad)
        heads = _heads(settings, [tensor.detach() for tensor in inputs])
        losses, state = settings.losses(heads, settings.problem, with_gradient)
        if with_gradient:
            ctx.settings = settings
            ctx.save_for_backward(*inputs, *state)
        ctx.mark_non_differentiable(*losses[1:])
        ctx.set_materialize_grads(False)
        return tuple(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        count = len(ctx.needs_input_grad) - 1
        if upstream is None:
            return (None,) * (count + 1)
        settings: _Settings = ctx.settings
        inputs, state = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        gradients = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs]
        settings.gradients(
            _heads(settings, inputs),
            settings.problem,
            state,
            upstream.float(),
            _heads(settings, gradients),
        )
        return None, *gradients


def _heads(settings: _Settings, tensors: Sequence[Tensor]) -> Heads:
    return tuple(tensors[0].unbind(0)) if settings.stacked else tuple(tensors)
