"""What differs between two stores: settings, utterances, audio, and frame by frame the numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from interkd.kernels.sparse import SparsePosteriors
from interkd.pipeline.cache.compare import best_tokens, compare_frames
from interkd.pipeline.cache.fingerprint import Fingerprint
from interkd.pipeline.cache.layout import Expanded
from interkd.pipeline.cache.parts_parallel import Progress, map_parts
from interkd.pipeline.cache.reader import TeacherStore

_MEMORY_GB = 2.0  # each store


@dataclass(frozen=True, kw_only=True)
class FieldDifference:
    """A field of the fingerprint that is not the same; of tokens the first that differs."""

    field: str
    left: Any
    right: Any


@dataclass(frozen=True, kw_only=True)
class FrameDifferences:
    """The frames of the utterances that both stores hold, of the same audio.

    The divergences are over the tokens that both keep of a frame, and all else as one bucket of at
    least 1e-7 (`compare.bucket_distances`).

    Attributes:
        utterances: Compared.
        frames: Compared.
        identical: Frames with the same tokens and, to the last bit, the same probabilities; under
            one quantiser these are the frames with the same codes.
        same_tokens: Frames that keep the same tokens.
        same_best: Frames with the same most probable token.
        mean_divergence: Mean KL(left || right) in nats a frame.
        mean_reverse: Mean KL(right || left).
        largest_divergence: Largest KL(left || right) of a frame.
        largest_difference: Largest difference of the probability of a class.
        largest_at: Utterance in which it is; None where nothing differs.
    """

    utterances: int = 0
    frames: int = 0
    identical: int = 0
    same_tokens: int = 0
    same_best: int = 0
    mean_divergence: float = 0.0
    mean_reverse: float = 0.0
    largest_divergence: float = 0.0
    largest_difference: float = 0.0
    largest_at: str | None = None


@dataclass(frozen=True, kw_only=True)
class StoreDiff:
    """Everything in which two stores differ; how they are cut into parts is not compared.

    Attributes:
        left: Path of the one.
        right: Path of the other.
        fields: Fields of the fingerprint that differ, the teacher's name left out.
        only_left: Ids of utterances that the left store alone holds.
        only_right: Ids of utterances that the right store alone holds.
        other_audio: Ids of utterances that the stores hold of other audio.
        other_lengths: Ids of utterances of the same audio with other numbers of frames.
        frames: The others, frame by frame; None where the vocabularies differ.
    """

    left: Path
    right: Path
    fields: tuple[FieldDifference, ...]
    only_left: tuple[str, ...]
    only_right: tuple[str, ...]
    other_audio: tuple[str, ...]
    other_lengths: tuple[str, ...]
    frames: FrameDifferences | None

    @property
    def is_equal(self) -> bool:
        """Whether either store says the same of the same utterances."""
        lists = (self.fields, self.only_left, self.only_right, self.other_audio, self.other_lengths)
        is_same = self.frames is not None and self.frames.identical == self.frames.frames
        return is_same and not any(lists)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = dataclasses.asdict(self)
        values |= {"left": str(self.left), "right": str(self.right), "is_equal": self.is_equal}
        return values


def diff(left: Path, right: Path, *, progress: Progress | None = None) -> StoreDiff:
    """Compares two finished stores of any versions.

    Args:
        left: The one.
        right: The other.
        progress: Called with the parts done and the parts in all, after each part of `left`.

    Raises:
        StoreError: As `TeacherStore.open`.
        CorruptStoreError: For a damaged part.
    """
    one = TeacherStore.open(left, memory_gb=_MEMORY_GB)
    other = TeacherStore.open(right, memory_gb=_MEMORY_GB)
    known_left, known_right = set(one.utterance_ids), set(other.utterance_ids)
    common = [utt_id for utt_id in one.utterance_ids if utt_id in known_right]
    other_audio = {u for u in common if one.audio_hash(u) != other.audio_hash(u)}
    fields = _field_differences(one.fingerprint, other.fingerprint)
    is_comparable = not {"tokens", "blank_index"} & {difference.field for difference in fields}
    results: list[tuple[FrameDifferences, list[str]]] = []
    if is_comparable:

        def compare(part: int) -> tuple[FrameDifferences, list[str]]:
            ids = one.index.utt_ids[one.index.rows_of(part)]
            wanted = [u for u in ids if u in known_right and u not in other_audio]
            return _compare(one, other, wanted)

        results = map_parts(compare, one.part_count, progress)
    return StoreDiff(
        left=one.path,
        right=other.path,
        fields=tuple(fields),
        only_left=tuple(u for u in one.utterance_ids if u not in known_right),
        only_right=tuple(u for u in other.utterance_ids if u not in known_left),
        other_audio=tuple(u for u in common if u in other_audio),
        other_lengths=tuple(u for _, ids in results for u in ids),
        frames=_total([found for found, _ in results]) if is_comparable else None,
    )


def _field_differences(left: Fingerprint, right: Fingerprint) -> list[FieldDifference]:
    differences = []
    for name in (field.name for field in dataclasses.fields(Fingerprint)):
        one, other = getattr(left, name), getattr(right, name)
        if name == "teacher" or one == other:
            continue
        if name == "tokens":
            shorter = min(len(one), len(other))
            index = next((i for i in range(shorter) if one[i] != other[i]), shorter)
            one, other = (
                f"{tokens[index] if index < len(tokens) else None!r} at {index} of {len(tokens)}"
                for tokens in (one, other)
            )
        elif name == "frame_formula":
            one, other = str(one), str(other)
        differences.append(FieldDifference(field=name, left=one, right=other))
    return differences


def _compare(
    left: TeacherStore, right: TeacherStore, utt_ids: Sequence[str]
) -> tuple[FrameDifferences, list[str]]:
    """The frames of utterances that both stores hold, and the ids of those of other lengths."""
    unequal = [u for u in utt_ids if left.frame_count(u) != right.frame_count(u)]
    ids = [u for u in utt_ids if u not in unequal] if unequal else list(utt_ids)
    one, other = left.targets(ids), right.targets(ids)
    one_frames, other_frames = _expanded(one), _expanded(other)
    comparison = compare_frames(one_frames, other_frames, one.vocab_size)
    distances = comparison.distances
    count = len(distances.largest)
    if count == 0:
        return FrameDifferences(utterances=len(ids)), unequal
    best = (best_tokens(frames) for frames, store in ((one_frames, left), (other_frames, right)))
    worst = int(distances.largest.argmax())
    owner = int(np.searchsorted(one.frame_offsets.numpy(), worst, side="right")) - 1
    largest = float(distances.largest[worst])
    found = FrameDifferences(
        utterances=len(ids),
        frames=count,
        identical=int(comparison.identical.sum()),
        same_tokens=int(comparison.same_tokens.sum()),
        same_best=int(np.equal(*best).sum()),
        mean_divergence=float(distances.divergence.mean()),
        mean_reverse=float(distances.reverse.mean()),
        largest_divergence=float(distances.divergence.max()),
        largest_difference=largest,
        largest_at=ids[owner] if largest > 0 else None,
    )
    return found, unequal


def _expanded(posteriors: SparsePosteriors) -> Expanded:
    return Expanded(
        entry_offsets=posteriors.entry_offsets.numpy(),
        tokens=posteriors.tokens.numpy(),
        log_probs=posteriors.log_probs.numpy(),
    )


def _total(parts: Sequence[FrameDifferences]) -> FrameDifferences:
    frames = sum(part.frames for part in parts)

    def mean(name: str) -> float:
        return math.fsum(getattr(part, name) * part.frames for part in parts) / max(1, frames)

    worst = max(parts, key=lambda part: part.largest_difference)
    return FrameDifferences(
        utterances=sum(part.utterances for part in parts),
        frames=frames,
        identical=sum(part.identical for part in parts),
        same_tokens=sum(part.same_tokens for part in parts),
        same_best=sum(part.same_best for part in parts),
        mean_divergence=mean("mean_divergence"),
        mean_reverse=mean("mean_reverse"),
        largest_divergence=max(part.largest_divergence for part in parts),
        largest_difference=worst.largest_difference,
        largest_at=worst.largest_at,
    )
