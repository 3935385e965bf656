"""The writer: creates or resumes a store, one whole part at a time, the index last."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from interkd.kernels.errors import CorruptStoreError, StoreError
from interkd.pipeline.cache.files import is_temporary, publish_file, remove_leftovers
from interkd.pipeline.cache.fingerprint import Fingerprint, check_same
from interkd.pipeline.cache.format import INDEX_NAME, METADATA_FILE, file_name, part_name
from interkd.pipeline.cache.groups import REMAKE
from interkd.pipeline.cache.index import part_digest, write_index
from interkd.pipeline.cache.metadata import StoreMetadata, read_metadata, write_metadata
from interkd.pipeline.cache.part import EncodedUtterance, Part, Problem, join_utterances
from interkd.pipeline.cache.part_io import pack_part, read_facts, read_part
from interkd.pipeline.cache.plan import PartPlan, plan_parts

__all__ = ["EncodedUtterance", "PartPlan", "StoreWriter", "plan_parts"]

OTHER_FOLDER = "write to another folder, or delete this one"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the file system refuses into a StoreError that names the folder.

    Raises:
        StoreError: In place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot write the teacher cache {path}",
            got=error.strerror or str(error),
            remedy="check the folder's permissions and the space on its disk, then run it again",
        ) from error


class StoreWriter:
    """Writes a store; may be killed at any instant and opened again.

    Any number of processes may write one store at once, as long as they were given the same plan:
    a part is made under a name of its writer's own, and the first one to finish it gives it its
    name. `PartClaims` keeps them from doing the same work twice.
    """

    def __init__(self, path: Path, metadata: StoreMetadata, plan: PartPlan) -> None:
        self.path = path
        self.metadata = metadata
        self.plan = plan

    @classmethod
    def open(cls, path: Path | str, fingerprint: Fingerprint, plan: PartPlan) -> StoreWriter:
        """Creates a store, or resumes the one that stands there.

        Args:
            path: Folder of the store.
            fingerprint: What the store is made with.
            plan: Which utterances it holds, in which part.

        Raises:
            FingerprintError: If a store with another fingerprint stands there.
            StoreError: If a store with another plan, something else or nothing writable stands
                there.
            CorruptStoreError: If the store's zarr.json is damaged.
        """
        root = Path(path)
        with writing(root):
            if root.exists() and not root.is_dir():
                raise StoreError(f"{root} is not a folder", remedy="choose another path")
            root.mkdir(parents=True, exist_ok=True)
            if not (root / METADATA_FILE).exists():
                others = sorted(p.name for p in root.iterdir() if not is_temporary(p.name))
                if others:
                    raise StoreError(
                        f"{root} is no teacher cache",
                        expected="an empty folder or a teacher cache",
                        got=f"{len(others)} other entries, the first '{others[0]}'",
                        remedy="choose another path",
                    )
                metadata = StoreMetadata(
                    fingerprint=fingerprint,
                    plan_digest=plan.digest,
                    part_count=len(plan.parts),
                    utterance_count=len(plan.utt_ids),
                )
                write_metadata(root, metadata, replace=False)
        standing = read_metadata(root)
        if standing.version != fingerprint.format_version:
            raise StoreError(
                f"format version of {root}",
                expected=fingerprint.format_version,
                got=standing.version,
                remedy=f"make it new with interkd cache compact, or {OTHER_FOLDER}",
            )
        what = f"{root} was begun with another teacher or other settings"
        check_same(standing.fingerprint, fingerprint, what=what, remedy=OTHER_FOLDER)
        if standing.plan_digest != plan.digest:
            raise StoreError(
                f"{root} was begun for other utterances, audio or part lengths",
                expected=_describe(
                    standing.utterance_count, standing.part_count, standing.plan_digest
                ),
                got=_describe(len(plan.utt_ids), len(plan.parts), plan.digest),
                remedy=OTHER_FOLDER,
            )
        with writing(root):
            if not os.access(root, os.W_OK | os.X_OK):
                raise PermissionError(13, "the folder is read-only")
            remove_leftovers(root)
        return cls(root, standing, plan)

    @property
    def is_finished(self) -> bool:
        """Whether summary and index stand."""
        index = self.path / file_name(INDEX_NAME, self.metadata.version)
        return self.metadata.summary is not None and index.exists()

    def missing_parts(self) -> list[int]:
        """Parts that no writer has finished yet, in order."""
        return self.metadata.missing_parts(self.path)

    def is_missing(self, index: int) -> bool:
        """Whether no writer has finished that part yet."""
        return not (self.path / file_name(part_name(index), self.metadata.version)).exists()

    def write_part(
        self,
        index: int,
        utterances: Sequence[EncodedUtterance],
        *,
        attributes: Mapping[str, Any] | None = None,
    ) -> bool:
        """Writes one part: checked, written under a temporary name, made to last, named.

        Args:
            index: Which part of the plan.
            utterances: Its utterances, in the plan's order.
            attributes: What stage one counted on the way, JSON values; kept with the part, so that
                a restart need not run it again (`part_attributes`).

        Returns:
            Whether this copy now stands; False where another writer's stood first.

        Raises:
            StoreError: If the utterances are not the plan's, are not well formed, or cannot be
                written.
        """
        self._check_planned(index, utterances)
        target = self.path / file_name(part_name(index), self.metadata.version)
        if target.exists():
            return False
        fingerprint = self.metadata.fingerprint
        columns = join_utterances(utterances, fingerprint)
        _refuse(Part(columns, fingerprint), part_name(index))
        content = pack_part(index, columns, self.metadata, attributes or {})
        with writing(self.path):
            return publish_file(target, content, replace=False)

    def part_attributes(self) -> list[dict[str, Any]]:
        """The attributes given to `write_part`, of every part that stands, in order.

        Raises:
            CorruptStoreError: If a part's attributes are damaged or are another part's.
        """
        missing = set(self.missing_parts())
        return [
            read_facts(self.path, index, self.metadata, where=part_name(index))
            for index in range(self.metadata.part_count)
            if index not in missing
        ]

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Checks every part, writes the index, then the summary: now the store can be read.

        What writers killed meanwhile left under temporary names goes.

        Args:
            summary: What stage one measured, JSON values; `interkd cache info` shows it.

        Raises:
            StoreError: Naming the parts that are missing, or if the store cannot be written.
            CorruptStoreError: Naming a damaged part.
        """
        if missing := self.missing_parts():
            raise StoreError(
                f"{self.path} cannot be finished",
                expected=f"{self.metadata.part_count} parts",
                got=f"{len(missing)} missing, the first {part_name(missing[0])}",
                remedy="run cache-teacher again: it makes only what is missing",
            )
        parts = []
        for index, positions in enumerate(self.plan.parts):
            where = f"{self.path} {part_name(index)}"
            part = read_part(self.path, index, self.metadata, where=where)
            if part.utt_ids != tuple(self.plan.utt_ids[i] for i in positions):
                raise CorruptStoreError(
                    f"{where} does not hold the utterances of the plan",
                    expected=f"{len(positions)}, the first '{self.plan.utt_ids[positions.start]}'",
                    got=f"{len(part.utt_ids)}, the first '{part.utt_ids[0]}'",
                    remedy=REMAKE,
                )
            parts.append((np.diff(part.frame_offsets), part_digest(part)))
        with writing(self.path):
            write_index(self.path, self.metadata, self.plan, parts)
            self.metadata = replace(self.metadata, summary=dict(summary))
            write_metadata(self.path, self.metadata, replace=True)
            remove_leftovers(self.path)

    def _check_planned(self, index: int, utterances: Sequence[EncodedUtterance]) -> None:
        if not 0 <= index < len(self.plan.parts):
            raise StoreError(
                "part to write", expected=f"0 to {len(self.plan.parts) - 1}", got=index
            )
        positions = self.plan.parts[index]
        if len(positions) != len(utterances):
            raise StoreError(
                f"utterances of {part_name(index)}", expected=len(positions), got=len(utterances)
            )
        for position, utterance in zip(positions, utterances, strict=True):
            planned = (self.plan.utt_ids[position], self.plan.audio_hashes[position])
            if planned != (utterance.utt_id, utterance.audio_hash):
                raise StoreError(
                    f"{part_name(index)} was planned with another utterance or other audio",
                    expected=" ".join(planned),
                    got=f"{utterance.utt_id} {utterance.audio_hash}",
                )


def _describe(utterances: int, parts: int, digest: str) -> str:
    return f"{utterances} utterances in {parts} parts ({digest[:8]})"


def _refuse(part: Part, where: str) -> None:
    problems: list[Problem] = list(part.shape_problems(where))
    problems = problems or list(part.frame_problems(where))
    if problems:
        raise StoreError(f"refused to store {problems[0]}")
