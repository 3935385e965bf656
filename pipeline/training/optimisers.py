"""Optimisers by name, and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from interkd.pipeline.training.config import OptimiserConfig


class NovoGrad(torch.optim.Optimizer):
    """NovoGrad: each layer's gradient is normalised by a moving average of its norm.

    Args:
        params: Parameters or groups.
        lr: Learning rate.
        betas: Decay of the momentum and of the second moment.
        eps: Added to the norm.
        weight_decay: Decoupled, as in AdamW.

    Source: Ginsburg et al. 2019, arXiv 1905.11286, algorithm 1.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float] = (0.95, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step on the gradients that stand."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            momentum, second = group["betas"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                norm_squared = weight.grad.square().sum()
                state = self.state[weight]
                if not state:
                    state["norm"] = norm_squared.clone()
                    state["momentum"] = torch.zeros_like(weight)
                else:
                    state["norm"].mul_(second).add_(norm_squared, alpha=1 - second)
                update = weight.grad / (state["norm"].sqrt() + group["eps"])
                update = update.add(weight, alpha=group["weight_decay"])
                state["momentum"].mul_(momentum).add_(update)
                weight.sub_(state["momentum"] * group["lr"])  # the rate may be on the device
        return loss


def make_optimiser(
    model: nn.Module, config: OptimiserConfig, *, capturable: bool = False
) -> torch.optim.Optimizer:
    """The optimiser of that name; biases and normalisation weights are not decayed.

    Args:
        model: On its device.
        config: Settings.
        capturable: Keeps all that changes from step to step on the GPU, for CUDA graphs; set the
            rate by `set_learning_rate`.
    """
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    betas = (config.betas[0], config.betas[1])
    if config.name == "novograd":
        return NovoGrad(groups, lr=config.learning_rate, betas=betas)
    fused = all(p.device.type == "cuda" for p in model.parameters())
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=betas, fused=fused, capturable=capturable
    )


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float, device: Tensor | None) -> None:
    """Sets the rate of all weights.

    Args:
        optimiser: Changed in place.
        rate: The rate.
        device: Scalar on the GPU that holds the rate for CUDA graphs, or None.
    """
    if device is not None:
        device.fill_(rate)
    for group in optimiser.param_groups:
        group["lr"] = rate if device is None else device


def learning_rate(config: OptimiserConfig, step: int, progress: float) -> float:
    """The learning rate of a step.

    Args:
        config: Peak, warmup and schedule.
        step: Steps taken so far.
        progress: Share of the run that is done, 0 to 1.
    """
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.schedule == "cosine":
        fall = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    elif config.schedule == "linear":
        fall = max(0.0, 1 - progress)
    else:
        fall = 1.0
    return config.learning_rate * warmup * fall
