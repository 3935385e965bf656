"""The training objective: weighted CTC and divergence from the cached teacher, head by head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from interkd.kernels.consistency import consistency_loss
from interkd.kernels.ctc_distill import ctc_distill_loss
from interkd.kernels.guided import guided_loss
from interkd.kernels.selection import FrameSelection
from interkd.kernels.sparse import SparsePosteriors
from interkd.kernels.token_distill import token_distill_loss, token_support
from interkd.pipeline.frames import TOLERATED_FRAMES
from interkd.pipeline.students.model import StudentOutput
from interkd.pipeline.training.recipes import ObjectiveConfig, head_weights


@dataclass(frozen=True, kw_only=True)
class LossTerms:
    """A batch's loss and its parts, all on the device and detached but `total`.

    Attributes:
        total: Scalar to differentiate.
        ctc: Normalised CTC loss a head, float32 `(H,)`; 0 where the head has no CTC term.
        distill: Normalised divergence a head, float32 `(H,)`, before lambda.
        impossible: Utterances without any alignment (left out of the CTC terms), int64 scalar.
    """

    total: Tensor
    ctc: Tensor
    distill: Tensor
    impossible: Tensor


class Objective:
    """`sum over heads of w_h * CTC(y, q_h) + lambda_h * D(p, q_h)`.

    Args:
        config: The recipe and its departures.
        head_names: Heads of the student, the final one last.
        blank_index: Index of the blank.
        check_values: See `ctc_distill_loss`: False where the batches were checked before they
            went to a GPU.
        backend: See `ctc_distill_loss`.

    Source: docs/maths.md; each recipe's own in `recipes.RECIPES`.
    """

    def __init__(
        self,
        config: ObjectiveConfig,
        head_names: Sequence[str],
        blank_index: int,
        *,
        check_values: bool = True,
        backend: str = "auto",
    ) -> None:
        self.config = config
        self.backend = backend
        self.check_values = check_values
        self.weights = head_weights(config, len(head_names) - 1)
        self.divergence = config.kind
        self.consistency = config.consistency
        self.selection = FrameSelection.parse(config.frames)
        self.blank_index = blank_index

    @property
    def is_fused(self) -> bool:
        """Whether the divergence is part of the fused loss."""
        return self.divergence in ("kl", "l2")

    def __str__(self) -> str:
        """The objective in one line, with all that moves the error rate."""
        config, (inter, final) = self.config, (self.weights[0], self.weights[-1])
        heads = len(self.weights) - 1
        each = f" each of {heads} intermediate heads" if heads else ""

        def weights(final: float, inter: float) -> str:
            return f"{final:g} final" + (f", {inter:g}{each}" if heads else "")

        text = f"{config.recipe}: CTC {weights(final.ctc, inter.ctc)}"
        if final.distill or (heads and inter.distill):
            text += f"; {self.divergence} {weights(final.distill, inter.distill)}"
            if self.is_fused:
                text += (
                    f", tail {config.tail}, frames {config.frames},"
                    f" temperature {config.temperature:g}"
                )
            elif self.divergence == "mass3-ntdk":
                text += f", blank penalty {config.blank_penalty:g}, rest {config.rest_weight:g}"
        if self.consistency:
            text += f"; consistency of two views {self.consistency:g}"
        return f"{text}; normalisation {config.normalisation}"

    def __call__(
        self,
        output: StudentOutput,
        targets: Tensor,
        target_lengths: Tensor,
        teacher: SparsePosteriors | None = None,
        compared_lengths: Tensor | None = None,
        *,
        denominator: Tensor | None = None,
    ) -> LossTerms:
        """The loss of a batch.

        Args:
            output: Logits of all heads.
            targets: Padded token indexes, int64 `(B, U)`.
            target_lengths: int64 `(B,)`.
            teacher: Cached posteriors of the same utterances, on the device of the logits; may be
                None when no head distils.
            compared_lengths: Frames on which student and teacher are compared, int64 `(B,)`.
            denominator: What the sums are divided by, where the batch is a part of a step, a scalar
                above 0 on the device; None takes the batch's own utterances, frames or tokens.
        """
        fused = teacher if self.is_fused else None
        losses = ctc_distill_loss(
            output.logits,
            targets,
            output.frame_lengths,
            target_lengths,
            fused,
            ctc_weights=[weights.ctc for weights in self.weights],
            distill_weights=[weights.distill if fused else 0.0 for weights in self.weights],
            compared_lengths=compared_lengths,
            selection=self.selection,
            divergence=self.divergence if self.is_fused else "kl",
            tail=self.config.tail,
            temperature=self.config.temperature,
            blank_index=self.blank_index,
            zero_infinity=True,
            backend=self.backend,
            check_values=self.check_values,
        )
        total, distill = losses.total, losses.distill
        if teacher is not None and compared_lengths is not None and not self.is_fused:
            distill = self._other_divergences(
                output.logits, teacher, targets, target_lengths, compared_lengths
            )
            weights = [weights.distill for weights in self.weights]
            total = total + sum(
                weight * loss for weight, loss in zip(weights, distill, strict=True) if weight
            )
            distill = distill.detach()
        scale = (
            self._scale(output.frame_lengths, target_lengths)
            if denominator is None
            else 1.0 / denominator
        )
        # NaN is no missing alignment: it stays, for the loop to stop on.
        ctc = losses.ctc.masked_fill(losses.ctc.isposinf(), 0.0)
        total = total.sum() * scale
        if self.consistency:
            # A pair's term counts once where each of its two views has CTC terms of its own.
            total = total + 2 * self.consistency * scale * self._disagreement(output)
        return LossTerms(
            total=total,
            ctc=ctc.sum(1) * scale,
            distill=distill.sum(1) * scale,
            impossible=losses.impossible.sum(),
        )

    def _other_divergences(
        self,
        logits: Sequence[Tensor],
        teacher: SparsePosteriors,
        targets: Tensor,
        target_lengths: Tensor,
        compared_lengths: Tensor,
    ) -> Tensor:
        """Divergences outside the fused loss, float32 `(H, B)`; 0 where the weight is 0."""
        if self.divergence == "guided":
            of_head = partial(guided_loss, teacher=teacher, compared_lengths=compared_lengths)
        else:
            support = token_support(
                teacher,
                targets,
                target_lengths,
                blank_penalty=self.config.blank_penalty,
                # A teacher counts so many more at most; a look at its lengths waits for a GPU.
                frames=logits[0].shape[1] + TOLERATED_FRAMES,
                backend=self.backend,
                check_values=self.check_values,
            )
            of_head = partial(
                token_distill_loss,
                teacher=teacher,
                support=support,
                compared_lengths=compared_lengths,
                rest_weight=self.config.rest_weight,
            )
        nothing = logits[0].new_zeros(len(logits[0]), dtype=torch.float32)
        return torch.stack(
            [
                of_head(head) if weights.distill else nothing
                for head, weights in zip(logits, self.weights, strict=True)
            ]
        )

    def _disagreement(self, output: StudentOutput) -> Tensor:
        """The consistency term of every trained head, summed: a scalar."""
        losses = [
            consistency_loss(head, output.frame_lengths).sum()
            for head, weights in zip(output.logits, self.weights, strict=True)
            if weights.ctc or weights.distill
        ]
        return torch.stack(losses).sum()

    def _scale(self, frame_lengths: Tensor, target_lengths: Tensor) -> Tensor | float:
        if self.config.normalisation == "utterance":
            return 1.0 / len(frame_lengths)
        lengths = frame_lengths if self.config.normalisation == "frame" else target_lengths
        return 1.0 / lengths.sum().clamp(min=1)
