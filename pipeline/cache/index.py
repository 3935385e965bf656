"""The index: which part and row hold an utterance; written last, checked against the plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from interkd.kernels.errors import CorruptStoreError
from interkd.pipeline.cache.files import publish_file
from interkd.pipeline.cache.format import (
    INDEX_COLUMNS,
    INDEX_NAME,
    Array,
    file_name,
    pack_audio_hashes,
    pack_utterance_ids,
    unpack_utterance_ids,
)
from interkd.pipeline.cache.groups import pack_group, read_attributes, read_column
from interkd.pipeline.cache.metadata import StoreMetadata
from interkd.pipeline.cache.part import Part, Problem
from interkd.pipeline.cache.part_io import open_container
from interkd.pipeline.cache.plan import PartPlan, plan_digest
from interkd.pipeline.cache.sealed import seal, unseal

REMEDY = "delete the store's index and run cache-teacher again: it is made anew in seconds"


def part_digest(part: Part) -> int:
    """XXH3-64 of the digests of a part's utterances: tells its content from any other's."""
    return xxhash.xxh3_64_intdigest(part.digests.tobytes())


@dataclass(frozen=True, kw_only=True)
class StoreIndex:
    """Where every utterance is, in manifest order. n utterances, P parts.

    Attributes:
        utt_ids: Ids, n of them.
        audio_hashes: uint8 `(n, 16)`.
        parts: Part of each utterance, int32 `(n,)`.
        rows: Row of each utterance in its part, int64 `(n,)`.
        frames: Teacher frames of each utterance, int64 `(n,)`; None in a store of version 1.
        part_digests: `part_digest` of each part, uint64 `(P,)`; None in a store of version 1.
    """

    utt_ids: tuple[str, ...]
    audio_hashes: Array
    parts: Array
    rows: Array
    frames: Array | None = None
    part_digests: Array | None = None

    def rows_of(self, part: int) -> slice:
        """Positions of a part's utterances."""
        first, last = np.searchsorted(self.parts, [part, part + 1])
        return slice(int(first), int(last))

    def span_of(self, part: int) -> str:
        """A part's utterances in words."""
        ids = self.utt_ids[self.rows_of(part)]
        return f"{len(ids)} utterances, '{ids[0]}' to '{ids[-1]}'"

    def problems(self, part: int, content: Part, where: str) -> Iterator[Problem]:
        """What a part holds otherwise than the index has it."""
        rows = self.rows_of(part)
        expected_ids = self.utt_ids[rows]
        if content.utt_ids != expected_ids:
            pairs = enumerate(zip(expected_ids, content.utt_ids, strict=False))
            shorter = min(len(expected_ids), len(content.utt_ids))
            row = next((i for i, (wanted, found) in pairs if wanted != found), shorter)
            what = f"row {row} is not the utterance that the index names"
            utt_id = content.utt_ids[row] if row < len(content.utt_ids) else None
            yield Problem(where=where, column="utterance_id", utt_id=utt_id, what=what)
            return
        differs = (content.audio_hashes != self.audio_hashes[rows]).any(axis=1)
        for changed in np.flatnonzero(differs):
            what = "its audio hash is not the one that the index has"
            utt_id = content.utt_ids[changed]
            yield Problem(where=where, column="audio_hash", utt_id=utt_id, what=what)
        if self.part_digests is None:
            return
        expected, found = int(self.part_digests[part]), part_digest(content)
        if expected != found:
            what = (
                f"the index is older than this part: expected digest {expected:016x}, got "
                f"{found:016x}; {REMEDY}"
            )
            yield Problem(where=where, column="digest", what=what)


def write_index(
    root: Path, metadata: StoreMetadata, plan: PartPlan, parts: Sequence[tuple[Array, int]]
) -> None:
    """Writes the index, in place of one that stands there.

    Args:
        root: The store.
        metadata: Its metadata.
        plan: Its plan.
        parts: Of each part, the frames of its utterances and its `part_digest`.
    """
    sizes = [len(part) for part in plan.parts]
    columns = {
        "utterance_id": pack_utterance_ids(plan.utt_ids),
        "audio_hash": pack_audio_hashes(plan.audio_hashes),
        "part": np.repeat(np.arange(len(sizes)), sizes).astype("<i4"),
        "frames": np.concatenate([frames for frames, _ in parts]).astype("<i8"),
        "part_digest": np.array([digest for _, digest in parts], dtype="<u8"),
    }
    content = pack_group(columns, seal(metadata.index_attributes(), what="index"))
    publish_file(root / file_name(INDEX_NAME, metadata.version), content, replace=True)


def read_index(root: Path, metadata: StoreMetadata) -> StoreIndex:
    """Reads the index and checks that it is the one of this store's plan.

    Raises:
        CorruptStoreError: If it is missing, damaged or another store's.
    """
    where = f"{root} {INDEX_NAME}"
    try:
        container = open_container(root, INDEX_NAME, metadata.version, where=where)
        attributes = unseal(read_attributes(container, where=where), what=where, remedy=REMEDY)
        columns = {
            spec.name: read_column(container, spec, where=where)
            for spec in INDEX_COLUMNS[metadata.version]
        }
        utt_ids = unpack_utterance_ids(columns["utterance_id"])
    except CorruptStoreError as error:
        raise CorruptStoreError(error.what, got=error.got, remedy=REMEDY) from error
    except UnicodeDecodeError as error:
        raise CorruptStoreError(
            f"{where}, column 'utterance_id' is not UTF-8", got=str(error), remedy=REMEDY
        ) from error
    parts = columns["part"]
    sizes = np.bincount(parts.clip(0, metadata.part_count), minlength=metadata.part_count)
    digest = plan_digest(sizes.tolist(), columns["utterance_id"], columns["audio_hash"])
    rows = np.concatenate([np.arange(size) for size in sizes])
    lengths = {name: len(column) for name, column in columns.items() if name != "utterance_id"}
    expected_lengths = {name: len(utt_ids) for name in lengths}
    if "part_digest" in lengths:
        expected_lengths["part_digest"] = metadata.part_count
    if (
        attributes != metadata.index_attributes()
        or digest != metadata.plan_digest
        or not np.array_equal(parts, np.repeat(np.arange(len(sizes)), sizes))
        or not np.array_equal(columns.get("row", rows), rows)
        or lengths != expected_lengths
    ):
        raise CorruptStoreError(
            f"{where} is not that of this store",
            expected=f"plan {metadata.plan_digest}",
            got=digest,
            remedy=REMEDY,
        )
    return StoreIndex(
        utt_ids=utt_ids,
        audio_hashes=columns["audio_hash"],
        parts=parts,
        rows=rows,
        frames=columns.get("frames"),
        part_digests=columns.get("part_digest"),
    )
