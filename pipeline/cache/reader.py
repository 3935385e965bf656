"""The reader: a store's posteriors by utterance, ready for the kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import xxhash

from interkd.kernels.errors import CorruptStoreError, StoreError
from interkd.kernels.sparse import SparsePosteriors
from interkd.pipeline.cache.fingerprint import Fingerprint
from interkd.pipeline.cache.format import Array, file_name, part_name
from interkd.pipeline.cache.index import StoreIndex, read_index
from interkd.pipeline.cache.metadata import StoreMetadata, read_metadata
from interkd.pipeline.cache.part import Part
from interkd.pipeline.cache.part_io import read_part
from interkd.pipeline.cache.part_memory import PartMemory
from interkd.pipeline.cache.versions import layout_of
from interkd.pipeline.devices import cores

MEMORY_GB = 8.0
_EXPANSION = 4  # columns in memory by bytes on disk: 2.6 on real speech


class CorpusUtterance(Protocol):
    """What the reader needs to know of an utterance in a manifest."""

    @property
    def utt_id(self) -> str:
        """Utterance id."""
        ...

    @property
    def audio_identity(self) -> str:
        """Hash of the decoded samples and of their speed, 32 hexadecimal digits."""
        ...


class TeacherStore:
    """A finished store, open for reading; any number of threads may read it at once.

    A part is read, checked and decompressed when its first utterance is asked for, and stays in
    memory as its columns, two to three times its bytes on disk, as long as all that is held stays
    within `memory_gb`; then the part that was used least recently goes.
    """

    def __init__(
        self, path: Path, metadata: StoreMetadata, index: StoreIndex, memory_gb: float
    ) -> None:
        self.path = path
        self.metadata = metadata
        self.index = index
        self.memory_gb = memory_gb
        self._positions = {utt_id: i for i, utt_id in enumerate(index.utt_ids)}
        self._layout = layout_of(metadata.fingerprint)
        self._memory = PartMemory(self.read_part, budget_bytes=memory_gb * 1e9)

    @classmethod
    def open(cls, path: Path | str, *, memory_gb: float = MEMORY_GB) -> TeacherStore:
        """Opens a finished store: its zarr.json and index are read and checked, no part yet.

        Args:
            path: The store.
            memory_gb: Host memory for the columns of parts, in 1e9 bytes; one part always stays.

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
        return cls(root, metadata, read_index(root, metadata), memory_gb)

    def __reduce__(self) -> tuple[Callable[..., TeacherStore], tuple[Path, float]]:
        return _open_again, (self.path, self.memory_gb)  # a spawned worker opens it anew

    @property
    def held_bytes(self) -> int:
        """Bytes of the columns in memory."""
        return self._memory.held_bytes

    @property
    def digest(self) -> str:
        """Tells this store from any other: the digests of its fingerprint, plan and parts."""
        digests = [self.metadata.fingerprint.digest, self.metadata.plan_digest]
        if self.index.part_digests is not None:
            digests.append(xxhash.xxh3_64_hexdigest(self.index.part_digests.tobytes()))
        return "-".join(digests)

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
        if self.index.frames is not None:
            return int(self.index.frames[self._position(utt_id)])
        part, row = self._locate(utt_id)
        first, last, _, _ = part.bounds(row)
        return last - first

    def audio_hash(self, utt_id: str) -> str:
        """Identity of the audio that the teacher heard, 32 hexadecimal digits."""
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
            elif known[position] != utterance.audio_identity:
                changed.append(utterance)
        if missing:
            first = missing[0]
            if first.audio_identity in known:
                twin = self.utterance_ids[known.index(first.audio_identity)]
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
                got=first.audio_identity,
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
        columns: dict[str, list[Array]] = {
            spec.name: [np.zeros(0, spec.dtype)]
            for spec in self._layout.payload_specs(self.fingerprint)
        }
        lengths = []
        for utt_id in utt_ids:
            part, row = self._locate(utt_id)
            for name, values in part.payload_of(row).items():
                columns[name].append(values)
            lengths.append(len(columns[self._layout.frame_column][-1]))
        payload = {name: np.concatenate(values) for name, values in columns.items()}
        expanded = self._layout.expand(payload, self.fingerprint)
        frame_offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        return SparsePosteriors(
            frame_offsets=torch.from_numpy(frame_offsets.astype(np.int64)),
            entry_offsets=torch.from_numpy(expanded.entry_offsets),
            tokens=torch.from_numpy(expanded.tokens),
            log_probs=torch.from_numpy(expanded.log_probs),
            vocab_size=self.fingerprint.vocab_size,
            blank_index=self.fingerprint.blank_index,
        )

    def part_of(self, utt_id: str) -> int:
        """The part that holds an utterance."""
        return int(self.index.parts[self._position(utt_id)])

    @property
    def parts_in_memory(self) -> int:
        """Parts whose columns surely fit `memory_gb` together, by their sizes on disk; 1 or more.

        All of them where the whole store fits.
        """
        version = self.metadata.version
        if version == 1:
            return self.part_count
        sizes = sorted(
            ((self.path / file_name(part_name(i), version)).stat().st_size * _EXPANSION)
            for i in range(self.part_count)
        )
        largest_first = np.cumsum(sizes[::-1])
        return max(1, int(np.searchsorted(largest_first, self.memory_gb * 1e9, side="right")))

    def load(self) -> None:
        """Reads and checks every part now, several at once; those that fit stay in memory."""
        with ThreadPoolExecutor(min(8, cores())) as pool:
            for _ in pool.map(self._memory.get, range(self.part_count)):
                pass

    def read_part(self, index: int) -> Part:
        """Reads and checks one part without keeping it.

        Raises:
            CorruptStoreError: Naming part and utterance or column of the first problem.
        """
        where = f"{self.path} {part_name(index)}"
        part = read_part(self.path, index, self.metadata, where=where)
        if problem := next(self.index.problems(index, part, where), None):
            raise CorruptStoreError(str(problem))
        return part

    def _position(self, utt_id: str) -> int:
        if utt_id not in self._positions:
            raise StoreError(f"{self.path} has no utterance '{utt_id}'")
        return self._positions[utt_id]

    def _locate(self, utt_id: str) -> tuple[Part, int]:
        position = self._position(utt_id)
        return self._memory.get(int(self.index.parts[position])), int(self.index.rows[position])


def _open_again(path: Path, memory_gb: float) -> TeacherStore:
    return TeacherStore.open(path, memory_gb=memory_gb)
