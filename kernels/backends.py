"""Backends of the kernels: which one runs, and the autograd function that all of them share."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from interkd.kernels.errors import BackendError, ShapeError

Backend = Literal["auto", "reference", "numba", "torch"]
LossAndGradient = tuple[Tensor, Tensor]

_PACKAGES = {"reference": "reference", "numba": "_numba", "torch": "_torch"}
_LOGITS_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def resolve_backend(backend: str, device: torch.device) -> str:
    """The backend that runs for this choice and device.

    Args:
        backend: `auto` (numba on a CPU, torch elsewhere) or a backend's own name.
        device: Where the logits are.

    Returns:
        `reference`, `numba` or `torch`.

    Raises:
        BackendError: For an unknown name, or numba asked for away from the CPU.
    """
    if backend == "auto":
        return "numba" if device.type == "cpu" else "torch"
    if backend not in _PACKAGES:
        raise BackendError(
            "unknown backend", expected=" | ".join(("auto", *_PACKAGES)), got=repr(backend)
        )
    if backend == "numba" and device.type != "cpu":
        raise BackendError(
            "backend 'numba'", expected="logits on cpu", got=device, remedy="use 'torch' or 'auto'"
        )
    return backend


def load_kernel(backend: str, module: str, function: str) -> Callable[..., Any]:
    """A backend's implementation; importing it only now keeps numba out of `import interkd`."""
    name = f"interkd.kernels.{_PACKAGES[backend]}.{module}"
    implementation: Callable[..., Any] = getattr(import_module(name), function)
    return implementation


def check_logits(logits: Tensor) -> None:
    """Refuses what no kernel takes as logits.

    Raises:
        ShapeError: Unless `logits` is floating and `(B, T, V)` with V at least 1.
    """
    if logits.ndim != 3 or logits.shape[-1] < 1:
        raise ShapeError("logits", expected="(B, T, V), V at least 1", got=tuple(logits.shape))
    if logits.dtype not in _LOGITS_DTYPES:
        raise ShapeError(
            "logits", expected="float32, bfloat16, float16 or float64", got=logits.dtype
        )


def check_column(
    name: str, column: Tensor, shape: tuple[int | None, ...], dtype: torch.dtype, logits: Tensor
) -> None:
    """Refuses an argument whose shape, dtype or device does not fit the logits.

    Raises:
        ShapeError: Naming the argument; a None in `shape` fits any size.
    """
    fits = column.ndim == len(shape) and all(
        size in (None, actual) for size, actual in zip(shape, column.shape, strict=True)
    )
    if not fits or column.dtype != dtype:
        raise ShapeError(
            name,
            expected=f"{tuple('*' if size is None else size for size in shape)} of {dtype}",
            got=f"{tuple(column.shape)} of {column.dtype}",
        )
    if column.device != logits.device:
        raise ShapeError(name, expected=f"on the logits' {logits.device}", got=column.device)


def refuse_any(problems: dict[str, Tensor]) -> None:
    """Raises for the first true flag; one transfer to the host for all of them.

    Raises:
        ShapeError: With the key as its text.
    """
    for problem, present in zip(
        problems, torch.stack([flags.any() for flags in problems.values()]).tolist(), strict=True
    ):
        if present:
            raise ShapeError(problem)


def differentiable_loss(logits: Tensor, compute: Callable[[Tensor], LossAndGradient]) -> Tensor:
    """Puts a kernel that makes loss and gradient in one pass on the autograd tape.

    Args:
        logits: `(B, T, V)`.
        compute: Maps detached logits to the loss per utterance `(B,)` and its gradient
            `(B, T, V)`, float32 or better.

    Returns:
        float32 `(B,)`. An utterance whose loss is infinite has an exactly zero gradient.
    """
    loss: Tensor = _PrecomputedGradient.apply(logits, compute)  # type: ignore[no-untyped-call]
    return loss


class _PrecomputedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, compute: Callable[[Tensor], LossAndGradient]) -> Tensor:
        loss, gradient = compute(logits.detach())
        loss = loss.to(logits.device, torch.float32)
        if ctx.needs_input_grad[0]:
            infinite = loss.isinf()
            # A look at the flags would stall a GPU; a pass over the gradient costs a CPU more.
            if loss.is_cuda or infinite.any():
                gradient.masked_fill_(infinite[:, None, None], 0)
            ctx.save_for_backward(gradient)
            ctx.dtype = logits.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        # Scaled before the cast, so that a float16 loss scale reaches float16's range.
        scale = upstream.to(gradient.dtype)[:, None, None]
        return (gradient * scale).to(ctx.dtype), None
