"""A kernel's loss with its gradient, and the backends that are held against the reference."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

JUNK = (torch.nan, torch.inf, -torch.inf, 1e38)  # what frames that do not count may hold


def backends(device: torch.device) -> tuple[str, ...]:
    """All but the reference: Triton runs interpreted on a CPU, where it is installed."""
    numba = ("numba",) if device.type == "cpu" else ()
    return (*numba, "torch", *(("triton",) if find_spec("triton") else ()))


def racing_backends(device: torch.device) -> tuple[str, ...]:
    """Those whose threads could add up in another order: the interpreter has none."""
    return tuple(name for name in backends(device) if name != "triton" or device.type == "cuda")


def int64(values: Any, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=device)


def loss_and_gradient(
    loss_of: Callable[[Tensor], Tensor],
    logits: Tensor,
    upstream: Tensor | list[float] | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss `(B,)`, float32, and its gradient, of the logits' dtype; upstream is 1 by default."""
    leaf = logits.detach().clone().requires_grad_()
    loss = loss_of(leaf)
    assert loss.dtype == torch.float32
    if upstream is None:
        upstream = torch.ones_like(loss)
    elif not isinstance(upstream, Tensor):
        upstream = torch.tensor(upstream, device=logits.device)
    loss.backward(upstream)  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    assert leaf.grad.dtype == logits.dtype
    return loss.detach(), leaf.grad
