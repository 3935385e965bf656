"""Version 1 of the format, for reading: CSR, the blank among the entries, log-prob codes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from interkd.pipeline.cache.fingerprint import Fingerprint
from interkd.pipeline.cache.format import Array, ColumnSpec, token_dtype
from interkd.pipeline.cache.layout import Expanded, FrameProblem

CODE_DTYPES: dict[str, np.dtype[Any]] = {"log8": np.dtype("u1"), "float16": np.dtype("<f2")}
_LOG8 = (0.0 - 16.0 * (np.arange(256, dtype=np.float64) / 255) ** 3).astype(np.float32)


class Version1Layout:
    """One byte of count a frame; a token and a code of its log-probability an entry."""

    frame_column = "entries_per_frame"
    entry_columns: tuple[str, ...] = ("token", "log_prob")

    def payload_specs(self, fingerprint: Fingerprint) -> tuple[ColumnSpec, ...]:
        """The columns of frames and entries."""
        return (
            ColumnSpec(name="entries_per_frame", dtype=np.dtype("u1")),
            ColumnSpec(name="token", dtype=token_dtype(fingerprint.vocab_size)),
            ColumnSpec(name="log_prob", dtype=CODE_DTYPES[fingerprint.quantiser]),
        )

    def limits(self, fingerprint: Fingerprint) -> dict[str, int]:
        """Tokens below V."""
        return {"token": fingerprint.vocab_size}

    def entries_before(self, columns: Mapping[str, Array], fingerprint: Fingerprint) -> Array:
        """Stored entries before each frame, and in all, int64 `(N + 1,)`."""
        return np.concatenate([[0], np.cumsum(columns["entries_per_frame"], dtype=np.int64)])

    def expand(self, columns: Mapping[str, Array], fingerprint: Fingerprint) -> Expanded:
        """The entries as they stand, the one with the largest log-probability put first."""
        codes = columns["log_prob"]
        tokens = columns["token"].astype(np.int32)
        log_probs = np.take(_LOG8, codes) if fingerprint.quantiser == "log8" else codes
        log_probs = log_probs.astype(np.float32)
        offsets = self.entries_before(columns, fingerprint)
        starts = offsets[:-1]
        if len(starts):
            largest = np.repeat(np.maximum.reduceat(log_probs, starts), np.diff(offsets))
            places = np.where(log_probs == largest, np.arange(len(tokens)), len(tokens))
            best = np.minimum.reduceat(places, starts)
            for column in (tokens, log_probs):
                column[starts], column[best] = column[best], column[starts]
        return Expanded(entry_offsets=offsets, tokens=tokens, log_probs=log_probs)

    def frame_problems(
        self, columns: Mapping[str, Array], fingerprint: Fingerprint
    ) -> Iterator[FrameProblem]:
        """What a writer keeps to: one blank a frame, log-probs at most 0."""
        counts, tokens = columns["entries_per_frame"], columns["token"]
        frames = np.repeat(np.arange(len(counts)), counts)
        blank_frames = frames[tokens == fingerprint.blank_index]
        blanks = np.bincount(blank_frames, minlength=len(counts))
        if (blanks != 1).any():
            frame = int((blanks != 1).argmax())
            what = f"expected the blank once in each frame, got it {blanks[frame]} times"
            yield FrameProblem(column="token", frame=frame, what=what)
        log_probs = self.expand(columns, fingerprint).log_probs
        outside = ~(np.isfinite(log_probs) & (log_probs <= 0))
        if outside.any():
            entry = int(outside.argmax())
            what = f"expected finite log-probabilities of at most 0, got {log_probs[entry]}"
            yield FrameProblem(column="log_prob", frame=int(frames[entry]), what=what)
