"""How a corpus is split into parts: contiguous in manifest order, about an hour each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
import xxhash

from interkd.kernels.errors import StoreError
from interkd.pipeline.cache.format import Array, pack_audio_hashes, pack_utterance_ids


def plan_parts(
    utt_ids: Sequence[str], seconds: Sequence[float], part_seconds: float = 3600.0
) -> list[range]:
    """Splits a corpus into parts of nearly equal length, close to `part_seconds` each.

    Args:
        utt_ids: Utterance ids in manifest order.
        seconds: Length of each utterance.
        part_seconds: Length of a part to aim at.

    Returns:
        Positions of each part's utterances; the parts follow each other and none is empty.

    Raises:
        StoreError: For a length that is not a number at least 0, or no utterances.
    """
    if len(utt_ids) != len(seconds) or not utt_ids:
        raise StoreError(
            "utterances to plan", expected="at least one, each with a length", got=len(utt_ids)
        )
    if not part_seconds > 0:
        raise StoreError("length of a part in seconds", expected="above 0", got=part_seconds)
    for utt_id, length in zip(utt_ids, seconds, strict=True):
        if not 0 <= length < math.inf:
            raise StoreError(f"seconds of utterance '{utt_id}'", expected="0 or more", got=length)
    total = math.fsum(seconds)
    count = max(1, round(total / part_seconds))
    ends = accumulate(seconds)
    middles = (end - length / 2 for end, length in zip(ends, seconds, strict=True))
    slots = [int(count * middle / total) if total else 0 for middle in middles]
    firsts = [i for i in range(len(slots)) if i == 0 or slots[i] != slots[i - 1]]
    return [range(a, b) for a, b in zip(firsts, [*firsts[1:], len(slots)], strict=True)]


@dataclass(frozen=True, kw_only=True)
class PartPlan:
    """Which utterances a store holds, and in which part: fixed before the first part is written.

    Attributes:
        utt_ids: Every utterance id, in manifest order.
        audio_hashes: Identity of each utterance's audio, 32 hexadecimal digits.
        parts: Positions of each part's utterances, as `plan_parts` returns them.

    Raises:
        StoreError: For ids that are empty, repeated or hold a line break, hashes of another form,
            and parts that do not follow each other.
    """

    utt_ids: tuple[str, ...]
    audio_hashes: tuple[str, ...]
    parts: tuple[range, ...]

    def __post_init__(self) -> None:
        if len(self.utt_ids) != len(self.audio_hashes):
            raise StoreError(
                "part plan",
                expected=f"as many audio hashes as ids ({len(self.utt_ids)})",
                got=len(self.audio_hashes),
            )
        pack_utterance_ids(self.utt_ids)
        pack_audio_hashes(self.audio_hashes)
        if len(set(self.utt_ids)) != len(self.utt_ids):
            seen: set[str] = set()
            repeated = next(i for i in self.utt_ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
            raise StoreError(
                f"utterance id '{repeated}' stands twice in the plan", remedy="rename one of them"
            )
        following = [0, *(part.stop for part in self.parts)]
        contiguous = all(
            part.start == start and part.step == 1 and len(part) > 0
            for part, start in zip(self.parts, following, strict=False)
        )
        if not contiguous or following[-1] != len(self.utt_ids) or not self.parts:
            raise StoreError(
                "parts of the plan",
                expected=f"ranges that cover {len(self.utt_ids)} utterances in order, none empty",
                got=", ".join(f"{part.start}:{part.stop}" for part in self.parts[:5]) or "none",
            )

    @cached_property
    def digest(self) -> str:
        """32 hexadecimal digits over the parts' sizes, the ids and the audio hashes."""
        return plan_digest(
            [len(part) for part in self.parts],
            pack_utterance_ids(self.utt_ids),
            pack_audio_hashes(self.audio_hashes),
        )


def plan_digest(part_sizes: Sequence[int], utterance_ids: Array, audio_hashes: Array) -> str:
    """XXH3-128 of the number of parts, each part's utterances (u64), the ids and the hashes."""
    sizes = np.array([len(part_sizes), *part_sizes], dtype="<u8")
    digest = xxhash.xxh3_128()
    for column in (sizes, utterance_ids, audio_hashes):
        digest.update(column.tobytes())
    return digest.hexdigest()
