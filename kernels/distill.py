"""Divergence of a student head from a cached sparse teacher, per utterance, from logits."""

from __future__ import annotations

from torch import Tensor

from interkd.kernels.ctc_distill import ctc_distill_loss
from interkd.kernels.sparse import SparsePosteriors


def sparse_divergence(
    logits: Tensor,
    teacher: SparsePosteriors,
    frame_lengths: Tensor,
    *,
    divergence: str = "kl",
    tail: str = "bucket",
    selected: Tensor | None = None,
    temperature: float = 1.0,
    backend: str = "auto",
    check_values: bool = True,
) -> Tensor:
    """Divergence between teacher and student, summed over the selected frames of an utterance.

    Each frame is a distribution over classes, p for the teacher and q for the student: `kl` is
    `sum p (log p - log q)` in nats, `l2` is `sum (p - q)^2`, both exactly zero where p equals q.
    The tail convention says what the classes are, on both sides. `bucket`: the kept tokens and
    one class with the mass of all others. `uniform`: all V tokens, the teacher's tail mass spread
    evenly over those not kept. `renormalise`: the kept tokens, both sides renormalised over them.
    A temperature tau softens the classes of both sides, `p^(1/tau)` renormalised; no tau^2 factor
    is applied. B utterances, T frames, V tokens, N teacher frames; softmax is inside.

    Args:
        logits: float32, bfloat16, float16 or float64 `(B, T, V)`; the arithmetic is float32 or
            better, the gradient has the logits' dtype.
        teacher: Cached posteriors of the same B utterances over the same V tokens.
        frame_lengths: Frames compared, from the first of both sides, int64 `(B,)`, each at most T
            and at most the teacher's frames. Frames beyond are never read, their gradient is 0.
        divergence: `kl` or `l2`.
        tail: `bucket`, `uniform` or `renormalise`.
        selected: Teacher frames to compare, bool `(N,)`; None for all of them.
        temperature: Above 0, dimensionless.
        backend: See `ctc_distill_loss`.
        check_values: See `ctc_distill_loss`.

    Returns:
        float32 `(B,)`: 0 for an utterance without selected frames; `inf` (with an exactly zero
        gradient) where the student gives a class of the teacher probability 0.

    Raises:
        ShapeError: If shapes, dtypes or devices do not fit, the vocabularies differ, or a length,
            an offset or a token is out of range.
        ConfigError: For an unknown divergence or tail, or a temperature that is not above 0.
        BackendError: If the backend is unknown or cannot run on the logits' device.

    Source: Hinton et al. 2015, eq. 2 (kl); Yoon et al. 2022, arXiv 2211.15075 (l2); docs/maths.md
    sections 2 to 5.
    """
    return ctc_distill_loss(
        (logits,),
        teacher=teacher,
        ctc_weights=(0.0,),
        compared_lengths=frame_lengths,
        selection="all" if selected is None else selected,
        divergence=divergence,
        tail=tail,
        temperature=temperature,
        backend=backend,
        check_values=check_values,
    ).total
