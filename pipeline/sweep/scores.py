"""What each head made of a set: errors of every utterance, as the report resamples them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from interkd.pipeline.scoring.error_rates import ErrorCounts
from interkd.pipeline.scoring.report import HeadResults


@dataclass(frozen=True, kw_only=True)
class UnitCounts:
    """Errors and reference length of each utterance, in words or characters."""

    errors: tuple[int, ...]
    lengths: tuple[int, ...]

    @property
    def rate(self) -> float:
        """Errors in percent of the reference."""
        return 100.0 * sum(self.errors) / sum(self.lengths)


@dataclass(frozen=True, kw_only=True)
class HeadScore:
    """One head's errors; `weight_count` weights are needed to run the student up to it."""

    name: str
    weight_count: int
    words: UnitCounts
    characters: UnitCounts


@dataclass(frozen=True, kw_only=True)
class SplitScore:
    """One manifest's scores.

    Attributes:
        manifest: Its digest: ids and audio.
        utterances: Digest of the ids alone.
        heads: The final head last.
    """

    manifest: str
    utterances: str
    heads: tuple[HeadScore, ...]


def split_score(results: HeadResults, manifest: str) -> SplitScore:
    """The counts of a scored manifest of that digest."""
    return SplitScore(
        manifest=manifest,
        utterances=ids_digest(utterance.utt_id for utterance in results.utterances),
        heads=tuple(
            HeadScore(
                name=head.name,
                weight_count=head.weight_count,
                words=unit_counts(head.words),
                characters=unit_counts(head.characters),
            )
            for head in results.heads
        ),
    )


def ids_digest(utt_ids: Iterable[str]) -> str:
    """SHA-256 of utterance ids in their order, hexadecimal."""
    state = hashlib.sha256()
    for utt_id in utt_ids:
        state.update(json.dumps(utt_id).encode())
    return state.hexdigest()


def unit_counts(counts: Sequence[ErrorCounts]) -> UnitCounts:
    """Of the counts of each utterance."""
    return UnitCounts(
        errors=tuple(count.errors for count in counts),
        lengths=tuple(count.reference_length for count in counts),
    )


def scores_to_json(scores: Mapping[str, SplitScore]) -> dict[str, Any]:
    """The counts of each split, with rates for people."""
    return {
        split: {
            "manifest": score.manifest,
            "utterances": score.utterances,
            "heads": [
                {
                    "name": head.name,
                    "weight_count": head.weight_count,
                    "wer": round(head.words.rate, 4),
                    "cer": round(head.characters.rate, 4),
                    "words": asdict(head.words),
                    "characters": asdict(head.characters),
                }
                for head in score.heads
            ],
        }
        for split, score in scores.items()
    }


def scores_from_json(value: Mapping[str, Any]) -> dict[str, SplitScore]:
    """What `scores_to_json` made.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: If it is damaged.
    """
    return {
        split: SplitScore(
            manifest=score["manifest"],
            utterances=score["utterances"],
            heads=tuple(
                HeadScore(
                    name=head["name"],
                    weight_count=head["weight_count"],
                    words=_counts_from_json(head["words"]),
                    characters=_counts_from_json(head["characters"]),
                )
                for head in score["heads"]
            ),
        )
        for split, score in value.items()
    }


def _counts_from_json(value: Mapping[str, Any]) -> UnitCounts:
    counts = UnitCounts(errors=tuple(value["errors"]), lengths=tuple(value["lengths"]))
    if len(counts.errors) != len(counts.lengths) or sum(counts.lengths) <= 0:
        raise ValueError("errors and lengths that do not belong together")
    return counts
