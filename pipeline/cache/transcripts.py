"""The teacher's transcripts, read from its store, scored against a manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from interkd.pipeline.cache.inspect import decode_store
from interkd.pipeline.cache.reader import TeacherStore
from interkd.pipeline.corpus.manifest import read_manifest
from interkd.pipeline.corpus.tokens import WORD_BOUNDARY
from interkd.pipeline.scoring.error_rates import ErrorCounts, count_errors

TEACHER_WER_KEY = "teacher_wer"


@dataclass(frozen=True, kw_only=True)
class StoreTranscripts:
    """What the teacher said of a manifest's utterances, according to the store.

    Attributes:
        utt_ids: In manifest order.
        texts: Greedy transcript of each.
        word_errors: Against the manifest's texts.
        teacher_wer: The teacher's own greedy WER over the whole store, in percent, as it was
            measured before truncation and quantisation; None where stage one kept none.
    """

    utt_ids: tuple[str, ...]
    texts: tuple[str, ...]
    word_errors: ErrorCounts
    teacher_wer: float | None


def transcribe_store(path: Path, manifest_path: Path) -> StoreTranscripts:
    """Decodes a store greedily and counts its word errors.

    Args:
        path: The store.
        manifest_path: A manifest whose utterances are all in the store.

    Raises:
        CorpusError: If the manifest cannot be read.
        StoreError: As `TeacherStore.open` and `TeacherStore.require`.
        CorruptStoreError: For a damaged part.
    """
    store = TeacherStore.open(path)
    utterances = read_manifest(manifest_path).utterances
    store.require(utterances)
    wanted = {utterance.utt_id for utterance in utterances}
    tokens = store.fingerprint.tokens
    texts = {
        utt_id: join_tokens(tokens, token_ids)
        for utt_id, token_ids in decode_store(path)
        if utt_id in wanted
    }
    hypotheses = tuple(texts[utterance.utt_id] for utterance in utterances)
    teacher_wer = store.summary.get(TEACHER_WER_KEY)
    return StoreTranscripts(
        utt_ids=tuple(utterance.utt_id for utterance in utterances),
        texts=hypotheses,
        word_errors=count_errors([utterance.text for utterance in utterances], hypotheses),
        teacher_wer=None if teacher_wer is None else float(teacher_wer),
    )


def join_tokens(tokens: Sequence[str], token_ids: Sequence[int]) -> str:
    """Text of token indexes; a store keeps the tokens, so a tokenizer of any kind will do."""
    joined = "".join(tokens[index] for index in token_ids)
    return " ".join(joined.replace(WORD_BOUNDARY, " ").split())
