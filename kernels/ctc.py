"""CTC loss per utterance, from logits, with the same meaning on every backend."""

from __future__ import annotations

from torch import Tensor

from interkd.kernels.ctc_distill import ctc_distill_loss


def ctc_loss(
    logits: Tensor,
    targets: Tensor,
    frame_lengths: Tensor,
    target_lengths: Tensor,
    *,
    blank_index: int = 0,
    backend: str = "auto",
    check_values: bool = True,
) -> Tensor:
    """Negative log-probability of each transcript, summed over its alignments, in nats.

    `-log sum_paths prod_t softmax(logits)[t, path_t]` over the paths that collapse to the
    transcript. B utterances, T frames, V tokens, U target tokens; softmax is inside. Frames
    beyond `frame_lengths` are never read and get a gradient of exactly 0.

    Args:
        logits: float32, bfloat16, float16 or float64 `(B, T, V)`; the arithmetic is float32 or
            better, the gradient has the logits' dtype.
        targets: int64 `(B, U)`, padded with anything beyond `target_lengths`.
        frame_lengths: int64 `(B,)`, each at most T.
        target_lengths: int64 `(B,)`, each at most U.
        blank_index: Index of the blank.
        backend: See `ctc_distill_loss`.
        check_values: See `ctc_distill_loss`.

    Returns:
        float32 `(B,)`: `inf` (with an exactly zero gradient) for an utterance without any
        possible alignment, 0 for one without frames and targets, NaN for one with a NaN or +inf
        logit, or only -inf logits, in a valid frame.

    Raises:
        ShapeError: If shapes, dtypes or devices do not fit, a length is out of range, or a
            target is the blank or outside `[0, V)`.
        BackendError: If the backend is unknown or cannot run on the logits' device.

    Source: Graves et al. 2006, section 4; docs/maths.md sections 1 and 5.
    """
    return ctc_distill_loss(
        (logits,),
        targets,
        frame_lengths,
        target_lengths,
        blank_index=blank_index,
        backend=backend,
        check_values=check_values,
    ).total
