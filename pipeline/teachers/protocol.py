"""What a teacher is: anything that turns waveforms into CTC log-probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from interkd.pipeline.frames import FrameFormula


@dataclass(frozen=True, kw_only=True)
class TeacherInfo:
    """Facts about a teacher that a cache's fingerprint keeps.

    Attributes:
        name: What the user called it.
        weights_sha256: Hash of the weights themselves, so that a retrained teacher is another.
        tokens: The V tokens in order, the blank among them.
        blank_index: Index of the blank.
        sample_rate: Samples a second that it expects.
        frame_formula: Frames that it makes of so many samples.
        padding_safe: Whether an utterance gives the same posteriors alone and in a padded batch.
            If not, it is only run on utterances of equal length together.
    """

    name: str
    weights_sha256: str
    tokens: tuple[str, ...]
    blank_index: int
    sample_rate: int
    frame_formula: FrameFormula
    padding_safe: bool = True


@runtime_checkable
class Teacher(Protocol):
    """A CTC teacher; `python:MODULE:FACTORY` returns one of these."""

    info: TeacherInfo

    def log_probs(self, waveforms: Tensor, sample_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Frame posteriors of a batch.

        Args:
            waveforms: float32 `(B, N)` in [-1, 1], zero-padded, on the teacher's device.
            sample_lengths: Valid samples, int64 `(B,)`.

        Returns:
            Natural log-probabilities `(B, T, V)` and valid frames, int64 `(B,)`.
        """
        ...
