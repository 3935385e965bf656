"""Batches of utterances of similar length: a pure function of seed and epoch.

The order of an epoch is computed whole, so a run resumes in the middle of it by recomputing and
skipping, at no cost. (Lhotse's DynamicBucketingSampler resumes exactly too, but by replaying the
epoch: 8.6 s at 100,000 utterances in batches of 60 s, against 0.1 s here.)
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from interkd.kernels.errors import ConfigError
from interkd.pipeline.corpus.manifest import Utterance


class BatchSampler:
    """Batches of indexes into the utterances, bucketed by length, the same in every process.

    Utterances are sorted by length and cut into buckets of equal total length. An epoch shuffles
    each bucket, fills batches from it up to `max_seconds` of padded audio, puts what is left over
    into the next bucket, and shuffles the batches. Every utterance occurs exactly once an epoch.
    The batches of one step are of similar length; a few are halved so that the count divides (only
    a corpus of single-utterance batches repeats some instead).

    Args:
        utterances: All of one manifest.
        max_seconds: Most seconds of a batch with its padding: longest utterance times count. A
            longer utterance is a batch by itself, with a warning here.
        buckets: How many buckets; more waste less padding, fewer shuffle better.
        seed: Together with the epoch decides the order.
        batches_a_step: Batches `i * batches_a_step` and those that follow are of step `i`.
        groups: Group of each utterance (the part of the teacher cache that holds its targets), for
            corpora whose targets do not fit in memory; None where they do.
        fixed_shapes: Every batch of a bucket has as many utterances as fit at the bucket's
            longest, so that an epoch has few shapes of batch, with one window of groups nearly
            the same ones every epoch: what CUDA graphs need. Pad each to the longest of its
            `padded_samples`.
        groups_at_once: Groups from which batches are drawn at a time: an epoch goes through the
            groups in a shuffled order, so many at once, and reads each of them once.

    Raises:
        ConfigError: For a value out of range, or fewer utterances than batches in a step.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        *,
        max_seconds: float,
        buckets: int,
        seed: int,
        batches_a_step: int = 1,
        groups: Sequence[int] | None = None,
        groups_at_once: int = 1,
        fixed_shapes: bool = False,
    ) -> None:
        _check_range("max_seconds", max_seconds, max_seconds > 0, "above 0")
        _check_range("buckets", buckets, buckets >= 1, "at least 1")
        _check_range("seed", seed, seed >= 0, "at least 0")
        _check_range(
            "batches_a_step",
            batches_a_step,
            1 <= batches_a_step <= len(utterances),
            f"1 to the number of utterances, {len(utterances)}",
        )
        _check_range("groups_at_once", groups_at_once, groups_at_once >= 1, "at least 1")
        self._seed = seed
        self._batches_a_step = batches_a_step
        self._samples = np.array([u.samples for u in utterances], dtype=np.int64)
        self._max_samples = int(max_seconds * utterances[0].sample_rate)
        self._bucket_count = buckets
        self._fixed_shapes = fixed_shapes
        self.padded_samples = self._samples.copy()
        if fixed_shapes:
            # A longer one is by itself, and must not make its bucket as long.
            fitting = np.flatnonzero(self._samples <= self._max_samples)
            for bucket in _split_by_total(self._samples[fitting], buckets):
                members = fitting[bucket]
                self.padded_samples[members] = self._samples[members].max()
        self._groups = np.zeros(len(utterances), np.int64) if groups is None else np.array(groups)
        self._groups_at_once = groups_at_once
        longer = int((self._samples > self._max_samples).sum())
        if longer:
            longest = utterances[int(self._samples.argmax())]
            warnings.warn(
                f"{longer} utterances are longer than max_seconds {max_seconds:g}, each a batch by "
                f"itself; the longest, '{longest.utt_id}', has {longest.duration:.1f} s",
                stacklevel=2,
            )

    def batches(self, epoch: int) -> list[list[int]]:
        """The epoch's batches in their order."""
        random = np.random.default_rng((self._seed, epoch))
        groups = np.unique(self._groups)
        if len(groups) > 1:
            groups = random.permutation(groups)
        batches: list[list[int]] = []
        for first in range(0, len(groups), self._groups_at_once):
            window = np.isin(self._groups, groups[first : first + self._groups_at_once])
            batches += self._window_batches(np.flatnonzero(window), random)
        return batches

    def _window_batches(
        self, window: npt.NDArray[np.int64], random: np.random.Generator
    ) -> list[list[int]]:
        batches: list[list[int]] = []
        if self._fixed_shapes:
            longest = self.padded_samples[window]
            buckets = [np.flatnonzero(longest == length) for length in np.unique(longest)]
        else:
            buckets = _split_by_total(self._samples[window], self._bucket_count)
        left_over: list[int] = []
        for bucket in buckets:
            order = window[bucket]
            if self.padded_samples[order].max() <= self._max_samples:
                order = np.append(np.array(left_over, np.int64), order)
            else:  # a long one would part them
                batches += [left_over] if left_over else []
            order = random.permutation(order)
            *full, left_over = _fill(order, self.padded_samples, self._max_samples)
            batches += full
        batches.append(left_over)
        size = self._batches_a_step
        while len(batches) % size:
            _halve_largest(batches)
        steps = random.permutation(len(batches) // size)
        return [batches[step * size + place] for step in steps for place in range(size)]


def digest_of(batches: Sequence[Sequence[int]]) -> str:
    """SHA-256 of an epoch's batches: says whether two starts of a run go the same way."""
    sizes = np.array([len(batch) for batch in batches], dtype="<i8")
    indexes = np.concatenate([np.array(batch, dtype="<i8") for batch in batches])
    return hashlib.sha256(sizes.tobytes() + indexes.tobytes()).hexdigest()


def length_sorted_batches(utterances: Sequence[Utterance], max_seconds: float) -> list[list[int]]:
    """Batches for inference: shortest utterances first, equal ones in their order.

    Args:
        utterances: May be empty.
        max_seconds: Most seconds of a batch with its padding; a longer utterance is by itself.

    Returns:
        Indexes into the utterances, each exactly once.

    Raises:
        ConfigError: If `max_seconds` is not above 0.
    """
    _check_range("max_seconds", max_seconds, max_seconds > 0, "above 0")
    samples = np.array([u.samples for u in utterances], dtype=np.int64)
    limit = int(max_seconds * utterances[0].sample_rate) if utterances else 0
    return _fill(np.argsort(samples, kind="stable"), samples, limit)


def _check_range(name: str, value: object, is_right: bool, expected: str) -> None:
    if not is_right:
        raise ConfigError(name, expected=expected, got=value)


def _split_by_total(samples: npt.NDArray[np.int64], parts: int) -> list[npt.NDArray[np.int64]]:
    """Indexes sorted by length, in at most `parts` runs of about equal total length."""
    order = np.argsort(samples, kind="stable")
    middles = np.cumsum(samples[order]) - samples[order] / 2
    targets = samples.sum() * np.arange(1, parts) / parts
    runs = np.split(order, np.searchsorted(middles, targets))
    return [run for run in runs if len(run)]


def _fill(
    order: npt.NDArray[np.int64], samples: npt.NDArray[np.int64], max_samples: int
) -> list[list[int]]:
    """Consecutive batches of `order`, each of at most `max_samples` with padding, or of one."""
    batches: list[list[int]] = []
    batch: list[int] = []
    longest = 0
    for index, length in zip(order.tolist(), samples[order].tolist(), strict=True):
        longest = max(longest, length)
        if batch and longest * (len(batch) + 1) > max_samples:
            batches.append(batch)
            batch, longest = [], length
        batch.append(index)
    if batch:
        batches.append(batch)
    return batches


def _halve_largest(batches: list[list[int]]) -> None:
    """Makes one batch more, in place, beside the one it comes from."""
    position = max(range(len(batches)), key=lambda i: len(batches[i]))
    batch = batches[position]
    middle = len(batch) // 2
    # Batches of one cannot be halved: that one is heard twice this epoch.
    batches[position : position + 1] = (
        [batch[:middle], batch[middle:]] if middle else [batch, batch]
    )
