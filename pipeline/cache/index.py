"""The index: which part and row hold an utterance; written last, checked against the plan."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from interkd.kernels.errors import CorruptStoreError
from interkd.pipeline.cache.files import publish_folder, temporary_path
from interkd.pipeline.cache.format import (
    INDEX_COLUMNS,
    INDEX_NAME,
    Array,
    pack_audio_hashes,
    pack_utterance_ids,
    unpack_utterance_ids,
)
from interkd.pipeline.cache.groups import read_attributes, read_column, write_group
from interkd.pipeline.cache.metadata import StoreMetadata
from interkd.pipeline.cache.part import Part, Problem
from interkd.pipeline.cache.plan import PartPlan, plan_digest
from interkd.pipeline.cache.sealed import seal, unseal

REMEDY = "delete the folder 'index' and run cache-teacher again: it is made anew in seconds"


@dataclass(frozen=True, kw_only=True)
class StoreIndex:
    """Where every utterance is, in manifest order.

    Attributes:
        utt_ids: Ids, n of them.
        audio_hashes: uint8 `(n, 16)`.
        parts: Part of each utterance, int32 `(n,)`.
        rows: Row of each utterance in its part, int32 `(n,)`.
    """

    utt_ids: tuple[str, ...]
    audio_hashes: Array
    parts: Array
    rows: Array

    def rows_of(self, part: int) -> slice:
        """Positions of a part's utterances."""
        first, last = np.searchsorted(self.parts, [part, part + 1])
        return slice(int(first), int(last))

    def problems(self, part: int, content: Part, where: str) -> Iterator[Problem]:
        """Utterances of a part that the index has under another id or audio hash."""
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


def write_index(root: Path, metadata: StoreMetadata, plan: PartPlan) -> None:
    """Writes the index under a temporary name, then gives it its own."""
    temporary = temporary_path(root / INDEX_NAME)
    sizes = [len(part) for part in plan.parts]
    try:
        write_group(
            temporary,
            {
                "utterance_id": pack_utterance_ids(plan.utt_ids),
                "audio_hash": pack_audio_hashes(plan.audio_hashes),
                "part": np.repeat(np.arange(len(sizes)), sizes).astype("<i4"),
                "row": np.concatenate([np.arange(size) for size in sizes]).astype("<i4"),
            },
            seal(metadata.index_attributes(), what="index"),
        )
        publish_folder(temporary, root / INDEX_NAME)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_index(root: Path, metadata: StoreMetadata) -> StoreIndex:
    """Reads the index and checks that it is the one of this store's plan.

    Raises:
        CorruptStoreError: If it is missing, damaged or another store's.
    """
    folder, where = root / INDEX_NAME, f"{root} {INDEX_NAME}"
    try:
        attributes = unseal(read_attributes(folder, where=where), what=where, remedy=REMEDY)
        columns = {spec.name: read_column(folder, spec, where=where) for spec in INDEX_COLUMNS}
        utt_ids = unpack_utterance_ids(columns["utterance_id"])
    except CorruptStoreError as error:
        raise CorruptStoreError(error.what, got=error.got, remedy=REMEDY) from error
    except UnicodeDecodeError as error:
        raise CorruptStoreError(
            f"{where}, column 'utterance_id' is not UTF-8", got=str(error), remedy=REMEDY
        ) from error
    parts = columns["part"]
    sizes = np.bincount(parts.clip(0, metadata.part_count), minlength=metadata.part_count)
    expected_rows = np.concatenate([np.arange(size) for size in sizes])
    expected_parts = np.repeat(np.arange(len(sizes)), sizes)
    digest = plan_digest(sizes.tolist(), columns["utterance_id"], columns["audio_hash"])
    if (
        attributes != metadata.index_attributes()
        or digest != metadata.plan_digest
        or not np.array_equal(parts, expected_parts)
        or not np.array_equal(columns["row"], expected_rows)
        or len(utt_ids) != len(parts)
    ):
        raise CorruptStoreError(
            f"{where} is not that of this store",
            expected=f"plan {metadata.plan_digest}",
            got=digest,
            remedy=REMEDY,
        )
    return StoreIndex(
        utt_ids=utt_ids, audio_hashes=columns["audio_hash"], parts=parts, rows=columns["row"]
    )
