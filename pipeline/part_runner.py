"""Runs a teacher over batches; its frames reach the host as codes while the next batch runs."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from interkd.kernels.errors import TeacherError
from interkd.pipeline.cache.codec import AngleQuantiser, encode_frames, get_quantiser
from interkd.pipeline.corpus.audio import AudioCache
from interkd.pipeline.corpus.batches import length_sorted_batches
from interkd.pipeline.corpus.manifest import Utterance
from interkd.pipeline.devices import cores
from interkd.pipeline.teachers.protocol import Teacher

_BATCHES_AHEAD = 3


@dataclass(frozen=True, kw_only=True)
class HostFrames:
    """A batch's frames as codes on their way to the host; B utterances of T padded frames.

    Attributes:
        part: The part that the batch belongs to.
        utterances: B of them.
        is_last: Whether it is the part's last batch.
        padded_frames: T.
        frame_lengths: The teacher's own, `(B,)`.
        log_sums: Log of the sum of each frame's probabilities, `(B * T,)`.
        columns: `EncodedFrames` of all B * T frames.
        event: On the stream that copies; None on a CPU.
    """

    part: int
    utterances: Sequence[Utterance]
    is_last: bool
    padded_frames: int
    frame_lengths: Tensor
    log_sums: Tensor
    columns: tuple[Tensor, ...]
    event: torch.cuda.Event | None

    def wait(self) -> None:
        """Returns when every tensor holds its values."""
        if self.event is not None:
            self.event.synchronize()


@dataclass(frozen=True, kw_only=True)
class _PlannedBatch:
    part: int
    utterances: Sequence[Utterance]
    is_last: bool


class PartRunner:
    """Runs the teacher over the utterances of parts.

    The teacher has the device's current stream to itself; what makes codes of its posteriors and
    copies them runs on another one, beside the next batch's forward pass.

    Args:
        teacher: The teacher.
        device: Where it runs.
        top_k: Most tokens kept of a frame, the blank among them.
        mass: Probability that the kept tokens reach.
        quantiser: Name of the quantiser.
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
        self.quantiser: AngleQuantiser = get_quantiser(quantiser)
        self.batch_seconds = batch_seconds
        self.audio = AudioCache(0)
        self.threads = decode_threads or cores()
        self._side_stream = (
            torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        )

    def run(self, parts: Iterable[tuple[int, Sequence[Utterance]]]) -> Iterator[HostFrames]:
        """Batches of parts, in order, launched as they are asked for.

        Batches are formed within a part, so a restart forms the same ones. Audio is decoded a few
        batches ahead, into the next part too.

        Raises:
            TeacherError: If the teacher's output has another shape than it must.
        """
        for batch, waveforms, sample_lengths in self._read_ahead(parts):
            yield self._launch(batch, waveforms, sample_lengths)

    def audio_of(
        self, parts: Iterable[tuple[int, Sequence[Utterance]]]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The decoded audio that `run` hears: waveforms `(B, N)` and samples `(B,)`."""
        for _, waveforms, sample_lengths in self._read_ahead(parts):
            yield waveforms, sample_lengths

    def _read_ahead(
        self, parts: Iterable[tuple[int, Sequence[Utterance]]]
    ) -> Iterator[tuple[_PlannedBatch, Tensor, Tensor]]:
        waiting: deque[tuple[_PlannedBatch, Future[tuple[Tensor, Tensor]]]] = deque()
        decoders = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")
        collator = ThreadPoolExecutor(1, thread_name_prefix="collate")
        try:
            for batch in self._plan(parts):
                decoded = [decoders.submit(self.audio.read, u) for u in batch.utterances]
                waiting.append((batch, collator.submit(self._collate, batch.utterances, decoded)))
                if len(waiting) > _BATCHES_AHEAD:
                    oldest, audio = waiting.popleft()
                    yield oldest, *audio.result()
            while waiting:
                oldest, audio = waiting.popleft()
                yield oldest, *audio.result()
        finally:
            decoders.shutdown(cancel_futures=True)
            collator.shutdown(cancel_futures=True)

    def _plan(self, parts: Iterable[tuple[int, Sequence[Utterance]]]) -> Iterator[_PlannedBatch]:
        for part, utterances in parts:
            batches = self.batches_of(utterances)
            for number, indexes in enumerate(batches, start=1):
                yield _PlannedBatch(
                    part=part,
                    utterances=[utterances[i] for i in indexes],
                    is_last=number == len(batches),
                )

    def _collate(
        self, utterances: Sequence[Utterance], decoded: Sequence[Future[npt.NDArray[np.float32]]]
    ) -> tuple[Tensor, Tensor]:
        """Padded waveforms, in pinned memory where a GPU waits for them."""
        sample_lengths = torch.tensor([u.samples for u in utterances], dtype=torch.int64)
        waveforms = torch.zeros(
            len(utterances), int(sample_lengths.max()), pin_memory=self._side_stream is not None
        )
        for row, future in zip(waveforms, decoded, strict=True):
            waveform = future.result()
            row[: len(waveform)] = torch.from_numpy(waveform)
        return waveforms, sample_lengths

    def batches_of(self, utterances: Sequence[Utterance]) -> list[list[int]]:
        """Batches of a part, as indexes; the same each time."""
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
    def _launch(
        self, batch: _PlannedBatch, waveforms: Tensor, sample_lengths: Tensor
    ) -> HostFrames:
        log_probs, frame_lengths = self.teacher.log_probs(
            waveforms.to(self.device, non_blocking=True), sample_lengths.to(self.device)
        )
        self._check_shapes(batch.utterances, log_probs, frame_lengths)
        event = None
        if self._side_stream is None:
            log_sums, columns = self._encode(log_probs)
        else:
            self._side_stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self._side_stream):
                log_probs.record_stream(self._side_stream)
                frame_lengths = _copy_to_host(frame_lengths)
                log_sums, columns = self._encode(log_probs)
                log_sums, *copies = map(_copy_to_host, (log_sums, *columns))
                columns = tuple(copies)
                event = self._side_stream.record_event()
        return HostFrames(
            part=batch.part,
            utterances=batch.utterances,
            is_last=batch.is_last,
            padded_frames=log_probs.shape[1],
            frame_lengths=frame_lengths,
            log_sums=log_sums,
            columns=columns,
            event=event,
        )

    def _encode(self, log_probs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Log-sum and codes of every frame, those of padding too."""
        rows = log_probs.flatten(0, 1).float()
        encoded = encode_frames(
            rows,
            top_k=self.top_k,
            mass=self.mass,
            quantiser=self.quantiser,
            blank_index=self.teacher.info.blank_index,
        )
        return rows.logsumexp(-1), tuple(encoded.columns())

    def _check_shapes(
        self, utterances: Sequence[Utterance], log_probs: Tensor, frame_lengths: Tensor
    ) -> None:
        tokens = len(self.teacher.info.tokens)
        if log_probs.ndim != 3 or log_probs.shape[::2] != (len(utterances), tokens):
            raise TeacherError(
                f"log-probabilities of the teacher for utterance {utterances[0].utt_id}",
                expected=f"(B, T, V) with B {len(utterances)} and V {tokens} tokens",
                got=tuple(log_probs.shape),
            )
        if frame_lengths.shape != (len(utterances),):
            raise TeacherError(
                f"frame lengths of the teacher for utterance {utterances[0].utt_id}",
                expected=f"one of each of the batch's {len(utterances)} utterances",
                got=tuple(frame_lengths.shape),
            )


def _copy_to_host(column: Tensor) -> Tensor:
    """A copy in pinned memory, under way on the current stream."""
    if column.device.type == "cpu":
        return column
    host = torch.empty(column.shape, dtype=column.dtype, pin_memory=True)
    return host.copy_(column, non_blocking=True)
