"""What the payload columns of a part mean, version by version: to sparse frames and their rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from interkd.pipeline.cache.fingerprint import Fingerprint
from interkd.pipeline.cache.format import Array, ColumnSpec


@dataclass(frozen=True, kw_only=True)
class Expanded:
    """Sparse frames with the blank among their entries. N frames, E entries.

    Attributes:
        entry_offsets: int64 `(N + 1,)`.
        tokens: int32 `(E,)`, the teacher's most probable of a frame first.
        log_probs: float32 `(E,)`.
    """

    entry_offsets: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int32]
    log_probs: npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class FrameProblem:
    """A frame that is not what a writer makes."""

    column: str
    frame: int
    what: str


class Layout(Protocol):
    """The payload of one version: one column of frames, some of entries."""

    frame_column: str
    entry_columns: tuple[str, ...]

    def payload_specs(self, fingerprint: Fingerprint) -> tuple[ColumnSpec, ...]:
        """The columns of frames and entries."""
        ...

    def limits(self, fingerprint: Fingerprint) -> dict[str, int]:
        """What the values of a column must stay below, so that no table is read past its end."""
        ...

    def entries_before(self, columns: Mapping[str, Array], fingerprint: Fingerprint) -> Array:
        """Stored entries before each frame, and in all, int64 `(N + 1,)`; -1s where they clash."""
        ...

    def expand(self, columns: Mapping[str, Array], fingerprint: Fingerprint) -> Expanded:
        """Sparse frames of whole utterances.

        Raises:
            CorruptStoreError: If frames and entries do not fit each other.
        """
        ...

    def frame_problems(
        self, columns: Mapping[str, Array], fingerprint: Fingerprint
    ) -> Iterator[FrameProblem]:
        """What a writer keeps to beyond dtypes, lengths and ranges."""
        ...
