"""The training step: forward and backward of its batches, and the update."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from interkd.kernels.backends import resolve_backend
from interkd.kernels.errors import BackendError, ConfigError
from interkd.pipeline.students.model import Student, StudentOutput
from interkd.pipeline.training.config import TrainConfig
from interkd.pipeline.training.data import Batch
from interkd.pipeline.training.graphed_step import GraphedStep
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
        ConfigError: For CUDA graphs of a step of several batches.
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
        if graphed and not self.is_alone:
            raise ConfigError(
                "cuda_graphs",
                expected="one batch a step on one GPU",
                got=config.data.batches_a_step,
            )
        if graphed and resolve_backend("auto", device) != "triton":
            raise BackendError(
                "cuda_graphs", expected="triton 3.3 or newer for the loss", got="none"
            )
        self.optimiser = make_optimiser(model, config.optimiser, capturable=graphed)
        self.rate_on_device = torch.zeros((), device=device) if graphed else None
        self._run: Callable[[Batch], Tensor] = (
            GraphedStep(self._whole, device)
            if graphed
            else lambda batch: self._whole(batch.to(device))
        )

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
        self.optimiser.zero_grad(set_to_none=True)
        figures = [
            self._backward(batch.to(self.device), plan, step=step, place=place)
            for batch, place in zip(batches, plan.places, strict=True)
        ]
        total = torch.stack(figures).sum(0)
        self.ranks.add_up([total])
        self.ranks.add_up(p.grad for p in self.model.parameters() if p.grad is not None)
        return _with_norm(total, self._update())

    def _whole(self, batch: Batch) -> Tensor:
        """A step of one batch: what a CUDA graph holds."""
        self.optimiser.zero_grad(set_to_none=True)
        figures = self._losses(batch, None)
        return _with_norm(figures, self._update())

    def _backward(self, batch: Batch, plan: StepPlan, *, step: int, place: int) -> Tensor:
        # A wide stride keeps the seeds of different steps apart.
        torch.manual_seed(((self.config.seed * 1_000_003 + step) * 4_099 + place) % 2**63)
        return self._losses(batch, plan.denominator)

    def _losses(self, batch: Batch, denominator: int | None) -> Tensor:
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


def _with_norm(figures: Tensor, norm: Tensor) -> Tensor:
    return torch.cat([figures[:1], norm[None], figures[1:]])
