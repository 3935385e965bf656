"""How the losses of the heads add up, and what each term's gradient is multiplied by."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from interkd.kernels.autograd import Losses
from interkd.kernels.problem import Problem


def weighted(ctc: Tensor, distill: Tensor, problem: Problem) -> Losses:
    """The losses `(H, B)` of all heads with their weighted sum."""
    ctc, distill = ctc.float(), distill.float()
    infinite = ctc.isposinf()
    counted = ctc.masked_fill(infinite, 0.0) if problem.zero_infinity else ctc
    weights = weights_on(ctc.device, problem)[:, :, None]
    total = (weights[0] * counted + weights[1] * distill).sum(0)
    return Losses(total, ctc, distill, infinite.any(0))


def term_scales(problem: Problem, ctc: Tensor, distill: Tensor, upstream: Tensor) -> Tensor:
    """Gradient on each term, float32 `(2, H, B)`: CTC, then divergence; 0 where it is infinite."""
    weights = weights_on(upstream.device, problem)[:, :, None]
    return (weights * upstream).masked_fill(torch.stack([ctc, distill]).isinf(), 0.0)


def weights_on(device: torch.device, problem: Problem) -> Tensor:
    """float32 `(2, H)`."""
    return _weights((problem.ctc_weights, problem.distill_weights), device)


@lru_cache(maxsize=64)
def _weights(weights: tuple[tuple[float, ...], ...], device: torch.device) -> Tensor:
    """Kept, since making a tensor from the host waits for the device."""
    return torch.tensor(weights, device=device)
