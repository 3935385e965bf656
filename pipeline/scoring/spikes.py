"""Where a student's CTC heads spike, compared with its teacher: frame offsets of equal tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from interkd.kernels.errors import ShapeError
from interkd.kernels.sparse import SparsePosteriors

HISTOGRAM_LIMIT = 10  # frames; offsets beyond it count in the outermost bins

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Spikes:
    """Tokens of an utterance's best path, S of them, and where each is surest.

    Attributes:
        tokens: int64 `(S,)`, repeats collapsed and blanks dropped.
        frames: int64 `(S,)`, strictly increasing: of the run of frames that makes a token, the one
            that gives it the highest probability; of equal ones the first.
    """

    tokens: Int64
    frames: Int64


@dataclass(frozen=True, kw_only=True)
class SpikeOffsets:
    """How far a student's spikes are from the teacher's, in frames: above 0 the student is later.

    Means and shares are over the matched tokens, and None where there are none.

    Attributes:
        matched: Tokens that the alignment pairs with an equal one.
        student_tokens: All tokens of the student.
        teacher_tokens: All tokens of the teacher.
        mean_offset: Mean of student frame - teacher frame, in frames.
        mean_absolute_offset: Mean distance, in frames.
        share_same_frame: Share of offsets of exactly 0, from 0 to 1.
        share_within_one_frame: Share of offsets of -1, 0 and 1, from 0 to 1.
        histogram: Matched tokens by offset in frames, every one from -10 to 10; the outermost hold
            what lies beyond too.
    """

    matched: int
    student_tokens: int
    teacher_tokens: int
    mean_offset: float | None
    mean_absolute_offset: float | None
    share_same_frame: float | None
    share_within_one_frame: float | None
    histogram: Mapping[int, int]


def spikes(scores: Tensor, frame_lengths: Tensor, *, blank_index: int) -> list[Spikes]:
    """Spikes of a batch of dense posteriors; the tokens are those of `greedy_decode`.

    The reduction over tokens runs on the device of `scores`; one transfer brings the answer back.
    B utterances, T frames, V tokens.

    Args:
        scores: Logits or log-probabilities `(B, T, V)`; of equal scores the lowest token wins.
        frame_lengths: Valid frames, integers `(B,)`, each at most T.
        blank_index: Index of the blank.

    Returns:
        The spikes of each utterance.

    Raises:
        ShapeError: If the shapes do not fit or the blank is outside the vocabulary.
    """
    if scores.ndim != 3 or frame_lengths.shape != scores.shape[:1]:
        raise ShapeError(
            "spikes",
            expected="scores (B, T, V) and frame_lengths (B,)",
            got=f"{tuple(scores.shape)} and {tuple(frame_lengths.shape)}",
        )
    if not 0 <= blank_index < scores.shape[2]:
        raise ShapeError("blank_index", expected=f"0 to {scores.shape[2] - 1}", got=blank_index)
    scores = scores.detach()
    utterances, frames = scores.shape[:2]
    best = scores.argmax(dim=2, keepdim=True)
    # A probability near 1 has no digits left to tell frames apart; the odds against it have.
    others = scores.float() - scores.gather(2, best).float()
    odds = others.scatter_(2, best, -torch.inf).exp_().sum(dim=2)
    is_valid = torch.arange(frames, device=scores.device) < frame_lengths.to(scores.device)[:, None]
    tokens = torch.where(is_valid, best[:, :, 0], blank_index).to(torch.int32)
    packed = torch.stack((tokens, odds.view(torch.int32))).cpu().numpy()
    return _collapse(
        packed[0].ravel().astype(np.int64),
        packed[1].view(np.float32).ravel(),
        np.arange(utterances + 1, dtype=np.int64) * frames,
        blank_index=blank_index,
    )


def teacher_spikes(teacher: SparsePosteriors) -> list[Spikes]:
    """Spikes of cached posteriors: a frame's first entry is the teacher's most probable token.

    A frame without entries counts as a blank. A store rounds probabilities, so near 1 many frames
    of a run are equal, and the first of them is taken.

    Returns:
        The spikes of each utterance.
    """
    offsets = teacher.entry_offsets.cpu().numpy()
    holds_any = np.diff(offsets) > 0
    first = offsets[:-1][holds_any]
    tokens = np.full(len(offsets) - 1, teacher.blank_index, dtype=np.int64)
    against = np.zeros(len(tokens), dtype=np.float32)
    tokens[holds_any] = teacher.tokens.cpu().numpy()[first]
    against[holds_any] = -teacher.log_probs.cpu().numpy()[first]
    return _collapse(
        tokens, against, teacher.frame_offsets.cpu().numpy(), blank_index=teacher.blank_index
    )


def _collapse(
    best: Int64, against: npt.NDArray[np.float32], frame_offsets: Int64, *, blank_index: int
) -> list[Spikes]:
    """Collapses the best paths of B utterances, which lie one after the other; N frames in all.

    Args:
        best: Most probable token of each frame, `(N,)`.
        against: Falls as that token's probability rises, `(N,)`; NaN counts as the highest.
        frame_offsets: First frame of each utterance and the end of the last, `(B + 1,)`.
        blank_index: Index of the blank.
    """
    count = len(best)
    starts_run = np.ones(count, dtype=np.bool_)
    starts_run[1:] = best[1:] != best[:-1]
    starts_run[frame_offsets[frame_offsets < count]] = True
    run_starts = np.flatnonzero(starts_run)
    against = np.where(np.isnan(against), np.inf, against)
    lowest = np.minimum.reduceat(against, run_starts) if count else against
    run_of_frame = np.cumsum(starts_run) - 1
    is_surest = (against == lowest[run_of_frame]) & (best != blank_index)
    surest = np.flatnonzero(is_surest)
    _, first = np.unique(run_of_frame[surest], return_index=True)
    peaks = surest[first]
    bounds = np.searchsorted(peaks, frame_offsets)
    return [
        Spikes(tokens=best[peaks[start:end]], frames=peaks[start:end] - offset)
        for start, end, offset in zip(bounds[:-1], bounds[1:], frame_offsets[:-1], strict=True)
    ]


def compare_spikes(student: Sequence[Spikes], teacher: Sequence[Spikes]) -> SpikeOffsets:
    """Offsets of the student's spikes from the teacher's, over a set of utterances.

    The tokens of an utterance are aligned with the fewest insertions, deletions and substitutions;
    a substituted token has no offset. The alignment does not look at frames: where several have
    equally few edits, as beside a repeated token, it may pair another than the nearest.

    Args:
        student: Spikes of each utterance.
        teacher: Spikes of the same utterances, in frames of the same length.

    Returns:
        The offsets of all utterances together.

    Raises:
        ShapeError: If there are not as many utterances on both sides.
    """
    if len(student) != len(teacher):
        raise ShapeError("student spikes", expected=f"{len(teacher)} utterances", got=len(student))
    offsets = np.concatenate(
        [np.zeros(0, dtype=np.int64)]
        + [_matched_offsets(ours, theirs) for ours, theirs in zip(student, teacher, strict=True)]
    )
    distances = np.abs(offsets)
    bins = np.clip(offsets, -HISTOGRAM_LIMIT, HISTOGRAM_LIMIT) + HISTOGRAM_LIMIT
    counts = np.bincount(bins, minlength=2 * HISTOGRAM_LIMIT + 1).tolist()
    return SpikeOffsets(
        matched=len(offsets),
        student_tokens=sum(len(ours.tokens) for ours in student),
        teacher_tokens=sum(len(theirs.tokens) for theirs in teacher),
        mean_offset=_mean(offsets),
        mean_absolute_offset=_mean(distances),
        share_same_frame=_mean(distances == 0),
        share_within_one_frame=_mean(distances <= 1),
        histogram=dict(enumerate(counts, start=-HISTOGRAM_LIMIT)),
    )


def _matched_offsets(student: Spikes, teacher: Spikes) -> Int64:
    edits = Levenshtein.opcodes(teacher.tokens.tolist(), student.tokens.tolist())
    matches = [edit for edit in edits if edit.tag == "equal"]
    offsets = [
        student.frames[match.dest_start : match.dest_end]
        - teacher.frames[match.src_start : match.src_end]
        for match in matches
    ]
    return np.concatenate(offsets) if offsets else np.zeros(0, dtype=np.int64)


def _mean(values: npt.NDArray[Any]) -> float | None:
    return float(values.mean()) if len(values) else None


def to_json(offsets: Mapping[str, SpikeOffsets]) -> dict[str, Any]:
    """Offsets by head as plain values for JSON; a histogram's keys become text, `-10` to `10`."""
    return {
        name: {
            "matched": head.matched,
            "student_tokens": head.student_tokens,
            "teacher_tokens": head.teacher_tokens,
            "mean_offset_frames": head.mean_offset,
            "mean_absolute_offset_frames": head.mean_absolute_offset,
            "share_same_frame": head.share_same_frame,
            "share_within_one_frame": head.share_within_one_frame,
            "histogram": {str(offset): count for offset, count in head.histogram.items()},
        }
        for name, head in offsets.items()
    }
