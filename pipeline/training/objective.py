"""The training objective: weighted CTC and divergence from the cached teacher, head by head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from interkd.kernels.ctc_distill import ctc_distill_loss
from interkd.kernels.selection import FrameSelection
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
        losses = ctc_distill_loss(
            output.logits,
            targets,
            output.frame_lengths,
            target_lengths,
            teacher,
            ctc_weights=[weights.ctc for weights in self.weights],
            distill_weights=[weights.distill if teacher else 0.0 for weights in self.weights],
            compared_lengths=compared_lengths,
            selection=self.selection,
            divergence=self.divergence,
            tail=self.config.tail,
            temperature=self.config.temperature,
            blank_index=self.blank_index,
            zero_infinity=True,
            backend=self.backend,
            check_values=self.check_values,
        )
        scale = self._scale(output.frame_lengths, target_lengths)
        # NaN is no missing alignment: it stays, for the loop to stop on.
        ctc = losses.ctc.masked_fill(losses.ctc.isposinf(), 0.0)
        return LossTerms(
            total=losses.total.sum() * scale,
            ctc=ctc.sum(1) * scale,
            distill=losses.distill.sum(1) * scale,
            impossible=losses.impossible.sum(),
        )

    def _scale(self, frame_lengths: Tensor, target_lengths: Tensor) -> Tensor | float:
        if self.config.normalisation == "utterance":
            return 1.0 / len(frame_lengths)
        lengths = frame_lengths if self.config.normalisation == "frame" else target_lengths
        return 1.0 / lengths.sum().clamp(min=1)
