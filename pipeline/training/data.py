"""Training batches: audio, targets and cached posteriors, decoded ahead in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from interkd.kernels.errors import FrameCountError, TokenError
from interkd.kernels.sparse import SparsePosteriors
from interkd.pipeline.cache.reader import TeacherStore
from interkd.pipeline.corpus.audio import AudioCache
from interkd.pipeline.corpus.manifest import Manifest, Utterance
from interkd.pipeline.corpus.tokens import Tokenizer
from interkd.pipeline.frames import FrameFormula


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One batch.

    Attributes:
        utterances: B of them.
        waveforms: float32 `(B, N)`.
        sample_lengths: int64 `(B,)`.
        targets: Token indexes padded with the blank, int64 `(B, U)`.
        target_lengths: int64 `(B,)`.
        teacher: Cached posteriors, or None.
        compared_lengths: Frames on which student and teacher are compared, int64 `(B,)`, or None.
    """

    utterances: Sequence[Utterance]
    waveforms: Tensor
    sample_lengths: Tensor
    targets: Tensor
    target_lengths: Tensor
    teacher: SparsePosteriors | None = None
    compared_lengths: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The batch on a device, copied without waiting where the host memory is pinned."""
        if device.type == "cpu":
            return self

        def move(x: Tensor) -> Tensor:
            return x.to(device, non_blocking=True)

        return replace(
            self,
            waveforms=move(self.waveforms),
            sample_lengths=move(self.sample_lengths),
            targets=move(self.targets),
            target_lengths=move(self.target_lengths),
            teacher=None if self.teacher is None else self.teacher.to(device, non_blocking=True),
            compared_lengths=(
                None if self.compared_lengths is None else move(self.compared_lengths)
            ),
        )


def compared_lengths(
    utt_ids: Sequence[str], student_frames: Sequence[int], teacher_frames: Sequence[int]
) -> list[int]:
    """Frames on which student and teacher are compared: the shorter of the two.

    Their formulas may round the last, partial frame differently; the longer side's last frame is
    then left out. Both count from the first sample, so a larger difference is an error.

    Raises:
        FrameCountError: Naming the utterance and both counts.
    """
    for utt_id, student, teacher in zip(utt_ids, student_frames, teacher_frames, strict=True):
        if abs(student - teacher) > 1:
            raise FrameCountError(
                f"utterance {utt_id}: frames of student and teacher differ by more than one",
                expected=f"{teacher} (teacher)",
                got=f"{student} (student)",
                remedy="use a student whose stride gives the store's frame shift",
            )
    return [min(pair) for pair in zip(student_frames, teacher_frames, strict=True)]


class BatchLoader:
    """Turns lists of utterance indexes into batches, a few of them ahead of the consumer.

    Args:
        manifest: The corpus.
        tokenizer: Turns transcripts into targets.
        audio: Decoded audio.
        student_formula: Frames of the student.
        store: Teacher cache, or None.
        prefetch_batches: Batches prepared ahead.
        threads: Threads that prepare them.
        pin: Pin host memory for faster copies to a GPU.

    Raises:
        TokenError: If a transcript has a character outside the tokens.
        FrameCountError: If student and teacher frames of an utterance differ by more than one.
        StoreError: If the store lacks an utterance or heard other audio.
    """

    def __init__(
        self,
        manifest: Manifest,
        tokenizer: Tokenizer,
        audio: AudioCache,
        student_formula: FrameFormula,
        *,
        store: TeacherStore | None = None,
        prefetch_batches: int = 4,
        threads: int = 2,
        pin: bool = False,
    ) -> None:
        self.utterances = manifest.utterances
        self.blank_index = tokenizer.blank_index
        self.audio = audio
        self.store = store
        self.prefetch_batches = prefetch_batches
        self.threads = threads
        self.pin = pin
        self.targets = []
        for utterance in manifest.utterances:
            try:
                tokens = tokenizer.encode(utterance.text)
            except TokenError as error:
                raise TokenError(f"utterance {utterance.utt_id}: {error}") from error
            self.targets.append(torch.tensor(tokens, dtype=torch.int64))
        self.compared: list[int] = []
        if store is not None:
            store.require(manifest.utterances)
            ids = [u.utt_id for u in manifest.utterances]
            self.compared = compared_lengths(
                ids,
                [student_formula.count(u.samples) for u in manifest.utterances],
                [store.frame_count(utt_id) for utt_id in ids],
            )

    def load(self, indexes: Sequence[int]) -> Batch:
        """One batch, now, in this thread."""
        utterances = [self.utterances[i] for i in indexes]
        waveforms, sample_lengths = self.audio.read_batch(utterances)
        targets = [self.targets[i] for i in indexes]
        teacher = compared = None
        if self.store is not None:
            teacher = self.store.targets([u.utt_id for u in utterances])
            compared = torch.tensor([self.compared[i] for i in indexes])
        return Batch(
            utterances=utterances,
            waveforms=waveforms.pin_memory() if self.pin else waveforms,
            sample_lengths=sample_lengths,
            targets=torch.nn.utils.rnn.pad_sequence(
                targets, batch_first=True, padding_value=self.blank_index
            ),
            target_lengths=torch.tensor([len(target) for target in targets]),
            teacher=teacher,
            compared_lengths=compared,
        )

    def batches(self, plan: Sequence[Sequence[int]]) -> Iterator[Batch]:
        """The batches of a plan, in order."""
        if self.threads < 1:
            yield from map(self.load, plan)
            return
        waiting: deque[Future[Batch]] = deque()
        remaining = iter(plan)
        with ThreadPoolExecutor(self.threads, thread_name_prefix="batch") as pool:
            try:
                for indexes in remaining:
                    waiting.append(pool.submit(self.load, indexes))
                    if len(waiting) > self.prefetch_batches:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()
