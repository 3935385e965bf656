"""How far the frames of a store are from the teacher's: divergences and angles of gradients.

The student that the gradients are taken at has the logits log p / 2 + Gaussian noise of standard
deviation 1. All sums over the tokens that a store does not keep are the whole vocabulary's minus
the kept ones', so a frame costs as much as its entries. p is the teacher, p' the store, q the
student; r and R are what store and teacher leave to the tokens that are not kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from store_rows import Encoded
from torch import Tensor

Float64 = npt.NDArray[np.float64]
LEAST_REST = 1e-7  # as interkd.pipeline.cache.compare
TEMPERATURE = 2.0


@dataclass(frozen=True, kw_only=True)
class FrameQuality:
    """What a store loses, frame by frame, `(N,)`.

    Attributes:
        kl_bucket: KL(p || p') with all tokens that are not kept as one class, nats.
        kl_uniform: The same with r spread evenly over them.
        squared: sum (p_v - p'_v)^2 over the vocabulary, r spread evenly.
        kl_dot: Product of the gradients of KL on the student's logits, bucket and dense.
        kl_norm: The bucket's gradient with itself.
        l2_dot: The same for L2, r spread evenly.
        l2_norm: The same.
    """

    kl_bucket: Float64
    kl_uniform: Float64
    squared: Float64
    kl_dot: Float64
    kl_norm: Float64
    l2_dot: Float64
    l2_norm: Float64


def student_logits(log_probs: Tensor, seed: int) -> Tensor:
    """The student that gradients are compared at."""
    noise = torch.randn(log_probs.shape, generator=torch.Generator().manual_seed(seed))
    return log_probs / TEMPERATURE + noise


class DenseFrames:
    """Teacher and student of a block of frames, whole."""

    def __init__(self, log_probs: Tensor, logits: Tensor) -> None:
        p: Float64 = log_probs.double().softmax(1).numpy()
        q: Float64 = logits.double().softmax(1).numpy()
        self.p, self.q = p, q
        self.p_log_p = (p * np.log(np.maximum(p, 1e-300))).sum(1)
        self.p_squared = (p * p).sum(1)
        q2 = q * q
        difference = q - p
        self.slope = difference - (q * difference).sum(1, keepdims=True)
        self.q_powers = [(q2 * q**n).sum(1) for n in range(3)]
        self.q_p = (q * p).sum(1)
        self.q2_slope = (q2 * self.slope).sum(1)
        self.q3_slope = (q2 * q * self.slope).sum(1)
        self.kl_norm = (difference * difference).sum(1)
        self.l2_norm = (q2 * self.slope * self.slope).sum(1)

    def compare(self, store: Encoded) -> FrameQuality:
        """The store's frames against these."""
        counts = np.diff(store.offsets)
        frames = np.repeat(np.arange(len(counts)), counts)
        p, q = self.p[frames, store.tokens], self.q[frames, store.tokens]
        unkept = self.p.shape[1] - counts
        has_tail = unkept > 0

        def total(values: Any) -> Float64:
            sums = np.bincount(frames, weights=values, minlength=len(counts))
            return sums.astype(np.float64, copy=False)

        # A frame that keeps the whole vocabulary has no tail: docs/maths.md section 3.
        kept = store.probs / np.where(has_tail, 1.0, total(store.probs))[frames]
        rest = np.where(has_tail, np.maximum(1.0 - total(kept), 0.0), 0.0)
        true_rest = np.where(has_tail, np.maximum(1.0 - total(p), 0.0), 0.0)
        log_rest = np.log(np.maximum(true_rest, 1e-300))
        log_p = np.log(np.maximum(p, 1e-300))
        kl_bucket = total(p * (log_p - np.log(kept)))
        kl_bucket += true_rest * (log_rest - np.log(np.maximum(rest, LEAST_REST)))
        spread = true_rest * (np.log(np.maximum(unkept, 1)) - log_rest)
        spread += np.where(has_tail, self.p_log_p - total(p * log_p), 0.0)

        even = rest / np.maximum(unkept, 1)
        squared = total((p - kept) ** 2) - 2 * even * true_rest + unkept * even**2
        squared += np.where(has_tail, self.p_squared - total(p * p), 0.0)

        # KL: q - p' on kept tokens, the tail's (Q_r - r) shared in proportion to q.
        q_rest = np.maximum(1.0 - total(q), 0.0)
        share = np.where(q_rest > 1e-12, (q_rest - rest) / np.maximum(q_rest, 1e-12), 0.0)
        q2, q3, q4 = (
            np.maximum(whole - total(q * q * q**n), 0.0) for n, whole in enumerate(self.q_powers)
        )
        kl_dot = total((q - kept) * (q - p)) + share * (q2 - self.q_p + total(q * p))
        kl_norm = total((q - kept) ** 2) + share**2 * q2

        # L2: q_v (d_v - sum q d), d = q - p'; twice that is the gradient.
        mean = self.q_powers[0] - total(q * kept) - even * q_rest
        level = even + mean
        slope = self.slope[frames, store.tokens]
        kept_slope = q - kept - mean[frames]
        l2_dot = total(q * q * kept_slope * slope)
        l2_dot += self.q3_slope - total(q**3 * slope)
        l2_dot -= level * (self.q2_slope - total(q * q * slope))
        l2_norm = total((q * kept_slope) ** 2) + q4 - 2 * level * q3 + level**2 * q2
        return FrameQuality(
            kl_bucket=kl_bucket,
            kl_uniform=kl_bucket + spread,
            squared=squared,
            kl_dot=kl_dot,
            kl_norm=kl_norm,
            l2_dot=l2_dot,
            l2_norm=l2_norm,
        )


def angles(dot: Float64, norm: Float64, dense_norm: Float64, utterances: Any) -> Float64:
    """Degrees between two gradients of each utterance, its frames one after the other.

    Args:
        dot: Products of the two, frame by frame, `(N,)`.
        norm: The first with itself, `(N,)`.
        dense_norm: The second with itself, `(N,)`.
        utterances: Which utterance a frame is of, `(N,)`.
    """
    dots, norms, others = (
        np.bincount(utterances, weights=values) for values in (dot, norm, dense_norm)
    )
    cosines = dots / np.sqrt(np.maximum(norms * others, 1e-300))
    degrees: Float64 = np.degrees(np.arccos(np.clip(cosines, -1.0, 1.0)))
    return degrees
