"""Runs a teacher over the utterances of a part and encodes its posteriors."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from interkd.kernels.errors import TeacherError
from interkd.kernels.topk import adaptive_topk
from interkd.pipeline.cache.codec import quantise
from interkd.pipeline.cache.part import EncodedUtterance
from interkd.pipeline.corpus.audio import AudioCache
from interkd.pipeline.corpus.batches import length_sorted_batches
from interkd.pipeline.corpus.manifest import Utterance
from interkd.pipeline.corpus.tokens import spell
from interkd.pipeline.scoring.decode import greedy_decode
from interkd.pipeline.scoring.error_rates import ErrorCounts, count_errors
from interkd.pipeline.students.features import frame_mask
from interkd.pipeline.teachers.protocol import Teacher

NORMALISATION_TOLERANCE = 0.05  # nats; a bfloat16 log-softmax is off by as much


@dataclass
class PartFacts:
    """Counts of one part, kept in its attributes so that a restart need not run it again."""

    frames: int = 0
    entry_bytes: int = 0
    words: tuple[int, int] = (0, 0)
    characters: tuple[int, int] = (0, 0)

    def add(self, spoken: Sequence[tuple[str, str]]) -> None:
        """Counts the teacher's own errors, given the reference and hypothesis of utterances."""
        references = [reference for reference, _ in spoken]
        hypotheses = [hypothesis for _, hypothesis in spoken]

        def plus(old: tuple[int, int], new: ErrorCounts) -> tuple[int, int]:
            return old[0] + new.errors, old[1] + new.reference_length

        self.words = plus(self.words, count_errors(references, hypotheses))
        self.characters = plus(
            self.characters, count_errors(references, hypotheses, unit="character")
        )

    def to_dict(self) -> dict[str, list[int]]:
        """As part attributes: `[errors, reference length]`."""
        return {"teacher_words": list(self.words), "teacher_characters": list(self.characters)}

    @classmethod
    def total(cls, attributes: Iterable[dict[str, list[int]]]) -> PartFacts:
        """The sum over parts."""
        rows = list(attributes)

        def column(name: str) -> tuple[int, int]:
            return sum(row[name][0] for row in rows), sum(row[name][1] for row in rows)

        return cls(words=column("teacher_words"), characters=column("teacher_characters"))

    @staticmethod
    def rate(counts: tuple[int, int]) -> float | None:
        """Percent, or None without text."""
        return 100 * counts[0] / counts[1] if counts[1] else None


class PartRunner:
    """Runs the teacher over the utterances of a part and encodes its posteriors.

    Args:
        teacher: The teacher.
        device: Where it runs.
        top_k: Most tokens kept of a frame, the blank among them.
        mass: Probability that the kept tokens reach.
        quantiser: `log8` or `float16`.
        batch_seconds: Padded audio in a batch.
        decode_threads: Threads that decode audio; one a core when None.
    """

    def __init__(
        self,
        teacher: Teacher,
        device: torch.device,
        *,
        top_k: int,
        mass: float,
        quantiser: str,
        batch_seconds: float,
        decode_threads: int | None = None,
    ) -> None:
        self.teacher = teacher
        self.device = device
        self.top_k = top_k
        self.mass = mass
        self.quantiser = quantiser
        self.batch_seconds = batch_seconds
        self.audio = AudioCache(0)
        self.threads = decode_threads or os.cpu_count() or 1

    def encode(
        self, utterances: Sequence[Utterance], facts: PartFacts
    ) -> Iterator[EncodedUtterance]:
        """Encoded utterances, in the order of their batches.

        Batches are formed within the part, so a restart forms the same ones.
        """
        plan = self._batches(utterances)
        with ThreadPoolExecutor(self.threads, thread_name_prefix="decode") as pool:
            waiting = [
                pool.submit(self.audio.read_batch, [utterances[i] for i in indexes])
                for indexes in plan[: self.threads]
            ]
            for number, indexes in enumerate(plan):
                waveforms, sample_lengths = waiting.pop(0).result()
                if number + self.threads < len(plan):
                    following = [utterances[i] for i in plan[number + self.threads]]
                    waiting.append(pool.submit(self.audio.read_batch, following))
                batch = [utterances[i] for i in indexes]
                yield from self._run_batch(batch, waveforms, sample_lengths, facts)

    def _batches(self, utterances: Sequence[Utterance]) -> list[list[int]]:
        if self.teacher.info.padding_safe:
            return length_sorted_batches(utterances, self.batch_seconds)
        by_length = defaultdict(list)
        for index, utterance in enumerate(utterances):
            by_length[utterance.samples].append(index)
        batches = []
        for samples, indexes in sorted(by_length.items()):
            seconds = samples / self.teacher.info.sample_rate
            size = max(1, int(self.batch_seconds / max(seconds, 1e-3)))
            batches += [indexes[i : i + size] for i in range(0, len(indexes), size)]
        return batches

    @torch.inference_mode()
    def _run_batch(
        self,
        utterances: Sequence[Utterance],
        waveforms: Tensor,
        sample_lengths: Tensor,
        facts: PartFacts,
    ) -> list[EncodedUtterance]:
        info = self.teacher.info
        log_probs, frame_lengths = self.teacher.log_probs(
            waveforms.to(self.device), sample_lengths.to(self.device)
        )
        frames = self._check(utterances, log_probs, frame_lengths)
        valid = frame_mask(frame_lengths, log_probs.shape[1])
        rows = self._normalise(utterances, log_probs[valid].float(), frames)
        counts, tokens, kept = adaptive_topk(
            rows, max_tokens=self.top_k, mass=self.mass, blank_index=info.blank_index
        )
        codes = quantise(kept, self.quantiser)
        columns = [column.cpu().numpy() for column in (counts, tokens, codes)]
        best = greedy_decode(log_probs, frame_lengths, blank_index=info.blank_index)
        spoken = [
            (u.text, spell(info.tokens, ids)) for u, ids in zip(utterances, best, strict=True)
        ]
        facts.add([pair for pair in spoken if pair[0]])
        facts.frames += len(columns[0])
        facts.entry_bytes += sum(column.nbytes for column in columns[1:])
        return _split(utterances, frames, *columns)

    def _check(
        self, utterances: Sequence[Utterance], log_probs: Tensor, frame_lengths: Tensor
    ) -> list[int]:
        """The frame counts, checked against the teacher's own formula."""
        info = self.teacher.info
        if log_probs.ndim != 3 or log_probs.shape[::2] != (len(utterances), len(info.tokens)):
            raise TeacherError(
                f"log-probabilities of the teacher for utterance {utterances[0].utt_id}",
                expected=f"(B, T, V) with B {len(utterances)} and V {len(info.tokens)} tokens",
                got=tuple(log_probs.shape),
            )
        if frame_lengths.shape != (len(utterances),):
            raise TeacherError(
                f"frame lengths of the teacher for utterance {utterances[0].utt_id}",
                expected=f"one of each of the batch's {len(utterances)} utterances",
                got=tuple(frame_lengths.shape),
            )
        frames = [int(n) for n in frame_lengths.tolist()]
        for utterance, count in zip(utterances, frames, strict=True):
            expected = info.frame_formula.count(utterance.samples)
            if count != expected or count > log_probs.shape[1]:
                raise TeacherError(
                    f"teacher frames of utterance {utterance.utt_id} ({utterance.samples} samples)",
                    expected=f"{expected} by its formula {info.frame_formula}",
                    got=f"{count} of {log_probs.shape[1]}",
                )
        return frames

    def _normalise(
        self, utterances: Sequence[Utterance], rows: Tensor, frames: Sequence[int]
    ) -> Tensor:
        """Log-probabilities that sum to one in float32; refuses logits and NaN."""
        off = ~(rows.logsumexp(-1).abs() <= NORMALISATION_TOLERANCE)  # true for NaN as well
        if bool(off.any()):
            first = int(off.nonzero()[0])
            ends = np.cumsum(frames)
            utterance = utterances[int(np.searchsorted(ends, first, side="right"))]
            raise TeacherError(
                f"the teacher's output for utterance {utterance.utt_id}",
                expected="log-probabilities that sum to one in every frame",
                got=f"log-sum {float(rows[first].logsumexp(-1)):.4g}",
                remedy="apply log_softmax in the teacher; NaN may come from low precision",
            )
        return rows.log_softmax(-1)


def _split(
    utterances: Sequence[Utterance],
    frames: Sequence[int],
    counts: np.ndarray,
    tokens: np.ndarray,
    codes: np.ndarray,
) -> list[EncodedUtterance]:
    entries = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    encoded, first = [], 0
    for utterance, length in zip(utterances, frames, strict=True):
        span = slice(int(entries[first]), int(entries[first + length]))
        encoded.append(
            EncodedUtterance(
                utt_id=utterance.utt_id,
                audio_hash=utterance.audio_hash,
                entries_per_frame=counts[first : first + length].astype(np.uint8),
                tokens=tokens[span],
                log_prob_codes=codes[span],
                samples=utterance.samples,
            )
        )
        first += length
    return encoded
