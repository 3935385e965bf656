"""How far stored frames are from the teacher's posteriors, and what rounding alone would make."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from interkd.pipeline.cache.codec import encode_frames, get_quantiser, pack_codes
from interkd.pipeline.cache.compare import (
    Bools,
    FrameDistances,
    best_tokens,
    bucket_distances,
    compare_frames,
    frame_of_entries,
)
from interkd.pipeline.cache.fingerprint import Fingerprint
from interkd.pipeline.cache.layout import Expanded
from interkd.pipeline.cache.versions import layout_of


@dataclass(frozen=True, kw_only=True)
class Gap:
    """How far stored frames are from the teacher's posteriors.

    Attributes:
        mean_divergence: Mean KL(teacher || stored) in nats a frame, over the tokens that are
            stored of it, and all else as one bucket of at least 1e-7.
        largest_divergence: Largest of a frame.
        mean_difference: Mean over the frames of the largest difference of a probability.
        largest_difference: Largest of all.
        changed_best: Share of frames whose most probable token is another, 0 to 1.
    """

    mean_divergence: float
    largest_divergence: float
    mean_difference: float
    largest_difference: float
    changed_best: float


@dataclass(frozen=True, kw_only=True)
class UtteranceCheck:
    """One utterance's stored frames held against fresh posteriors; N frames.

    Attributes:
        found: Distances of the fresh posteriors from the stored frames.
        changed: Whether the most probable token is another, `(N,)`.
        expected: Distances of the fresh posteriors from their own codes; None for version 1, whose
            codes are no longer made.
        fresh_changed: Whether those codes have another most probable token, `(N,)`; as `changed`
            for version 1.
        equal_codes: Whether the stored codes are those of the fresh posteriors, `(N,)`; or None.
    """

    found: FrameDistances
    changed: Bools
    expected: FrameDistances | None
    fresh_changed: Bools
    equal_codes: Bools | None


def check_utterance(
    stored: Expanded, log_probs: Tensor, fingerprint: Fingerprint
) -> UtteranceCheck:
    """Compares an utterance's frames.

    Args:
        stored: As the store has them.
        log_probs: As the teacher makes them now, float32 `(N, V)` on the CPU.
        fingerprint: Of the store.
    """
    best = log_probs.argmax(dim=1).numpy()
    found = _distances(log_probs, stored)
    changed = best_tokens(stored) != best
    if fingerprint.format_version == 1:
        return UtteranceCheck(
            found=found, changed=changed, expected=None, fresh_changed=changed, equal_codes=None
        )
    fresh = _encoded(log_probs, fingerprint)
    return UtteranceCheck(
        found=found,
        changed=changed,
        expected=_distances(log_probs, fresh),
        fresh_changed=best_tokens(fresh) != best,
        equal_codes=compare_frames(stored, fresh, fingerprint.vocab_size).identical,
    )


def _distances(log_probs: Tensor, stored: Expanded) -> FrameDistances:
    """Of the teacher's posteriors from what is stored of them."""
    frames = frame_of_entries(stored)
    probs = torch.softmax(log_probs.double(), dim=1).numpy()[frames, stored.tokens]
    stored_probs = np.exp(stored.log_probs.astype(np.float64))
    smallest = np.finfo(np.float64).tiny  # a fresh probability may be 0
    return bucket_distances(np.maximum(probs, smallest), stored_probs, frames, len(log_probs))


def _encoded(log_probs: Tensor, fingerprint: Fingerprint) -> Expanded:
    """The frames as a store with that fingerprint would keep them."""
    encoded = encode_frames(
        log_probs,
        top_k=fingerprint.top_k,
        mass=fingerprint.mass,
        quantiser=get_quantiser(fingerprint.quantiser),
        blank_index=fingerprint.blank_index,
    )
    *columns, _ = (column.numpy() for column in encoded.columns())
    packed = pack_codes(*columns)
    payload = dict(zip(("blank", "token", "fraction"), packed, strict=True))
    return layout_of(fingerprint).expand(payload, fingerprint)


def gap_of(distances: Sequence[FrameDistances], changed: Sequence[Bools]) -> Gap:
    """The summary of some utterances."""
    divergence = np.concatenate([d.divergence for d in distances])
    largest = np.concatenate([d.largest for d in distances])
    count = max(1, len(divergence))
    return Gap(
        mean_divergence=math.fsum(divergence) / count,
        largest_divergence=float(divergence.max(initial=0.0)),
        mean_difference=math.fsum(largest) / count,
        largest_difference=float(largest.max(initial=0.0)),
        changed_best=float(np.concatenate(changed).sum()) / count,
    )
