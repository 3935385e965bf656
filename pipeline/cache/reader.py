"""The reader: a store's posteriors by utterance, ready for the kernels."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from interkd.kernels.errors import CorruptStoreError, StoreError
from interkd.kernels.sparse import SparsePosteriors
from interkd.pipeline.cache.codec import get_quantiser
from interkd.pipeline.cache.fingerprint import Fingerprint
from interkd.pipeline.cache.format import Array, part_name
from interkd.pipeline.cache.index import StoreIndex, read_index
from interkd.pipeline.cache.metadata import StoreMetadata, read_metadata
from interkd.pipeline.cache.part import Part, column_specs
from interkd.pipeline.cache.part_io import read_part_folder


class CorpusUtterance(Protocol):
    """What the reader needs to know of an utterance in a manifest."""

    @property
    def utt_id(self) -> str:
        """Utterance id."""
        ...

    @property
    def audio_hash(self) -> str:
        """Hash of the decoded samples, 32 hexadecimal digits."""
        ...


class TeacherStore:
    """A finished store, open for reading; any number of threads may read it at once.

    A part is read, checked and decompressed when its first utterance is asked for, and stays in
    memory as it was decompressed: about as many bytes as it has on disk, two to four times over.
    """

    def __init__(self, path: Path, metadata: StoreMetadata, index: StoreIndex) -> None:
        self.path = path
        self.metadata = metadata
        self.index = index
        self._positions = {utt_id: i for i, utt_id in enumerate(index.utt_ids)}
        self._quantiser = get_quantiser(metadata.fingerprint.quantiser)
        self._parts: dict[int, Part] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path | str) -> TeacherStore:
        """Opens a finished store: its zarr.json and index are read and checked, no part yet.

        Raises:
            StoreError: If there is no store, it is not finished or its version is unknown.
            CorruptStoreError: If its zarr.json or index is damaged.
        """
        root = Path(path)
        metadata = read_metadata(root)
        if missing := metadata.missing_parts(root):
            names = ", ".join(part_name(i) for i in missing[:5])
            raise StoreError(
                f"{root} is not whole",
                expected=f"{metadata.part_count} parts",
                got=f"{len(missing)} missing ({names}{', ...' if len(missing) > 5 else ''})",
                remedy="run cache-teacher again: it makes only what is missing",
            )
        if metadata.summary is None:
            raise StoreError(
                f"{root} is not finished",
                expected="a summary",
                got="none",
                remedy="run cache-teacher again: it makes only what is missing",
            )
        return cls(root, metadata, read_index(root, metadata))

    def __reduce__(self) -> tuple[Callable[[Path], TeacherStore], tuple[Path]]:
        return TeacherStore.open, (self.path,)  # a spawned worker opens it anew

    @property
    def digest(self) -> str:
        """Tells this store from any other: the digests of its fingerprint and of its plan."""
        return f"{self.metadata.fingerprint.digest}-{self.metadata.plan_digest}"

    @property
    def fingerprint(self) -> Fingerprint:
        """What the store was made with."""
        return self.metadata.fingerprint

    @property
    def summary(self) -> dict[str, Any]:
        """What stage one measured."""
        return dict(self.metadata.summary or {})

    @property
    def utterance_ids(self) -> tuple[str, ...]:
        """Every utterance id, in manifest order."""
        return self.index.utt_ids

    @property
    def part_count(self) -> int:
        """Number of parts."""
        return self.metadata.part_count

    def frame_count(self, utt_id: str) -> int:
        """Teacher frames of an utterance."""
        part, row = self._locate(utt_id)
        first, last, _, _ = part.bounds(row)
        return last - first

    def audio_hash(self, utt_id: str) -> str:
        """Hash of the decoded samples that the teacher heard, 32 hexadecimal digits."""
        audio_hash: bytes = self.index.audio_hashes[self._position(utt_id)].tobytes()
        return audio_hash.hex()

    def require(self, utterances: Iterable[CorpusUtterance]) -> None:
        """Refuses a corpus of which the store lacks an utterance, or knows it with other audio.

        Raises:
            StoreError: With the number of such utterances and the first one; for an id that the
                store lacks, the id under which it has that audio, if it does.
        """
        hashes = self.index.audio_hashes.tobytes().hex()
        known = [hashes[i : i + 32] for i in range(0, len(hashes), 32)]
        missing, changed = [], []
        for utterance in utterances:
            position = self._positions.get(utterance.utt_id)
            if position is None:
                missing.append(utterance)
            elif known[position] != utterance.audio_hash:
                changed.append(utterance)
        if missing:
            first = missing[0]
            if first.audio_hash in known:
                twin = self.utterance_ids[known.index(first.audio_hash)]
                got = f"its audio under the id '{twin}'"
                remedy = "give the manifest the ids that the cache was made with"
            else:
                got, remedy = "neither its id nor its audio", "cache the teacher for this manifest"
            raise StoreError(
                f"{self.path} lacks {len(missing)} utterances of the manifest",
                expected=f"'{first.utt_id}'",
                got=got,
                remedy=remedy,
            )
        if changed:
            first = changed[0]
            raise StoreError(
                f"{self.path} was made of other audio for {len(changed)} utterances of the "
                f"manifest, the first '{first.utt_id}'",
                expected=f"audio hash {self.audio_hash(first.utt_id)}",
                got=first.audio_hash,
                remedy="cache the teacher for this audio, or train on the audio it heard",
            )

    def targets(self, utt_ids: Sequence[str]) -> SparsePosteriors:
        """Posteriors of a batch, CPU tensors.

        Args:
            utt_ids: The batch's utterances, B of them, in any order.

        Raises:
            StoreError: For an id that the store lacks.
            CorruptStoreError: Naming part and utterance or column, when the part is first read.
        """
        specs = {spec.name: spec.dtype for spec in column_specs(self.fingerprint)}
        frames: list[Array] = [np.zeros(0, dtype=specs["entries_per_frame"])]
        tokens: list[Array] = [np.zeros(0, dtype=specs["token"])]
        codes: list[Array] = [np.zeros(0, dtype=specs["log_prob"])]
        lengths = []
        for utt_id in utt_ids:
            part, row = self._locate(utt_id)
            t0, t1, e0, e1 = part.bounds(row)
            frames.append(part.entries_per_frame[t0:t1])
            tokens.append(part.tokens[e0:e1])
            codes.append(part.log_prob_codes[e0:e1])
            lengths.append(t1 - t0)
        log_probs = self._quantiser.dequantise(np.concatenate(codes))
        return SparsePosteriors(
            frame_offsets=_offsets(np.array(lengths, dtype=np.int64)),
            entry_offsets=_offsets(np.concatenate(frames)),
            tokens=torch.from_numpy(np.concatenate(tokens).astype(np.int32)),
            log_probs=torch.from_numpy(log_probs),
            vocab_size=self.fingerprint.vocab_size,
            blank_index=self.fingerprint.blank_index,
        )

    def load(self) -> None:
        """Reads and checks every part now."""
        for part in range(self.part_count):
            self._part(part)

    def read_part(self, index: int) -> Part:
        """Reads and checks one part without keeping it.

        Raises:
            CorruptStoreError: Naming part and utterance or column of the first problem.
        """
        where = f"{self.path} {part_name(index)}"
        part = read_part_folder(self.path / part_name(index), index, self.metadata, where=where)
        if problem := next(self.index.problems(index, part, where), None):
            raise CorruptStoreError(str(problem))
        return part

    def _position(self, utt_id: str) -> int:
        if utt_id not in self._positions:
            raise StoreError(f"{self.path} has no utterance '{utt_id}'")
        return self._positions[utt_id]

    def _part(self, index: int) -> Part:
        part = self._parts.get(index)
        if part is None:
            with self._lock:
                if index not in self._parts:
                    self._parts[index] = self.read_part(index)
                part = self._parts[index]
        return part

    def _locate(self, utt_id: str) -> tuple[Part, int]:
        position = self._position(utt_id)
        return self._part(int(self.index.parts[position])), int(self.index.rows[position])


def _offsets(lengths: Array) -> torch.Tensor:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return torch.from_numpy(offsets)
