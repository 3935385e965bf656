"""The fused loss from torch's own operations: the two halves, one after the other."""

from __future__ import annotations

from torch import Tensor

from interkd.kernels._torch.ctc import ctc_loss_and_gradient
from interkd.kernels._torch.distill import divergence_and_gradient
from interkd.kernels.autograd import Losses
from interkd.kernels.composed import composed_gradients, composed_losses
from interkd.kernels.problem import Problem

gradients = composed_gradients


def losses(
    logits: tuple[Tensor, ...], problem: Problem, with_gradient: bool
) -> tuple[Losses, tuple[Tensor, ...]]:
    """The losses; their gradients come with them, asked for or not."""
    return composed_losses(ctc_loss_and_gradient, divergence_and_gradient, logits, problem)
