"""What one may ask a store without a GPU: its size, what it keeps, what the teacher said."""

from __future__ import annotations

import dataclasses
import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from interkd.pipeline.cache.compare import best_tokens, probabilities
from interkd.pipeline.cache.fingerprint import Fingerprint
from interkd.pipeline.cache.format import (
    ARCHIVE_SUFFIX,
    INDEX_NAME,
    METADATA_FILE,
    file_name,
    part_name,
)
from interkd.pipeline.cache.part import column_specs
from interkd.pipeline.cache.parts_parallel import Progress, map_parts
from interkd.pipeline.cache.reader import TeacherStore


@dataclass(frozen=True, kw_only=True)
class StoreInfo:
    """A store in numbers.

    Attributes:
        path: The store.
        fingerprint: What it was made with.
        summary: What stage one measured.
        parts: Number of parts.
        utterances: Number of utterances.
        hours: Length of the audio.
        frames: Teacher frames.
        entries: Tokens kept, over all frames.
        files: Files on disk.
        folders: Folders on disk, the store's own among them.
        total_bytes: Bytes of all files.
        files_outside_parts: Of the files, those of the store as a whole: zarr.json and the index.
        column_bytes: Compressed bytes of each column over all parts, of the index, and of the
            rest: metadata and directories.
        blank_share: Share of frames whose most probable token is the blank, 0 to 1.
        mean_mass: Mean probability that the kept tokens of a frame reach together.
    """

    path: Path
    fingerprint: Fingerprint
    summary: dict[str, Any]
    parts: int
    utterances: int
    hours: float
    frames: int
    entries: int
    files: int
    folders: int
    total_bytes: int
    files_outside_parts: int
    column_bytes: dict[str, int]
    blank_share: float
    mean_mass: float

    @property
    def bytes_per_frame(self) -> float:
        """Bytes on disk of a frame, everything counted."""
        return self.total_bytes / max(1, self.frames)

    @property
    def entries_per_frame(self) -> float:
        """Mean tokens kept of a frame."""
        return self.entries / max(1, self.frames)

    @property
    def inodes(self) -> int:
        """Files and folders: what a cluster's quota counts."""
        return self.files + self.folders

    @property
    def files_in_1000_hours(self) -> int:
        """Files of a store of 1,000 hours whose parts are as long as these."""
        fixed = self.files_outside_parts
        parts = math.ceil(self.parts * 1000 / self.hours) if self.hours else self.parts
        return fixed + round(parts * (self.files - fixed) / self.parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["path"] = str(self.path)
        values["fingerprint"] = self.fingerprint.to_dict()
        values["bytes_per_frame"] = self.bytes_per_frame
        values["entries_per_frame"] = self.entries_per_frame
        values["inodes"] = self.inodes
        values["files_in_1000_hours"] = self.files_in_1000_hours
        return values


def info(path: Path | str, *, progress: Progress | None = None) -> StoreInfo:
    """Goes through a store and counts; digests are verified on the way.

    Args:
        path: The store.
        progress: Called with the parts done and the parts in all, after each part.

    Raises:
        StoreError: As `TeacherStore.open`.
        CorruptStoreError: For a damaged part.
    """
    store = TeacherStore.open(path)
    fingerprint = store.fingerprint

    def count(index: int) -> tuple[int, int, int, int, float]:
        part = store.read_part(index)
        expanded = part.expand()
        best = best_tokens(expanded)
        return (
            int(part.samples.sum()),
            part.frames,
            len(expanded.tokens),
            int((best == fingerprint.blank_index).sum()),
            float(probabilities(expanded)[0].sum()),
        )

    counts = map_parts(count, store.part_count, progress)
    samples, frames, entries, blank_frames, mass = map(sum, zip(*counts, strict=True))
    files = list(store_files(store))
    folders = {folder for file in files for folder in file.relative_to(store.path).parents}
    parts = {file for file in files if file.relative_to(store.path).parts[0].startswith("part-")}
    return StoreInfo(
        path=store.path,
        fingerprint=fingerprint,
        summary=store.summary,
        parts=store.part_count,
        utterances=len(store.utterance_ids),
        hours=samples / fingerprint.sample_rate / 3600,
        frames=frames,
        entries=entries,
        files=len(files),
        folders=len(folders),
        total_bytes=sum(file.stat().st_size for file in files),
        files_outside_parts=len(files) - len(parts),
        column_bytes=column_bytes(store),
        blank_share=blank_frames / max(1, frames),
        mean_mass=mass / max(1, frames),
    )


def store_files(store: TeacherStore) -> Iterator[Path]:
    """Every file of a store; nothing else that may lie in its folder."""
    version = store.metadata.version
    names = [METADATA_FILE, file_name(INDEX_NAME, version)]
    names += [file_name(part_name(i), version) for i in range(store.part_count)]
    for path in (store.path / name for name in names):
        yield from (p for p in (path.rglob("*") if path.is_dir() else [path]) if p.is_file())


def column_bytes(store: TeacherStore) -> dict[str, int]:
    """Compressed bytes of each column, of the index, and of all the rest of the files."""
    names = [spec.name for spec in column_specs(store.fingerprint)]
    totals = dict.fromkeys([*names, INDEX_NAME, "other"], 0)
    for path in store_files(store):
        relative = path.relative_to(store.path)
        size = path.stat().st_size
        if relative.parts[0] in (INDEX_NAME, file_name(INDEX_NAME, 2)):
            totals[INDEX_NAME] += size
        elif relative.suffix == ARCHIVE_SUFFIX:
            with zipfile.ZipFile(path) as archive:
                for member in archive.infolist():
                    name = member.filename.split("/")[0]
                    if "/c/" in member.filename and name in totals:
                        totals[name] += member.compress_size
                        size -= member.compress_size
            totals["other"] += size
        elif len(relative.parts) > 2 and "c" in relative.parts:
            totals[relative.parts[1]] += size
        else:
            totals["other"] += size
    return totals


def decode_store(path: Path | str) -> Iterator[tuple[str, list[int]]]:
    """Greedy CTC transcripts of what the teacher heard, straight from the store.

    Each frame's most probable token, repeats collapsed, blanks dropped.

    Yields:
        Utterance id and token indexes, in manifest order.

    Raises:
        StoreError: As `TeacherStore.open`.
        CorruptStoreError: For a damaged part.
    """
    store = TeacherStore.open(path)
    blank = store.fingerprint.blank_index
    for index in range(store.part_count):
        part = store.read_part(index)
        best = best_tokens(part.expand())
        changed = np.ones(len(best), dtype=bool)
        changed[1:] = best[1:] != best[:-1]
        starts = part.frame_offsets[:-1]
        changed[starts[starts < len(best)]] = True
        kept = np.flatnonzero(changed & (best != blank))
        ends = np.searchsorted(kept, part.frame_offsets[1:-1])
        transcripts = np.split(best[kept], ends)
        for utt_id, tokens in zip(part.utt_ids, transcripts, strict=True):
            yield utt_id, tokens.tolist()
