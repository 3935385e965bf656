"""Sparse frame posteriors in CSR form: what a teacher cache holds and the kernels read."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from interkd.kernels.errors import ShapeError


@dataclass(frozen=True, kw_only=True)
class SparsePosteriors:
    """Posteriors of a batch of utterances, each frame with the few tokens that carry its mass.

    B utterances, N frames in all (utterance after utterance, no padding), E entries in all.
    Frame `n` of the batch holds entries `entry_offsets[n]:entry_offsets[n + 1]`; utterance `b`
    holds frames `frame_offsets[b]:frame_offsets[b + 1]`. Within a frame tokens are distinct, and
    the teacher's most probable token stands first, whatever rounding did to the probabilities; the
    mass that is not kept (1 - sum of the kept probabilities, at least 0) is the frame's tail.
    Frames past the last utterance's and entries past the last frame's are room, and never count.

    Attributes:
        frame_offsets: int64 `(B + 1,)`.
        entry_offsets: int64 `(N + 1,)`.
        tokens: int32 `(E,)`, each in `[0, vocab_size)`.
        log_probs: float32 `(E,)`, natural logarithm.
        vocab_size: V, with the blank.
        blank_index: Index of the blank.
    """

    frame_offsets: Tensor
    entry_offsets: Tensor
    tokens: Tensor
    log_probs: Tensor
    vocab_size: int
    blank_index: int = 0

    def __post_init__(self) -> None:
        expected = {
            "frame_offsets": torch.int64,
            "entry_offsets": torch.int64,
            "tokens": torch.int32,
            "log_probs": torch.float32,
        }
        for name, dtype in expected.items():
            column: Tensor = getattr(self, name)
            if column.ndim != 1 or column.dtype != dtype:
                raise ShapeError(
                    f"SparsePosteriors.{name}",
                    expected=f"one dimension of {dtype}",
                    got=f"{tuple(column.shape)} of {column.dtype}",
                )
        if self.tokens.shape != self.log_probs.shape:
            raise ShapeError(
                "SparsePosteriors columns",
                expected=f"as many log_probs as tokens ({len(self.tokens)})",
                got=len(self.log_probs),
            )

    @property
    def batch_size(self) -> int:
        """B, the number of utterances."""
        return len(self.frame_offsets) - 1

    @property
    def frame_lengths(self) -> Tensor:
        """Frames of each utterance, int64 `(B,)`."""
        return self.frame_offsets.diff()

    def utterance_of_frame(self) -> Tensor:
        """The utterance of each frame, int64 `(N,)`; room counts as the last one's."""
        return _owner(self.frame_offsets, len(self.entry_offsets) - 1)

    def frame_of_entry(self) -> Tensor:
        """The frame of each entry, int64 `(E,)`; room counts as the last one's."""
        return _owner(self.entry_offsets, len(self.tokens))

    def contiguous(self) -> SparsePosteriors:
        """The same columns, each without gaps in memory."""
        return replace(
            self,
            frame_offsets=self.frame_offsets.contiguous(),
            entry_offsets=self.entry_offsets.contiguous(),
            tokens=self.tokens.contiguous(),
            log_probs=self.log_probs.contiguous(),
        )

    def pin_memory(self) -> SparsePosteriors:
        """The same columns in pinned host memory, from which copies to a GPU wait for nothing."""
        return replace(
            self,
            frame_offsets=self.frame_offsets.pin_memory(),
            entry_offsets=self.entry_offsets.pin_memory(),
            tokens=self.tokens.pin_memory(),
            log_probs=self.log_probs.pin_memory(),
        )

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> SparsePosteriors:
        """The same posteriors on another device."""
        return replace(
            self,
            frame_offsets=self.frame_offsets.to(device, non_blocking=non_blocking),
            entry_offsets=self.entry_offsets.to(device, non_blocking=non_blocking),
            tokens=self.tokens.to(device, non_blocking=non_blocking),
            log_probs=self.log_probs.to(device, non_blocking=non_blocking),
        )


def _owner(offsets: Tensor, places: int) -> Tensor:
    """Which stretch `offsets[i]:offsets[i + 1]` each place belongs to, without waiting for it."""
    place = torch.arange(places, device=offsets.device)
    owner = torch.searchsorted(offsets[1:].contiguous(), place, right=True)
    return owner.clamp(max=max(0, len(offsets) - 2))
