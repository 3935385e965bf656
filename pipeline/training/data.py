"""Training batches: audio, targets and cached posteriors, decoded ahead in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from interkd.kernels.errors import FrameCountError, TokenError
from interkd.kernels.sparse import SparsePosteriors
from interkd.pipeline.cache.reader import TeacherStore
from interkd.pipeline.corpus.audio import AudioCache
from interkd.pipeline.corpus.manifest import Manifest, Utterance
from interkd.pipeline.corpus.tokens import Tokenizer
from interkd.pipeline.frames import TOLERATED_FRAMES, FrameFormula
from interkd.pipeline.training.resident_audio import ResidentAudio


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One batch.

    Attributes:
        utterances: B of them.
        waveforms: float32 `(B, N)`; None where they are gathered on the device.
        sample_lengths: int64 `(B,)`.
        sample_starts: Where each utterance begins in `resident`, int64 `(B,)`, or None.
        longest: N.
        resident: Where the audio is when `waveforms` is None.
        targets: Token indexes padded with the blank, int64 `(B, U)`.
        target_lengths: int64 `(B,)`.
        teacher: Cached posteriors, or None.
        compared_lengths: Frames on which student and teacher are compared, int64 `(B,)`, or None.
    """

    utterances: Sequence[Utterance]
    waveforms: Tensor | None
    sample_lengths: Tensor
    sample_starts: Tensor | None
    longest: int
    targets: Tensor
    target_lengths: Tensor
    teacher: SparsePosteriors | None = None
    compared_lengths: Tensor | None = None
    resident: ResidentAudio | None = None

    def audio(self) -> Tensor:
        """The waveforms, float32 `(B, N)`, of a batch that is on its device."""
        if self.waveforms is not None:
            return self.waveforms
        if self.resident is None or self.sample_starts is None:
            raise ValueError("a batch without audio")
        return self.resident.gather(self.sample_starts, self.sample_lengths, self.longest)

    def to(self, device: torch.device) -> Batch:
        """The batch on a device, copied without waiting where the host memory is pinned."""
        if device.type == "cpu":
            return self
        return self._each(
            lambda x: x.to(device, non_blocking=True),
            None if self.teacher is None else self.teacher.to(device, non_blocking=True),
        )

    def pin_memory(self) -> Batch:
        """The batch in pinned host memory: a copy from other memory waits for the device."""
        teacher = None if self.teacher is None else self.teacher.pin_memory()
        return self._each(lambda x: x.pin_memory(), teacher)

    def _each(self, change: Callable[[Tensor], Tensor], teacher: SparsePosteriors | None) -> Batch:
        tensors: dict[str, Any] = {
            field.name: change(value)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, teacher=teacher, **tensors)


def compared_lengths(
    utt_ids: Sequence[str], student_frames: Sequence[int], teacher_frames: Sequence[int]
) -> list[int]:
    """Frames on which student and teacher are compared: the shorter of the two.

    Their formulas may treat the end differently (`TOLERATED_FRAMES`); the longer side's last frames
    are then left out. Both count from the first sample, so a larger difference is an error.

    Raises:
        FrameCountError: Naming the utterance and both counts.
    """
    for utt_id, student, teacher in zip(utt_ids, student_frames, teacher_frames, strict=True):
        if abs(student - teacher) > TOLERATED_FRAMES:
            raise FrameCountError(
                f"utterance {utt_id}: frames of student and teacher differ by more than "
                f"{TOLERATED_FRAMES}",
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
        pin: Pin host memory, for copies to a GPU that wait for nothing.
        resident: The corpus in the device's memory; without it the batches bring waveforms.
        padded_samples: Samples to which each utterance's batch is padded at least (see
            `BatchSampler.padded_samples`), targets to match; None pads to the longest.
        views: Times that each utterance is recognised (see `Student.forward`): the batch holds its
            targets and posteriors so many times, its audio once.

    Raises:
        TokenError: If a transcript has a character outside the tokens.
        FrameCountError: See `compared_lengths`.
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
        resident: ResidentAudio | None = None,
        padded_samples: npt.NDArray[np.int64] | None = None,
        views: int = 1,
    ) -> None:
        self.utterances = manifest.utterances
        self.student_formula = student_formula
        self.blank_index = tokenizer.blank_index
        self.audio = audio
        self.store = store
        self.prefetch_batches = prefetch_batches
        self.threads = threads
        self.pin = pin
        self.resident = resident
        self.views = views
        self.targets = []
        for utterance in manifest.utterances:
            try:
                tokens = tokenizer.encode(utterance.text)
            except TokenError as error:
                raise TokenError(f"utterance {utterance.utt_id}: {error}") from error
            self.targets.append(torch.tensor(tokens, dtype=torch.int64))
        self.padded_samples = padded_samples
        self._most_targets: dict[int, int] = {}
        if padded_samples is not None:
            most = 0  # of this length or below: a batch has some that the bucket below left over
            for index in np.argsort(padded_samples, kind="stable").tolist():
                most = max(most, len(self.targets[index]))
                self._most_targets[int(padded_samples[index])] = most
        self.compared: list[int] = []
        if store is not None:
            store.require(manifest.utterances)
            ids = [u.utt_id for u in manifest.utterances]
            self.compared = compared_lengths(
                ids,
                [student_formula.count(u.samples) for u in manifest.utterances],
                [store.frame_count(utt_id) for utt_id in ids],
            )

    def count_impossible(self) -> int:
        """Utterances of fewer frames than CTC needs for their targets: no path, no loss."""
        impossible = 0
        for utterance, target in zip(self.utterances, self.targets, strict=True):
            frames = self.student_formula.count(utterance.samples)
            if frames < 2 * len(target):  # else there is room whatever repeats
                repeats = int((target[1:] == target[:-1]).sum())
                impossible += frames < len(target) + repeats
        return impossible

    def load(self, indexes: Sequence[int]) -> Batch:
        """One batch, now, in this thread."""
        utterances = [self.utterances[i] for i in indexes]
        waveforms = starts = None
        longest, most_targets = max(utterance.samples for utterance in utterances), 0
        if self.padded_samples is not None:
            longest = int(self.padded_samples[list(indexes)].max())
            most_targets = self._most_targets[longest]
        if self.resident is None:
            waveforms, sample_lengths = self.audio.read_batch(utterances)
            waveforms = torch.nn.functional.pad(waveforms, (0, longest - waveforms.shape[1]))
        else:
            sample_lengths = torch.tensor([utterance.samples for utterance in utterances])
            starts = torch.tensor([self.resident.starts[i] for i in indexes])
        seen = list(indexes) * self.views
        targets = [self.targets[i] for i in seen]
        teacher = compared = None
        if self.store is not None:
            teacher = self.store.targets([self.utterances[i].utt_id for i in seen])
            compared = torch.tensor([self.compared[i] for i in seen])
        batch = Batch(
            utterances=utterances,
            waveforms=waveforms,
            sample_lengths=sample_lengths,
            sample_starts=starts,
            longest=longest,
            targets=self._padded_targets(targets, most_targets),
            target_lengths=torch.tensor([len(target) for target in targets]),
            teacher=teacher,
            compared_lengths=compared,
            resident=self.resident,
        )
        return batch.pin_memory() if self.pin else batch

    def _padded_targets(self, targets: Sequence[Tensor], at_least: int) -> Tensor:
        rows = torch.nn.utils.rnn.pad_sequence(
            list(targets), batch_first=True, padding_value=self.blank_index
        )
        missing = max(0, at_least - rows.shape[1])
        return torch.nn.functional.pad(rows, (0, missing), value=self.blank_index)

    def size(self, indexes: Sequence[int], unit: str) -> int:
        """Utterances, student frames or target tokens of a batch, each view counted.

        Args:
            indexes: Its utterances.
            unit: `utterance`, `frame` or `token`.
        """
        if unit == "utterance":
            return self.views * len(indexes)
        if unit == "frame":
            samples = (self.utterances[i].samples for i in indexes)
            return self.views * sum(self.student_formula.count(n) for n in samples)
        return self.views * sum(len(self.targets[i]) for i in indexes)

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
