"""The training step: forward and backward of its batches, and the update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from interkd.kernels.backends import resolve_backend
from interkd.kernels.errors import BackendError
from interkd.pipeline.students.model import Student, StudentOutput
from interkd.pipeline.training.config import TrainConfig
from interkd.pipeline.training.data import Batch
from interkd.pipeline.training.graphed_step import GraphedCall, GraphedStep, GraphStream
from interkd.pipeline.training.objective import Objective
from interkd.pipeline.training.optimisers import make_optimiser, set_learning_rate
from interkd.pipeline.training.ranks import Ranks
from interkd.pipeline.training.step_plan import StepPlan


class TrainingStep:
    """Steps of one student; nothing in them waits for a GPU.

    A step of several batches, in one process or in several, is the step of one batch that holds
    all their utterances, but for batch norm, whose statistics are each batch's own. What is random
    in each batch then depends on seed, step and place alone: the step is the same whatever the
    number of processes.

    Args:
        model: On its device.
        objective: The loss.
        config: Settings.
        device: The model's.
        ranks: The processes that train together.

    Raises:
        BackendError: For CUDA graphs without the Triton that they need.
    """

    def __init__(
        self,
        model: Student,
        objective: Objective,
        config: TrainConfig,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        self.model = model
        self.objective = objective
        self.config = config
        self.device = device
        self.ranks = ranks
        self.is_alone = config.data.batches_a_step == 1
        graphed = config.cuda_graphs and device.type == "cuda"
        if graphed and resolve_backend("auto", device) != "triton":
            raise BackendError(
                "cuda_graphs", expected="triton 3.3 or newer for the loss", got="none"
            )
        self.optimiser = make_optimiser(model, config.optimiser, capturable=graphed)
        # What changes from step to step and a graph reads stays on the device.
        self.rate_on_device = torch.zeros((), device=device) if graphed else None
        self.denominator = torch.ones((), device=device)
        self.gradients: Tensor | None = None
        step = self._whole if self.is_alone else self._add_gradients
        self._run: Callable[[Batch], Tensor] = lambda batch: step(batch.to(device))
        self._finish: Callable[[], Tensor] = self._update
        if graphed:
            stream = GraphStream(device)
            self._run = GraphedStep(step, stream)
            self._finish = GraphedCall(self._update, stream)

    def __call__(
        self, plan: StepPlan, batches: Sequence[Batch], *, rate: float, step: int
    ) -> Tensor:
        """One step.

        Args:
            plan: What the step is made of.
            batches: This process's, on the host.
            rate: Learning rate.
            step: Steps taken before.

        Returns:
            Loss, gradient norm, impossible utterances, then CTC and divergence of each head, over
            all processes, float32 on the device.
        """
        set_learning_rate(self.optimiser, rate, self.rate_on_device)
        if self.is_alone:
            (batch,) = batches
            return self._run(batch)
        self.denominator.fill_(plan.denominator)
        if self.gradients is not None:
            self.gradients.zero_()
        figures = torch.zeros((), device=self.device)
        for batch, place in zip(batches, plan.places, strict=True):
            # A wide stride keeps the seeds of different steps apart.
            torch.manual_seed(((self.config.seed * 1_000_003 + step) * 4_099 + place) % 2**63)
            figures = figures + self._run(batch)
            if self.gradients is None:
                self.gradients = as_one_tensor(self.model)
        assert self.gradients is not None
        self.ranks.add_up([figures])
        self.ranks.add_up([self.gradients])
        return _with_norm(figures, self._finish())

    def _whole(self, batch: Batch) -> Tensor:
        """A step of one batch."""
        self.optimiser.zero_grad(set_to_none=True)
        figures = self._losses(batch, None)
        return _with_norm(figures, self._update())

    def _add_gradients(self, batch: Batch) -> Tensor:
        """The part of one batch in a step of several."""
        return self._losses(batch, self.denominator)

    def _losses(self, batch: Batch, denominator: Tensor | None) -> Tensor:
        """Forward and backward; loss, impossible utterances, CTC and divergence a head."""
        features = self.model.augmented_features(
            batch.audio(), batch.sample_lengths, views=self.config.objective.views
        )
        with torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.config.precision == "bfloat16"
        ):
            output = StudentOutput(*self.model.recognise(*features))
        terms = self.objective(
            output,
            batch.targets,
            batch.target_lengths,
            batch.teacher,
            batch.compared_lengths,
            denominator=denominator,
        )
        terms.total.backward()  # type: ignore[no-untyped-call]
        head = torch.stack([terms.total.detach(), terms.impossible.float()])
        return torch.cat([head, terms.ctc, terms.distill])

    def _update(self) -> Tensor:
        """Clips the gradient and updates the weights; the gradient's norm before."""
        norm: Tensor = nn.utils.clip_grad_norm_(
            self.model.parameters(), self.config.optimiser.grad_clip or float("inf")
        )
        self.optimiser.step()
        return norm.detach()


def as_one_tensor(model: nn.Module) -> Tensor:
    """Gathers the gradients of a backward pass in one tensor, float32, of which each is a view.

    Later passes add to it where it is, as CUDA graphs need, and one sum over processes takes all.
    Weights that the pass did not reach keep no gradient.
    """
    reached = [weight for weight in model.parameters() if weight.grad is not None]
    whole = torch.cat([cast(Tensor, weight.grad).flatten() for weight in reached])
    sizes = [weight.numel() for weight in reached]
    for weight, part in zip(reached, torch.split(whole, sizes), strict=True):
        weight.grad = part.view_as(weight)
    return whole


def _with_norm(figures: Tensor, norm: Tensor) -> Tensor:
    return torch.cat([figures[:1], norm[None], figures[1:]])
