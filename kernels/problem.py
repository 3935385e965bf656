"""What a fused loss is asked to compute: the validated arguments that every backend reads."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from interkd.kernels.sparse import SparsePosteriors


@dataclass(frozen=True, kw_only=True)
class Transcripts:
    """The CTC half, its tensors contiguous. B utterances, at most U target tokens.

    Attributes:
        heads: Heads whose loss is wanted, each once, rising.
        targets: int64 `(B, U)`.
        frame_lengths: int64 `(B,)`.
        target_lengths: int64 `(B,)`.
        blank_index: Index of the blank.
    """

    heads: tuple[int, ...]
    targets: Tensor
    frame_lengths: Tensor
    target_lengths: Tensor
    blank_index: int


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """The teacher's half, its tensors contiguous. N teacher frames.

    Attributes:
        heads: Heads whose divergence is wanted, each once, rising.
        teacher: Posteriors of the same B utterances.
        compared_lengths: Frames compared, int64 `(B,)`.
        selected: bool `(N,)`; None for all frames.
        divergence: `kl` or `l2`.
        tail: `bucket`, `uniform` or `renormalise`.
        temperature: Above 0.
    """

    heads: tuple[int, ...]
    teacher: SparsePosteriors
    compared_lengths: Tensor
    selected: Tensor | None
    divergence: str
    tail: str
    temperature: float


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Both halves, and how their losses add up. A half that no head wants is None.

    Attributes:
        transcripts: The CTC half.
        distillation: The teacher's half.
        ctc_weights: Of each head's CTC loss.
        distill_weights: Of each head's divergence.
        zero_infinity: Whether an infinite CTC loss counts 0 in the weighted sum.
    """

    transcripts: Transcripts | None
    distillation: Distillation | None
    ctc_weights: tuple[float, ...]
    distill_weights: tuple[float, ...]
    zero_infinity: bool
