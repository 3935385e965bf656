"""The training objective: weighted CTC and divergence from the cached teacher, head by head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interkd.kernels.ctc import ctc_loss
from interkd.kernels.distill import sparse_divergence
from interkd.kernels.selection import FrameSelection, select_frames
from interkd.kernels.sparse import SparsePosteriors
from interkd.pipeline.students.model import StudentOutput
from interkd.pipeline.training.recipes import RECIPES, ObjectiveConfig, head_weights


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

    Source: docs/maths.md; each recipe's own in `recipes.RECIPES`.
    """

    def __init__(self, config: ObjectiveConfig, head_names: Sequence[str], blank_index: int) -> None:
        self.config = config
        self.weights = head_weights(config, len(head_names) - 1)
        self.divergence = config.divergence or RECIPES[config.recipe].divergence
        self.selection = FrameSelection.parse(config.frames)
        self.blank_index = blank_index

    @staticmethod
    def describe(config: ObjectiveConfig) -> str:
        """The objective in one line, with all that moves the error rate."""
        inter, final = head_weights(config, 1)
        divergence = config.divergence or RECIPES[config.recipe].divergence
        text = f"{config.recipe}: CTC {final.ctc:g} (final), {inter.ctc:g} (intermediate)"
        if inter.distill or final.distill:
            text += (
                f"; {divergence} {final.distill:g} (final), {inter.distill:g} (each intermediate),"
                f" tail {config.tail}, frames {config.frames}, temperature {config.temperature:g}"
            )
        return f"{text}; normalisation {config.normalisation}"

    def __call__(
        self,
        output: StudentOutput,
        targets: Tensor,
        target_lengths: Tensor,
        teacher: SparsePosteriors | None = None,
        compared_lengths: Tensor | None = None,
    ) -> LossTerms:
        """The loss of a batch.

        Args:
            output: Logits of all heads.
            targets: Padded token indexes, int64 `(B, U)`.
            target_lengths: int64 `(B,)`.
            teacher: Cached posteriors of the same utterances, on the device of the logits; may be
                None when no head distils.
            compared_lengths: Frames on which student and teacher are compared, int64 `(B,)`.
        """
        frame_lengths = output.frame_lengths
        selected = None if teacher is None else select_frames(teacher, self.selection)
        scale = self._scale(frame_lengths, target_lengths)
        zero = torch.zeros((), device=targets.device)
        total, ctc_terms, distill_terms = zero, [], []
        impossible = torch.zeros((), dtype=torch.int64, device=targets.device)
        for logits, weight in zip(output.logits, self.weights, strict=True):
            ctc = distill = zero
            if weight.ctc:
                losses = ctc_loss(
                    logits,
                    targets,
                    frame_lengths,
                    target_lengths,
                    blank_index=self.blank_index,
                )
                possible = losses.isfinite()
                impossible = (~possible).sum()
                ctc = torch.where(possible, losses, 0.0).sum() * scale
            if weight.distill and teacher is not None and compared_lengths is not None:
                distill = scale * (
                    sparse_divergence(
                        logits,
                        teacher,
                        compared_lengths,
                        divergence=self.divergence,
                        tail=self.config.tail,
                        selected=selected,
                        temperature=self.config.temperature,
                    ).sum()
                )
            total = total + weight.ctc * ctc + weight.distill * distill
            ctc_terms.append(ctc.detach())
            distill_terms.append(distill.detach())
        return LossTerms(
            total=total,
            ctc=torch.stack(ctc_terms),
            distill=torch.stack(distill_terms),
            impossible=impossible,
        )

    def _scale(self, frame_lengths: Tensor, target_lengths: Tensor) -> Tensor:
        if self.config.normalisation == "utterance":
            return 1.0 / torch.tensor(float(len(frame_lengths)), device=frame_lengths.device)
        lengths = frame_lengths if self.config.normalisation == "frame" else target_lengths
        return 1.0 / lengths.sum().clamp(min=1)

