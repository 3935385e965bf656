"""A part: the columns of some utterances, their digests, and everything that must hold of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from interkd.kernels.errors import StoreError
from interkd.pipeline.cache.codec import get_quantiser
from interkd.pipeline.cache.fingerprint import Fingerprint
from interkd.pipeline.cache.format import (
    Array,
    ColumnSpec,
    pack_audio_hashes,
    pack_utterance_ids,
    part_columns,
    unpack_utterance_ids,
)


@dataclass(frozen=True, kw_only=True)
class EncodedUtterance:
    """One utterance's posteriors as the store keeps them. T frames, E entries.

    Within a frame tokens are distinct and the blank is among them.

    Attributes:
        utt_id: Utterance id.
        audio_hash: Hash of the decoded samples, 32 hexadecimal digits.
        entries_per_frame: uint8 `(T,)`, each at least 1.
        tokens: Token of each entry, any integer dtype, `(E,)`.
        log_prob_codes: Quantised log-probability of each entry, `(E,)`.
        samples: Samples of the audio.
    """

    utt_id: str
    audio_hash: str
    entries_per_frame: Array
    tokens: Array
    log_prob_codes: Array
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
    code_dtype = get_quantiser(fingerprint.quantiser).code_dtype
    return part_columns(vocab_size=fingerprint.vocab_size, code_dtype=code_dtype)


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
            ("entries_per_frame", utterance.entries_per_frame),
            ("token", utterance.tokens),
            ("log_prob", utterance.log_prob_codes),
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
        "entries_per_frame": np.concatenate([u.entries_per_frame for u in utterances]),
        "token": np.concatenate([u.tokens.astype(dtypes["token"]) for u in utterances]),
        "log_prob": np.concatenate([u.log_prob_codes for u in utterances]),
        "utterance_id": pack_utterance_ids([u.utt_id for u in utterances]),
        "audio_hash": pack_audio_hashes([u.audio_hash for u in utterances]),
        "frame_offset": _offsets([len(u.entries_per_frame) for u in utterances]),
        "entry_offset": _offsets([len(u.tokens) for u in utterances]),
        "samples": np.array([u.samples for u in utterances], dtype="<i8"),
    }
    columns["digest"] = Part(columns).computed_digests()
    return columns


def _offsets(lengths: Sequence[int]) -> Array:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype("<i8")


class Part:
    """Columns of a part with names and types; n utterances, N frames, E entries."""

    def __init__(self, columns: Mapping[str, Array]) -> None:
        self.entries_per_frame = columns["entries_per_frame"]
        self.tokens = columns["token"]
        self.log_prob_codes = columns["log_prob"]
        self.packed_ids = columns["utterance_id"]
        self.audio_hashes = columns["audio_hash"]
        self.frame_offsets = columns["frame_offset"].astype(np.int64, copy=False)
        self.entry_offsets = columns["entry_offset"].astype(np.int64, copy=False)
        self.samples = columns["samples"].astype(np.int64, copy=False)
        self.digests = columns.get("digest", np.zeros(0, dtype="<u8"))
        self.utt_ids = unpack_utterance_ids(self.packed_ids)

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
            digest.update(self.entries_per_frame[t0:t1].tobytes())
            digest.update(self.tokens[e0:e1].tobytes())
            digest.update(self.log_prob_codes[e0:e1].tobytes())
            digests[row] = digest.intdigest()
        return digests

    def shape_problems(self, where: str, vocab_size: int) -> Iterator[Problem]:
        """What must hold before any column may be indexed by another: lengths, offsets, tokens."""
        n = len(self.utt_ids)
        for name, length, expected in (
            ("audio_hash", len(self.audio_hashes), n),
            ("samples", len(self.samples), n),
            ("digest", len(self.digests), n),
            ("frame_offset", len(self.frame_offsets), n + 1),
            ("entry_offset", len(self.entry_offsets), n + 1),
            ("log_prob", len(self.log_prob_codes), len(self.tokens)),
        ):
            if length != expected:
                yield Problem(
                    where=where, column=name, what=f"expected {expected} values, got {length}"
                )
                return
        for name, offsets, end in (
            ("frame_offset", self.frame_offsets, len(self.entries_per_frame)),
            ("entry_offset", self.entry_offsets, len(self.tokens)),
        ):
            if offsets[0] != 0 or offsets[-1] != end or (np.diff(offsets) < 0).any():
                what = f"offsets do not rise from 0 to {end}"
                yield Problem(where=where, column=name, what=what)
                return
        frame_ends = np.concatenate([[0], np.cumsum(self.entries_per_frame, dtype=np.int64)])
        wrong = frame_ends[self.frame_offsets] != self.entry_offsets
        if wrong.any():
            utt_id = self.utt_ids[max(0, int(wrong.argmax()) - 1)]
            what = "entries of its frames do not sum to its entries"
            yield Problem(where=where, column="entries_per_frame", utt_id=utt_id, what=what)
        too_large = self.tokens >= vocab_size if len(self.tokens) else np.zeros(0, bool)
        if too_large.any():
            entry = int(too_large.argmax())
            what = f"expected tokens below {vocab_size}, got {self.tokens[entry]}"
            yield Problem(where=where, column="token", utt_id=self._entry_owner(entry), what=what)

    def digest_problems(self, where: str) -> Iterator[Problem]:
        """Utterances whose bytes are not the ones that the digest was taken of."""
        for row in np.flatnonzero(self.computed_digests() != self.digests):
            what = "its digest does not match its bytes"
            yield Problem(where=where, utt_id=self.utt_ids[row], what=what)

    def frame_problems(self, where: str, fingerprint: Fingerprint) -> Iterator[Problem]:
        """What a writer keeps to: one blank a frame, distinct tokens, log-probs at most 0."""
        frames = np.repeat(np.arange(len(self.entries_per_frame)), self.entries_per_frame)
        blank_frames = frames[self.tokens == fingerprint.blank_index]
        blanks = np.bincount(blank_frames, minlength=len(self.entries_per_frame))
        if (blanks != 1).any():
            frame = int((blanks != 1).argmax())
            what = f"expected the blank once in each frame, got it {blanks[frame]} times"
            owner = self._frame_owner(frame)
            yield Problem(where=where, column="token", utt_id=owner, what=what)
        keys = np.sort(frames * fingerprint.vocab_size + self.tokens)
        repeated = keys[1:][keys[1:] == keys[:-1]]
        if len(repeated):
            frame, token = divmod(int(repeated[0]), fingerprint.vocab_size)
            what = f"token {token} stands twice in one frame"
            owner = self._frame_owner(frame)
            yield Problem(where=where, column="token", utt_id=owner, what=what)
        log_probs = get_quantiser(fingerprint.quantiser).dequantise(self.log_prob_codes)
        outside = ~(np.isfinite(log_probs) & (log_probs <= 0))
        if outside.any():
            entry = int(outside.argmax())
            what = f"expected finite log-probabilities of at most 0, got {log_probs[entry]}"
            owner = self._entry_owner(entry)
            yield Problem(where=where, column="log_prob", utt_id=owner, what=what)

    def _frame_owner(self, frame: int) -> str:
        return self.utt_ids[int(np.searchsorted(self.frame_offsets, frame, side="right")) - 1]

    def _entry_owner(self, entry: int) -> str:
        return self.utt_ids[int(np.searchsorted(self.entry_offsets, entry, side="right")) - 1]
