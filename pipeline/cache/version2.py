"""Version 2 of the format: stick-breaking codes, the blank in a column of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from interkd.kernels.errors import CorruptStoreError, ShapeError
from interkd.kernels.stick_breaking import expand_stick_breaking
from interkd.pipeline.cache.codec import get_quantiser
from interkd.pipeline.cache.fingerprint import Fingerprint
from interkd.pipeline.cache.format import Array, ColumnSpec, token_dtype
from interkd.pipeline.cache.layout import Expanded, FrameProblem


class Version2Layout:
    """The blank's code a frame; a token and its fraction's code an entry; continuation bits."""

    frame_column = "blank"
    entry_columns: tuple[str, ...] = ("token", "fraction")

    def payload_specs(self, fingerprint: Fingerprint) -> tuple[ColumnSpec, ...]:
        """The columns of frames and entries."""
        code_dtype = get_quantiser(fingerprint.quantiser).code_dtype
        return (
            ColumnSpec(name="blank", dtype=code_dtype),
            ColumnSpec(name="token", dtype=token_dtype(fingerprint.vocab_size)),
            ColumnSpec(name="fraction", dtype=code_dtype),
        )

    def limits(self, fingerprint: Fingerprint) -> dict[str, int]:
        """Two codes a level: with and without the continuation bit."""
        codes = 2 * get_quantiser(fingerprint.quantiser).levels
        return {"blank": codes, "token": fingerprint.vocab_size, "fraction": codes}

    def entries_before(self, columns: Mapping[str, Array], fingerprint: Fingerprint) -> Array:
        """Stored entries before each frame, and in all; all -1 where the bits do not fit."""
        levels = get_quantiser(fingerprint.quantiser).levels
        has_entries = columns["blank"] >= levels
        ends = np.flatnonzero(columns["fraction"] < levels) + 1
        before = np.full(len(has_entries) + 1, -1, dtype=np.int64)
        entries = len(columns["fraction"])
        if len(ends) == has_entries.sum() and (ends[-1] if len(ends) else 0) == entries:
            counts = np.zeros(len(has_entries), dtype=np.int64)
            counts[has_entries] = np.diff(ends, prepend=0)
            before = np.concatenate([[0], np.cumsum(counts)])
        return before

    def expand(self, columns: Mapping[str, Array], fingerprint: Fingerprint) -> Expanded:
        """The frames that the fractions make."""
        quantiser = get_quantiser(fingerprint.quantiser)
        try:
            offsets, tokens, log_probs = expand_stick_breaking(
                columns["blank"],
                columns["token"],
                columns["fraction"],
                quantiser.values,
                blank_index=fingerprint.blank_index,
            )
        except ShapeError as error:
            raise CorruptStoreError(str(error)) from error
        return Expanded(entry_offsets=offsets, tokens=tokens, log_probs=log_probs)

    def frame_problems(
        self, columns: Mapping[str, Array], fingerprint: Fingerprint
    ) -> Iterator[FrameProblem]:
        """What a writer keeps to: the blank in its own column alone."""
        blanks = columns["token"] == fingerprint.blank_index
        if blanks.any():
            before = self.entries_before(columns, fingerprint)
            frame = int(np.searchsorted(before, int(blanks.argmax()), side="right")) - 1
            what = f"expected no blank ({fingerprint.blank_index}) among the entries, got one"
            yield FrameProblem(column="token", frame=frame, what=what)
