"""The training objective: weighted CTC and divergence from the cached teacher, head by head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    def __init__(
        self, config: ObjectiveConfig, head_names: Sequence[str], blank_index: int
    ) -> None:
        self.config = config
        self.weights = head_weights(config, len(head_names) - 1)
        self.divergence = config.divergence or RECIPES[config.recipe].divergence
        self.selection = FrameSelection.parse(config.frames)
        self.blank_index = blank_index

    def __str__(self) -> str:
        """The objective in one line, with all that moves the error rate."""
        config, (inter, final) = self.config, (self.weights[0], self.weights[-1])
        heads = len(self.weights) - 1
        each = f" each of {heads} intermediate heads" if heads else ""

        def weights(final: float, inter: float) -> str:
            return f"{final:g} final" + (f", {inter:g}{each}" if heads else "")

        text = f"{config.recipe}: CTC {weights(final.ctc, inter.ctc)}"
        if final.distill or (heads and inter.distill):
            text += (
                f"; {self.divergence} {weights(final.distill, inter.distill)}, tail {config.tail},"
                f" frames {config.frames}, temperature {config.temperature:g}"
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
        ctc, impossible = self._ctc(output, targets, target_lengths)
        distill = self._distill(output, teacher, compared_lengths)
        scale = self._scale(output.frame_lengths, target_lengths)
        ctc, distill = ctc.sum(1) * scale, distill.sum(1) * scale
        weights = torch.tensor([[w.ctc, w.distill] for w in self.weights], device=ctc.device)
        return LossTerms(
            total=(weights * torch.stack([ctc, distill], 1)).sum(),
            ctc=ctc.detach(),
            distill=distill.detach(),
            impossible=impossible,
        )

    def _ctc(
        self, output: StudentOutput, targets: Tensor, target_lengths: Tensor
    ) -> tuple[Tensor, Tensor]:
        """CTC loss `(H, B)`, 0 where a head has none, and the utterances without an alignment."""
        heads = [index for index, weight in enumerate(self.weights) if weight.ctc]
        losses = self._each_head(
            heads,
            output,
            lambda logits: ctc_loss(
                logits,
                targets.repeat(len(heads), 1),
                output.frame_lengths.repeat(len(heads)),
                target_lengths.repeat(len(heads)),
                blank_index=self.blank_index,
            ),
        )
        # NaN is no missing alignment: it stays, for the loop to stop on.
        impossible = losses.isposinf()
        return losses.masked_fill(impossible, 0.0), impossible.any(0).sum()

    def _distill(
        self,
        output: StudentOutput,
        teacher: SparsePosteriors | None,
        compared_lengths: Tensor | None,
    ) -> Tensor:
        """Divergence `(H, B)` in nats or squared probability, 0 where a head has none."""
        heads = [index for index, weight in enumerate(self.weights) if weight.distill]
        if teacher is None or compared_lengths is None:
            return output.logits[-1].new_zeros(len(self.weights), len(output.frame_lengths)).float()
        selected = select_frames(teacher, self.selection)
        return self._each_head(
            heads,
            output,
            lambda logits: sparse_divergence(
                logits,
                teacher.repeated(len(heads)),
                compared_lengths.repeat(len(heads)),
                divergence=self.divergence,
                tail=self.config.tail,
                selected=selected.repeat(len(heads)),
                temperature=self.config.temperature,
            ),
        )

    def _each_head(
        self, heads: Sequence[int], output: StudentOutput, kernel: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Runs a kernel on some heads as one batch: a launch for all instead of one for each."""
        batch = len(output.frame_lengths)
        losses = torch.zeros(len(self.weights), batch, device=output.logits[-1].device)
        if not heads:
            return losses
        logits = torch.stack([output.logits[index] for index in heads])
        values = kernel(logits.flatten(0, 1)).reshape(len(heads), batch)
        return losses.index_copy(0, torch.tensor(heads, device=losses.device), values)

    def _scale(self, frame_lengths: Tensor, target_lengths: Tensor) -> Tensor:
        if self.config.normalisation == "utterance":
            return 1.0 / torch.tensor(float(len(frame_lengths)), device=frame_lengths.device)
        lengths = frame_lengths if self.config.normalisation == "frame" else target_lengths
        return 1.0 / lengths.sum().clamp(min=1)
