"""Runs a model over a manifest: every head's hypotheses and errors, and the time it took."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from interkd.kernels.errors import CorpusError
from interkd.pipeline.corpus.audio import AudioCache
from interkd.pipeline.corpus.batches import length_sorted_batches
from interkd.pipeline.corpus.manifest import Manifest
from interkd.pipeline.devices import cores
from interkd.pipeline.progress import Reporter
from interkd.pipeline.scoring.decode import greedy_decode
from interkd.pipeline.scoring.error_rates import count_errors_each
from interkd.pipeline.scoring.report import HeadResult, HeadResults, ScoredUtterance


class Output(Protocol):
    """Logits `(B, T, V)` of every head, final last, and valid frames int64 `(B,)`."""

    @property
    def logits(self) -> tuple[Tensor, ...]:
        """One tensor a head."""

    @property
    def frame_lengths(self) -> Tensor:
        """Valid frames."""


class ScorableModel(Protocol):
    """What scoring needs of a model: a student, or anything that looks like one."""

    training: bool

    @property
    def head_names(self) -> tuple[str, ...]:
        """One name a head, the final head last."""

    @property
    def weight_counts(self) -> tuple[int, ...]:
        """Weights needed to run up to each head."""

    def __call__(self, waveforms: Tensor, sample_lengths: Tensor) -> Output:
        """Runs a batch of float32 `(B, N)` waveforms, int64 `(B,)` samples each."""

    def train(self, mode: bool = True) -> Any:
        """Sets the mode, as `torch.nn.Module.train` does."""


class Detokenizer(Protocol):
    """What scoring needs of a tokenizer."""

    @property
    def blank_index(self) -> int:
        """Index of the blank."""

    def decode(self, token_ids: Sequence[int], /) -> str:
        """The text of tokens."""


def evaluate(
    model: ScorableModel,
    tokenizer: Detokenizer,
    manifest: Manifest,
    *,
    device: torch.device | str,
    max_seconds: float,
    audio_cache: AudioCache | None = None,
    reporter: Reporter | None = None,
    warm_up: bool = False,
) -> HeadResults:
    """Recognises a manifest with every head and counts the errors.

    The model runs in evaluation mode and is left in the mode in which it came.

    Args:
        model: On `device`.
        tokenizer: Turns tokens into text.
        manifest: What to recognise, with transcripts.
        device: Where the model runs.
        max_seconds: Most audio in a batch, padding included.
        audio_cache: Decoded audio to reuse; without one the files are read.
        reporter: Hears of the seconds of audio done.
        warm_up: Runs the first batch once before the clock starts, so that one-off set-up of the
            device does not count as model time.

    Returns:
        Hypotheses and errors of every head, utterances in the manifest's order.

    Raises:
        CorpusError: If the manifest is empty or its audio cannot be read.
    """
    utterances = manifest.utterances
    if not utterances:
        raise CorpusError("a manifest without utterances cannot be scored")
    threads = min(8, cores())
    cache = AudioCache(budget_bytes=0, threads=threads) if audio_cache is None else audio_cache
    reporter = reporter or Reporter()
    reporter.begin("scoring", manifest.total_seconds)
    was_training = model.training
    model.train(False)
    try:
        with torch.inference_mode():
            texts, model_seconds = _recognise(
                model,
                tokenizer,
                manifest,
                device=torch.device(device),
                max_seconds=max_seconds,
                cache=cache,
                reporter=reporter,
                warm_up=warm_up,
            )
    finally:
        reporter.end()
        model.train(was_training)
    references = [utterance.text for utterance in utterances]
    return HeadResults(
        utterances=tuple(
            ScoredUtterance(
                utt_id=utterance.utt_id,
                speaker=utterance.speaker or "",
                audio_seconds=utterance.duration,
                reference=utterance.text,
            )
            for utterance in utterances
        ),
        heads=tuple(
            HeadResult(
                name=name,
                weight_count=weight_count,
                hypotheses=tuple(hypotheses),
                words=tuple(count_errors_each(references, hypotheses)),
                characters=tuple(count_errors_each(references, hypotheses, unit="character")),
            )
            for name, weight_count, hypotheses in zip(
                model.head_names, model.weight_counts, texts, strict=True
            )
        ),
        model_seconds=model_seconds,
    )


def _recognise(
    model: ScorableModel,
    tokenizer: Detokenizer,
    manifest: Manifest,
    *,
    device: torch.device,
    max_seconds: float,
    cache: AudioCache,
    reporter: Reporter,
    warm_up: bool,
) -> tuple[list[list[str]], float]:
    """Texts of each head in the manifest's order, and the seconds in the model."""
    utterances = manifest.utterances
    texts = [[""] * len(utterances) for _ in model.head_names]
    model_seconds = 0.0
    # Longest first: what does not fit into memory fails at once.
    for batch in reversed(length_sorted_batches(utterances, max_seconds)):
        waveforms, lengths = cache.read_batch([utterances[index] for index in batch])
        waveforms, lengths = waveforms.to(device), lengths.to(device)
        if warm_up:
            model(waveforms, lengths)
            warm_up = False
        start = _clock(device)
        output = model(waveforms, lengths)
        model_seconds += _clock(device) - start
        for head_texts, logits in zip(texts, output.logits, strict=True):
            tokens = greedy_decode(logits, output.frame_lengths, blank_index=tokenizer.blank_index)
            for index, row in zip(batch, tokens, strict=True):
                head_texts[index] = tokenizer.decode(row)
        reporter.advance(sum(utterances[index].duration for index in batch))
    return texts, model_seconds


def _clock(device: torch.device) -> float:
    """Seconds, once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
