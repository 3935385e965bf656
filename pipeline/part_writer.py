"""Makes utterances of the teacher's codes and writes finished parts, in threads of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np

from interkd.kernels.errors import TeacherError
from interkd.pipeline.cache.codec import pack_codes
from interkd.pipeline.cache.format import Array
from interkd.pipeline.cache.part import EncodedUtterance
from interkd.pipeline.corpus.tokens import spell
from interkd.pipeline.part_runner import HostFrames
from interkd.pipeline.scoring.error_rates import ErrorCounts, count_errors
from interkd.pipeline.teachers.protocol import TeacherInfo

NORMALISATION_TOLERANCE = 0.05  # nats; a bfloat16 log-softmax is off by as much
QUEUED_BATCHES = 4


@dataclass
class PartFacts:
    """Counts of one part, kept in its attributes so that a restart need not run it again."""

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


@dataclass
class _PartInHand:
    index: int
    encoded: list[EncodedUtterance] = field(default_factory=list)
    facts: PartFacts = field(default_factory=PartFacts)


class PartWriter:
    """A bounded queue of batches, a thread that collects them into parts, one that writes parts.

    While a part is compressed and written, the next one's batches are taken in; at most one more
    part waits. Used as a context manager: leaving it waits until everything is written. Where
    an error is under way, so is every part whose batches have all come; an interruption, which is
    no `Exception`, gives up what is still queued.

    Args:
        info: Of the teacher.
        write: Takes a part's index, its utterances in no order and its facts.
    """

    def __init__(
        self,
        info: TeacherInfo,
        write: Callable[[int, list[EncodedUtterance], PartFacts], None],
    ) -> None:
        self.info = info
        self.write = write
        self.samples_done = 0
        self._queue: queue.Queue[HostFrames | None] = queue.Queue(QUEUED_BATCHES)
        self._error: BaseException | None = None
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._work, name="part-collector", daemon=True)
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="part-writer")
        self._writing: Future[None] | None = None

    def __enter__(self) -> PartWriter:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None and not isinstance(error, Exception):
            self._given_up.set()
        self._queue.put(None)
        self._thread.join()
        self._disk.shutdown()
        if error is None and self._error is not None:
            raise self._error

    def put(self, batch: HostFrames) -> None:
        """Hands a batch over; waits while the queue is full.

        Raises:
            InterkdError: What went wrong with an earlier batch.
        """
        if self._error is not None:
            raise self._error
        self._queue.put(batch)

    def _work(self) -> None:
        part: _PartInHand | None = None
        while (batch := self._queue.get()) is not None:
            if self._error is not None or self._given_up.is_set():
                continue  # the queue is emptied, so that nobody waits for room in it
            try:
                part = part or _PartInHand(batch.part)
                batch.wait()
                part.encoded += self._encode(batch, part.facts)
                if batch.is_last:
                    self._finish_writing()
                    self._writing = self._disk.submit(
                        self.write, part.index, part.encoded, part.facts
                    )
                    part = None
                self.samples_done += sum(u.samples for u in batch.utterances)
            except BaseException as error:
                self._error = error
        try:
            self._finish_writing()
        except BaseException as error:
            self._error = self._error or error

    def _finish_writing(self) -> None:
        """Waits for the part that is being written, and raises what went wrong with it."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _encode(self, batch: HostFrames, facts: PartFacts) -> list[EncodedUtterance]:
        frames = self._checked_lengths(batch)
        padded = batch.padded_frames
        starts = [row * padded for row in range(len(frames))]
        self._check_sums(batch, frames, starts)
        blank, counts, tokens, fractions, best = (column.numpy() for column in batch.columns)
        encoded, spoken = [], []
        for utterance, start, count in zip(batch.utterances, starts, frames, strict=True):
            rows = slice(start, start + count)
            blank_codes, kept_tokens, codes = pack_codes(
                blank[rows], counts[rows], tokens[rows], fractions[rows]
            )
            encoded.append(
                EncodedUtterance(
                    utt_id=utterance.utt_id,
                    audio_hash=utterance.audio_identity,
                    blank=blank_codes,
                    tokens=kept_tokens,
                    fractions=codes,
                    samples=utterance.samples,
                )
            )
            if utterance.text:
                path = _collapse(best[rows], self.info.blank_index)
                spoken.append((utterance.text, spell(self.info.tokens, path)))
        facts.add(spoken)
        return encoded

    def _checked_lengths(self, batch: HostFrames) -> list[int]:
        """The teacher's frame counts, checked against its own formula."""
        formula = self.info.frame_formula
        lengths = [int(n) for n in batch.frame_lengths.tolist()]
        for utterance, count in zip(batch.utterances, lengths, strict=True):
            expected = formula.count(utterance.samples)
            if count != expected or count > batch.padded_frames:
                raise TeacherError(
                    f"teacher frames of utterance {utterance.utt_id} ({utterance.samples} samples)",
                    expected=f"{expected} by its formula {formula}",
                    got=f"{count} of {batch.padded_frames}",
                )
        return lengths

    def _check_sums(self, batch: HostFrames, frames: Sequence[int], starts: Sequence[int]) -> None:
        """Refuses logits and NaN: a frame's probabilities sum to one."""
        log_sums = batch.log_sums.numpy()
        for utterance, start, count in zip(batch.utterances, starts, frames, strict=True):
            sums: Array = log_sums[start : start + count]
            off = ~(np.abs(sums) <= NORMALISATION_TOLERANCE)  # true for NaN as well
            if off.any():
                raise TeacherError(
                    f"the teacher's output for utterance {utterance.utt_id}",
                    expected="log-probabilities that sum to one in every frame",
                    got=f"log-sum {float(sums[int(off.argmax())]):.4g}",
                    remedy="apply log_softmax in the teacher; NaN may come from low precision",
                )


def _collapse(best: Array, blank_index: int) -> list[int]:
    """Greedy transcript of a path: repeats collapsed, blanks dropped."""
    starts_run = np.ones(len(best), dtype=bool)
    starts_run[1:] = best[1:] != best[:-1]
    kept: list[int] = best[starts_run & (best != blank_index)].tolist()
    return kept
