"""Mass3 and NTDK: distillation on the frames that the transcript's tokens own.

The teacher's own forward-backward says which token of the transcript a frame belongs to, and how
firmly. There the student learns how the teacher splits its mass between the blank, that token and
the rest (Mass3), and how it splits the rest (NTDK, non-target distribution).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from interkd.kernels.checks import check_column, check_logits, check_teacher
from interkd.kernels.ctc import ctc_loss
from interkd.kernels.errors import ConfigError
from interkd.kernels.sparse import SparsePosteriors

_LEAST_PROB = 1e-8  # of any token in the teacher's lattice, so that every transcript has a path
_LEAST_REST = 1e-7  # less mass than this has no distribution worth learning
_NEVER = -1e30  # score of a class without members; finite, so that no gradient is NaN
_UNIT = 2.0**-40  # masses are added as integers: the same sum in any order


@dataclass(frozen=True, kw_only=True)
class TokenSupport:
    """The token of the transcript that owns each teacher frame, and how firmly.

    B utterances, F frames, padded.

    Attributes:
        tokens: int64 `(B, F)`, never the blank where the weight is above 0.
        weights: Occupancy of that token, float32 `(B, F)`, 0 to 1; 0 in padding.
    """

    tokens: Tensor
    weights: Tensor


@torch.no_grad()
def token_support(
    teacher: SparsePosteriors,
    targets: Tensor,
    target_lengths: Tensor,
    *,
    blank_penalty: float,
    frames: int | None = None,
    backend: str = "auto",
    check_values: bool = True,
) -> TokenSupport:
    """Which token of the transcript owns a teacher frame: the non-blank one of most occupancy.

    Occupancy is the probability that a path of the transcript emits the token at the frame, by
    the teacher's posteriors with the blank's logit lowered by `blank_penalty`: a spike's
    neighbours, otherwise the blank's, then belong to the token too. The tail is spread evenly over
    the tokens not kept; no probability is below 1e-8. Without gradient. B utterances, F frames,
    V tokens, U target tokens; some three arrays `(B, F, V)` at a time.

    Args:
        teacher: Cached posteriors of the same B utterances.
        targets: int64 `(B, U)`, padded with anything beyond `target_lengths`.
        target_lengths: int64 `(B,)`, each at most U.
        blank_penalty: In nats, finite.
        frames: F, at least as many as the teacher's longest utterance has; None looks that up,
            which on a GPU waits for the device.
        backend: See `ctc_loss`.
        check_values: See `ctc_loss`.

    Returns:
        The support; an utterance without any alignment has none, its weights are 0.

    Raises:
        ShapeError: If shapes, dtypes or devices do not fit, the teacher has more than F frames, a
            length is out of range, or a target is the blank or outside `[0, V)`.
        ConfigError: If the penalty is not finite.
        BackendError: If the backend is unknown or cannot run on the device.

    Source: occupancies, Graves et al. 2006, section 4; docs/maths.md.
    """
    if not math.isfinite(blank_penalty):
        raise ConfigError("blank_penalty", expected="a finite number of nats", got=blank_penalty)
    if frames is None:
        frames = max(teacher.frame_lengths.tolist(), default=0)
    blank = torch.arange(teacher.vocab_size, device=targets.device) == teacher.blank_index
    logits = _dense(teacher, frames, torch.float32).probs.clamp(min=_LEAST_PROB).log()
    logits = torch.where(blank, logits - blank_penalty, logits)
    with torch.enable_grad():
        loss = ctc_loss(
            logits.requires_grad_(),
            targets,
            teacher.frame_lengths,
            target_lengths,
            blank_index=teacher.blank_index,
            backend=backend,
            check_values=check_values,
        )
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
    # What the difference leaves on other tokens is rounding.
    spoken = _spoken(targets, target_lengths, teacher)[:, None]
    occupancy = torch.where(spoken, logits.detach().softmax(2) - gradient, 0.0)
    weights, tokens = occupancy.max(2)
    owned = torch.arange(frames, device=targets.device) < teacher.frame_lengths[:, None]
    owned = owned & ~loss.isposinf()[:, None]
    return TokenSupport(tokens=tokens, weights=torch.where(owned, weights.clamp(0, 1), 0.0))


def token_distill_loss(
    logits: Tensor,
    teacher: SparsePosteriors,
    support: TokenSupport,
    compared_lengths: Tensor,
    *,
    rest_weight: float = 1.0,
) -> Tensor:
    """Mass3 and NTDK, weighted by the support and summed over an utterance's frames, in nats.

    `sum_t w_t (Mass3_t + rest_weight * NTDK_t)` with y the frame's right token: Mass3 is the KL of
    the masses of blank, y and rest; NTDK the KL of the rest's conditional distributions, whose
    classes are the kept tokens of the rest and, as one bucket, those not kept. 0 where the student
    equals the teacher. A blank or y that the teacher does not keep has its even share of the tail.
    Where the teacher's rest is below 1e-7, NTDK is 0. Nothing waits for the device. B utterances,
    T frames, V tokens, F frames of support; softmax is inside. Some ten arrays `(B, T, V)`, among
    them one head's dense teacher.

    Args:
        logits: Finite where a frame counts, float32, bfloat16, float16 or float64 `(B, T, V)`; the
            arithmetic is float32 or better, the gradient has the logits' dtype.
        teacher: Cached posteriors of the same B utterances over the same V tokens.
        support: Of the same utterances, by `token_support`; F may differ from T.
        compared_lengths: Frames compared, from the first of both sides, int64 `(B,)`. Frames
            beyond it, or beyond either side, do not count: their gradient is 0 whatever they hold.
        rest_weight: Of NTDK, dimensionless.

    Returns:
        float32 `(B,)`, exactly 0 for an utterance without support.

    Raises:
        ShapeError: If shapes, dtypes or devices do not fit, or the vocabularies differ.

    Source: docs/maths.md; NTDK's split is that of Zhao et al. 2022, arXiv 2203.08679.
    """
    check_logits((logits,))
    check_teacher(logits, teacher, compared_lengths, check_values=False)
    batch, frames, _ = logits.shape
    check_column("support.tokens", support.tokens, (batch, None), torch.int64, logits)
    check_column("support.weights", support.weights, support.tokens.shape, torch.float32, logits)
    missing = (0, frames - support.tokens.shape[1])  # negative where there are too many
    right = F.pad(support.tokens, missing, value=teacher.blank_index)
    weights = F.pad(support.weights, missing)
    lengths = torch.minimum(compared_lengths, teacher.frame_lengths)
    counted = torch.arange(frames, device=logits.device) < lengths[:, None]
    counted = counted & (weights > 0) & (right != teacher.blank_index)

    scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
    scores = torch.where(counted[:, :, None], scores, 0.0)
    split = _split(teacher, right, scores.dtype)
    rest_peak, rest_excess = _log_sum_exp(scores, split.in_rest)
    tail_peak, tail_excess = _log_sum_exp(scores, split.in_tail)
    peak = scores.detach().amax(2)
    blank_and_right = [scores[:, :, teacher.blank_index] - peak, _at(scores, right) - peak]
    log_masses = torch.stack([*blank_and_right, (rest_peak - peak) + rest_excess], 2).log_softmax(2)
    mass3 = _divergence(split.masses, log_masses).sum(2)
    log_kept = (scores - rest_peak[:, :, None]) - rest_excess[:, :, None]
    log_tail = (tail_peak - rest_peak) + (tail_excess - rest_excess)
    ntdk = _divergence(split.kept, log_kept).sum(2) + _divergence(split.tail, log_tail)
    frame_losses = weights * (mass3 + rest_weight * ntdk)
    return torch.where(counted, frame_losses, 0.0).sum(1).float()


@dataclass(frozen=True, kw_only=True)
class _Dense:
    """A teacher over all tokens, `(B, T, V)`: what it keeps, and even shares of the tail.

    Attributes:
        probs: Of each token; uniform in frames that keep nothing.
        kept: Whether the teacher keeps the token, bool.
        share: Of one token not kept, `(B, T, 1)`.
    """

    probs: Tensor
    kept: Tensor
    share: Tensor


@dataclass(frozen=True, kw_only=True)
class _Split:
    """The teacher's classes at each frame.

    Attributes:
        masses: Of blank, right token and rest, `(B, T, 3)`.
        kept: Of the rest, each kept token's share in it, `(B, T, V)`, 0 elsewhere.
        tail: Of the rest, the share of the tokens not kept, `(B, T)`.
        in_rest: Neither blank nor right, bool `(B, T, V)`.
        in_tail: Those of the rest that are not kept, bool `(B, T, V)`.
    """

    masses: Tensor
    kept: Tensor
    tail: Tensor
    in_rest: Tensor
    in_tail: Tensor


def _split(teacher: SparsePosteriors, right: Tensor, dtype: torch.dtype) -> _Split:
    dense = _dense(teacher, right.shape[1], dtype)
    token = torch.arange(teacher.vocab_size, device=right.device)
    in_rest = (token != teacher.blank_index) & (token != right[:, :, None])
    in_tail = in_rest & ~dense.kept
    kept = torch.where(in_rest & dense.kept, dense.probs, 0.0)
    tail = dense.share[:, :, 0] * in_tail.sum(2)
    rest = kept.sum(2) + tail
    # One over the rest's mass, or 0 for what is not worth a distribution.
    scale = torch.where(rest >= _LEAST_REST, 1 / rest.clamp(min=_LEAST_REST), 0.0)
    blank_and_right = [dense.probs[:, :, teacher.blank_index], _at(dense.probs, right)]
    return _Split(
        masses=torch.stack([*blank_and_right, rest], 2),
        kept=kept * scale[:, :, None],
        tail=tail * scale,
        in_rest=in_rest,
        in_tail=in_tail,
    )


def _dense(teacher: SparsePosteriors, frames: int, dtype: torch.dtype) -> _Dense:
    """The teacher's first T frames, every size known without a look at the device."""
    batch, vocab_size, device = teacher.batch_size, teacher.vocab_size, teacher.tokens.device
    counts = teacher.entry_offsets.diff()
    probs = teacher.log_probs.double().exp()
    units = (probs / _UNIT).round().long().cumsum(0)
    mass = F.pad(units, (1, 0))[teacher.entry_offsets].diff().double() * _UNIT
    is_whole = counts == vocab_size
    share = torch.where(is_whole, 0.0, (1 - mass).clamp(min=0) / (vocab_size - counts).clamp(min=1))
    total = torch.where(is_whole & (mass > 0), mass, mass.clamp(min=1))

    entry_frame = teacher.frame_of_entry()
    utterance = teacher.utterance_of_frame()
    time = torch.arange(len(counts), device=device) - teacher.frame_offsets[utterance]
    # Frames from T on go to one spare slot.
    spare = batch * frames * vocab_size
    start = torch.where(time < frames, (utterance * frames + time) * vocab_size, spare)[entry_frame]
    is_entry = torch.arange(len(probs), device=device) < teacher.entry_offsets[-1]
    start = torch.where(is_entry, start, spare)  # what stands in the room is nobody's
    slot = (start + teacher.tokens.long()).clamp(max=spare)
    values = torch.full((spare + 1,), -1.0, dtype=dtype, device=device)
    values = values.scatter_(0, slot, (probs / total[entry_frame]).to(dtype))
    values = values[:spare].view(batch, frames, vocab_size)

    row = teacher.frame_offsets[:-1, None] + torch.arange(frames, device=device)
    share = F.pad(share, (0, 1), value=1 / vocab_size)[row.clamp(max=len(counts))]
    share = share.to(dtype)[:, :, None]
    kept = values != -1
    return _Dense(probs=torch.where(kept, values, share), kept=kept, share=share)


def _spoken(targets: Tensor, target_lengths: Tensor, teacher: SparsePosteriors) -> Tensor:
    """Which tokens a transcript has, bool `(B, V)`."""
    place = torch.arange(targets.shape[1], device=targets.device)
    padding = place >= target_lengths[:, None]
    spoken = torch.zeros(
        len(targets), teacher.vocab_size, dtype=torch.bool, device=targets.device
    ).scatter_(1, targets.masked_fill(padding, teacher.blank_index), True)
    spoken[:, teacher.blank_index] = False
    return spoken


def _at(values: Tensor, token: Tensor) -> Tensor:
    """The values `(B, T, V)` of one token a frame, `(B, T)`."""
    return values.gather(2, token[:, :, None])[:, :, 0]


def _log_sum_exp(scores: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """Over the members among the tokens: their maximum, a constant, and what comes on top.

    Apart, since a float32 maximum of 1e4 would swallow three digits of the other. Both `(B, T)`;
    the maximum is -1e30 where there is no member.
    """
    masked = scores.masked_fill(~members, _NEVER)
    peak = masked.detach().amax(2)
    return peak, (masked - peak[:, :, None]).logsumexp(2)


def _divergence(p: Tensor, log_q: Tensor) -> Tensor:
    """`p (log p - log q)`, 0 where p is 0."""
    return torch.xlogy(p, p) - p * log_q
