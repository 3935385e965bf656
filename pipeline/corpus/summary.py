"""What a prepared corpus holds, counted once: the fields of `summary.json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from interkd.pipeline.corpus.checks import TOO_SHORT
from interkd.pipeline.corpus.manifest import Manifest, Utterance
from interkd.pipeline.corpus.sources import BadRow
from interkd.pipeline.corpus.tokens import Tokenizer


@dataclass(frozen=True, kw_only=True)
class PrepareSummary:
    """What a prepared corpus holds; `summary.json` has these fields, but for those that are None.

    Attributes:
        utterances: How many are in the manifest.
        hours: Their length.
        speakers: How many speakers are named.
        tokens_per_second_mean: All tokens over all seconds.
        tokens_per_second_p95: 95th percentile over the utterances.
        shortest_seconds: Of one utterance.
        longest_seconds: Of one utterance.
        too_short_for_ctc: Rows with fewer frames than their transcript needs.
        rejected: Bad rows left out, by kind, those too short for CTC among them.
        characters: Every character of the transcripts, in code point order.
        sample_rate: In Hz.
        vocab_size: V, with the blank.
        tokenizer_digest: `Tokenizer.digest`.
        manifest_digest: `Manifest.digest`.
        too_short_at_speed: Copies left out because CTC cannot align them at their speed, by speed
            as text; None if there is no speed but 1.
    """

    utterances: int
    hours: float
    speakers: int
    tokens_per_second_mean: float
    tokens_per_second_p95: float
    shortest_seconds: float
    longest_seconds: float
    too_short_for_ctc: int
    rejected: dict[str, int]
    characters: str
    sample_rate: int
    vocab_size: int
    tokenizer_digest: str
    manifest_digest: str
    too_short_at_speed: dict[str, int] | None = None


def summarise(
    utterances: Sequence[Utterance],
    token_counts: Sequence[int],
    tokenizer: Tokenizer,
    bad: Sequence[BadRow],
    too_short_at: dict[str, int],
    *,
    sample_rate: int,
    manifest: Path,
) -> PrepareSummary:
    """Counts a corpus that was found sound.

    Args:
        utterances: Rows of the manifest.
        token_counts: Tokens of each.
        tokenizer: What they were counted with.
        bad: Rows that were left out.
        too_short_at: Copies that were left out, by speed.
        sample_rate: In Hz.
        manifest: Where the manifest will stand.
    """
    seconds = np.array([utterance.duration for utterance in utterances])
    tokens = np.array(token_counts)
    kinds = Counter(row.kind for row in bad)
    return PrepareSummary(
        utterances=len(utterances),
        hours=round(float(seconds.sum()) / 3600, 4),
        speakers=len({u.speaker for u in utterances if u.speaker is not None}),
        tokens_per_second_mean=round(float(tokens.sum() / seconds.sum()), 3),
        tokens_per_second_p95=round(float(np.percentile(tokens / seconds, 95)), 3),
        shortest_seconds=round(float(seconds.min()), 3),
        longest_seconds=round(float(seconds.max()), 3),
        too_short_for_ctc=kinds[TOO_SHORT],
        rejected=dict(sorted(kinds.items())),
        characters="".join(sorted(set().union(*(u.text for u in utterances)))),
        sample_rate=sample_rate,
        vocab_size=tokenizer.vocab_size,
        tokenizer_digest=tokenizer.digest,
        manifest_digest=Manifest(
            utterances=tuple(utterances), sample_rate=sample_rate, path=manifest
        ).digest,
        too_short_at_speed=too_short_at or None,
    )
