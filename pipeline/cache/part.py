"""A part: the columns of some utterances, their digests, and everything that must hold of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from interkd.kernels.errors import StoreError
from interkd.pipeline.cache.fingerprint import Fingerprint
from interkd.pipeline.cache.format import (
    UTTERANCE_COLUMNS,
    Array,
    ColumnSpec,
    pack_audio_hashes,
    pack_utterance_ids,
    unpack_utterance_ids,
)
from interkd.pipeline.cache.layout import Expanded
from interkd.pipeline.cache.versions import layout_of


@dataclass(frozen=True, kw_only=True)
class EncodedUtterance:
    """One utterance's posteriors as a store of today's version keeps them. T frames, E entries.

    Within a frame tokens are distinct and none is the blank.

    Attributes:
        utt_id: Utterance id.
        audio_hash: Identity of the audio (`Utterance.audio_identity`), 32 hexadecimal digits.
        blank: Code of each frame's blank with its continuation bit, `(T,)`.
        tokens: Token of each entry, any integer dtype, `(E,)`.
        fractions: Code of each entry's fraction with its continuation bit, `(E,)`.
        samples: Samples of the audio.
    """

    utt_id: str
    audio_hash: str
    blank: Array
    tokens: Array
    fractions: Array
    samples: int


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something in a store that is not what it must be.

    Attributes:
        where: The part's folder, `index` or `zarr.json`.
        what: What is wrong.
        column: The column, where it is known.
        utt_id: The utterance, where it is known.
    """

    where: str
    what: str
    column: str | None = None
    utt_id: str | None = None

    def __str__(self) -> str:
        column = f", column '{self.column}'" if self.column else ""
        utterance = f", utterance '{self.utt_id}'" if self.utt_id else ""
        return f"{self.where}{column}{utterance}: {self.what}"


def column_specs(fingerprint: Fingerprint) -> tuple[ColumnSpec, ...]:
    """The columns of a part of a store with that fingerprint."""
    return (*layout_of(fingerprint).payload_specs(fingerprint), *UTTERANCE_COLUMNS)


def join_utterances(
    utterances: Sequence[EncodedUtterance], fingerprint: Fingerprint
) -> dict[str, Array]:
    """The columns of a part.

    Raises:
        StoreError: Naming the utterance and column with another dtype or number of dimensions, or
            the utterance with a token outside the vocabulary.
    """
    dtypes = {spec.name: spec.dtype for spec in column_specs(fingerprint)}
    vocab_size = fingerprint.vocab_size
    for utterance in utterances:
        for name, values in (
            ("blank", utterance.blank),
            ("token", utterance.tokens),
            ("fraction", utterance.fractions),
        ):
            is_right = np.issubdtype(values.dtype, np.integer) and name == "token"
            if values.ndim != 1 or not (is_right or values.dtype == dtypes[name]):
                raise StoreError(
                    f"column '{name}' of utterance '{utterance.utt_id}'",
                    expected=f"one dimension of {dtypes[name]}",
                    got=f"{values.shape} of {values.dtype}",
                )
        outside = utterance.tokens[(utterance.tokens < 0) | (utterance.tokens >= vocab_size)]
        if len(outside):
            raise StoreError(
                f"column 'token' of utterance '{utterance.utt_id}'",
                expected=f"tokens below {vocab_size}",
                got=outside[0],
            )
    columns: dict[str, Array] = {
        "blank": np.concatenate([u.blank for u in utterances]),
        "token": np.concatenate([u.tokens.astype(dtypes["token"]) for u in utterances]),
        "fraction": np.concatenate([u.fractions for u in utterances]),
        "utterance_id": pack_utterance_ids([u.utt_id for u in utterances]),
        "audio_hash": pack_audio_hashes([u.audio_hash for u in utterances]),
        "frame_offset": _offsets([len(u.blank) for u in utterances]),
        "entry_offset": _offsets([len(u.tokens) for u in utterances]),
        "samples": np.array([u.samples for u in utterances], dtype="<i8"),
    }
    columns["digest"] = Part(columns, fingerprint).computed_digests()
    return columns


def _offsets(lengths: Sequence[int]) -> Array:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype("<i8")


class Part:
    """Columns of a part with names and types; n utterances, N frames, E stored entries."""

    def __init__(self, columns: Mapping[str, Array], fingerprint: Fingerprint) -> None:
        self.fingerprint = fingerprint
        self.layout = layout_of(fingerprint)
        names = (self.layout.frame_column, *self.layout.entry_columns)
        self.payload = {name: columns[name] for name in names}
        self.packed_ids = columns["utterance_id"]
        self.audio_hashes = columns["audio_hash"]
        self.frame_offsets = columns["frame_offset"].astype(np.int64, copy=False)
        self.entry_offsets = columns["entry_offset"].astype(np.int64, copy=False)
        self.samples = columns["samples"].astype(np.int64, copy=False)
        self.digests = columns.get("digest", np.zeros(0, dtype="<u8"))
        self.utt_ids = unpack_utterance_ids(self.packed_ids)

    @property
    def frames(self) -> int:
        """N."""
        return len(self.payload[self.layout.frame_column])

    @property
    def entries(self) -> int:
        """E, as stored: version 2 keeps the blank outside the entries."""
        return len(self.payload[self.layout.entry_columns[0]])

    @property
    def nbytes(self) -> int:
        """Bytes of the columns in memory."""
        utterances = (self.packed_ids, self.audio_hashes, self.frame_offsets, self.entry_offsets)
        columns = (*self.payload.values(), *utterances, self.samples, self.digests)
        return sum(column.nbytes for column in columns)

    def expand(self) -> Expanded:
        """Sparse frames of the whole part, the blank among each frame's entries."""
        return self.layout.expand(self.payload, self.fingerprint)

    def payload_of(self, row: int) -> dict[str, Array]:
        """The payload columns of one utterance."""
        t0, t1, e0, e1 = self.bounds(row)
        frame_column = self.layout.frame_column
        return {
            name: column[t0:t1] if name == frame_column else column[e0:e1]
            for name, column in self.payload.items()
        }

    def bounds(self, row: int) -> tuple[int, int, int, int]:
        """First and past-the-last frame, first and past-the-last entry of an utterance."""
        first, last = self.frame_offsets[row], self.frame_offsets[row + 1]
        return int(first), int(last), int(self.entry_offsets[row]), int(self.entry_offsets[row + 1])

    def computed_digests(self) -> Array:
        """XXH3-64 of each utterance, uint64 `(n,)`; docs/cache-format.md gives the bytes."""
        digests = np.empty(len(self.utt_ids), dtype="<u8")
        for row, utt_id in enumerate(self.utt_ids):
            t0, t1, e0, e1 = self.bounds(row)
            name = utt_id.encode()
            digest = xxhash.xxh3_64()
            digest.update(len(name).to_bytes(8, "little") + name)
            digest.update(self.audio_hashes[row].tobytes())
            sizes = np.array([self.samples[row], t1 - t0, e1 - e0], dtype="<i8")
            digest.update(sizes.tobytes())
            for column in self.payload_of(row).values():
                digest.update(column.tobytes())
            digests[row] = digest.intdigest()
        return digests

    def shape_problems(self, where: str) -> Iterator[Problem]:
        """What must hold before any column may be indexed by another: lengths, offsets, ranges."""
        n = len(self.utt_ids)
        lengths = [
            ("audio_hash", len(self.audio_hashes), n),
            ("samples", len(self.samples), n),
            ("digest", len(self.digests), n),
            ("frame_offset", len(self.frame_offsets), n + 1),
            ("entry_offset", len(self.entry_offsets), n + 1),
        ]
        entry_columns = self.layout.entry_columns
        lengths += [(name, len(self.payload[name]), self.entries) for name in entry_columns]
        for name, length, expected in lengths:
            if length != expected:
                yield Problem(
                    where=where, column=name, what=f"expected {expected} values, got {length}"
                )
                return
        for name, offsets, end in (
            ("frame_offset", self.frame_offsets, self.frames),
            ("entry_offset", self.entry_offsets, self.entries),
        ):
            if offsets[0] != 0 or offsets[-1] != end or (np.diff(offsets) < 0).any():
                what = f"offsets do not rise from 0 to {end}"
                yield Problem(where=where, column=name, what=what)
                return
        for name, limit in self.layout.limits(self.fingerprint).items():
            too_large = self.payload[name] >= limit
            if too_large.any():
                place = int(too_large.argmax())
                is_frame = name == self.layout.frame_column
                owner = self._frame_owner(place) if is_frame else self._entry_owner(place)
                what = f"expected values below {limit}, got {self.payload[name][place]}"
                yield Problem(where=where, column=name, utt_id=owner, what=what)
                return
        before = self.layout.entries_before(self.payload, self.fingerprint)
        wrong = before[self.frame_offsets] != self.entry_offsets
        if wrong.any():
            utt_id = self.utt_ids[max(0, int(wrong.argmax()) - 1)]
            what = "entries of its frames are not as many as its entries"
            name = self.layout.frame_column
            yield Problem(where=where, column=name, utt_id=utt_id, what=what)

    def digest_problems(self, where: str) -> Iterator[Problem]:
        """Utterances whose bytes are not the ones that the digest was taken of."""
        for row in np.flatnonzero(self.computed_digests() != self.digests):
            what = "its digest does not match its bytes"
            yield Problem(where=where, utt_id=self.utt_ids[row], what=what)

    def frame_problems(self, where: str) -> Iterator[Problem]:
        """What a writer keeps to: distinct tokens in a frame, and the layout's own rules."""
        for problem in self.layout.frame_problems(self.payload, self.fingerprint):
            owner = self._frame_owner(problem.frame)
            yield Problem(where=where, column=problem.column, utt_id=owner, what=problem.what)
        before = self.layout.entries_before(self.payload, self.fingerprint)
        frames = np.repeat(np.arange(self.frames), np.diff(before))
        vocab_size = self.fingerprint.vocab_size
        keys = np.sort(frames * vocab_size + self.payload["token"])
        repeated = keys[1:][keys[1:] == keys[:-1]]
        if len(repeated):
            frame, token = divmod(int(repeated[0]), vocab_size)
            what = f"token {token} stands twice in one frame"
            owner = self._frame_owner(frame)
            yield Problem(where=where, column="token", utt_id=owner, what=what)

    def _frame_owner(self, frame: int) -> str:
        return self.utt_ids[int(np.searchsorted(self.frame_offsets, frame, side="right")) - 1]

    def _entry_owner(self, entry: int) -> str:
        return self.utt_ids[int(np.searchsorted(self.entry_offsets, entry, side="right")) - 1]
