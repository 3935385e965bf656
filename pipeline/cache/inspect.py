"""What one may ask a store without a GPU: its size, what it keeps, what the teacher said."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from interkd.pipeline.cache.codec import get_quantiser
from interkd.pipeline.cache.fingerprint import Fingerprint
from interkd.pipeline.cache.format import INDEX_NAME, part_name
from interkd.pipeline.cache.part import Part, column_specs
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
        total_bytes: Bytes of all files.
        column_bytes: Bytes of each column's files over all parts, of the index, and of the groups'
            zarr.json.
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
    total_bytes: int
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

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["path"] = str(self.path)
        values["fingerprint"] = self.fingerprint.to_dict()
        values["bytes_per_frame"] = self.bytes_per_frame
        values["entries_per_frame"] = self.entries_per_frame
        return values


def info(path: Path | str) -> StoreInfo:
    """Goes through a store and counts; digests are verified on the way.

    Raises:
        StoreError: As `TeacherStore.open`.
        CorruptStoreError: For a damaged part.
    """
    store = TeacherStore.open(path)
    fingerprint = store.fingerprint
    samples = frames = entries = blank_frames = 0
    mass = 0.0
    for part in (store.read_part(index) for index in range(store.part_count)):
        samples += int(part.samples.sum())
        frames += len(part.entries_per_frame)
        entries += len(part.tokens)
        blank_frames += int((best_tokens(part, fingerprint) == fingerprint.blank_index).sum())
        log_probs = get_quantiser(fingerprint.quantiser).dequantise(part.log_prob_codes)
        mass += float(np.exp(log_probs, dtype=np.float64).sum())
    sizes = {p.relative_to(store.path): p.stat().st_size for p in _files(store)}
    return StoreInfo(
        path=store.path,
        fingerprint=fingerprint,
        summary=store.summary,
        parts=store.part_count,
        utterances=len(store.utterance_ids),
        hours=samples / fingerprint.sample_rate / 3600,
        frames=frames,
        entries=entries,
        files=len(sizes),
        total_bytes=sum(sizes.values()),
        column_bytes=_column_bytes(sizes, fingerprint),
        blank_share=blank_frames / max(1, frames),
        mean_mass=mass / max(1, frames),
    )


def _files(store: TeacherStore) -> Iterator[Path]:
    yield from (path for path in store.path.glob("*") if path.is_file())
    for name in (INDEX_NAME, *(part_name(i) for i in range(store.part_count))):
        yield from (path for path in (store.path / name).rglob("*") if path.is_file())


def _column_bytes(sizes: dict[Path, int], fingerprint: Fingerprint) -> dict[str, int]:
    names = [spec.name for spec in column_specs(fingerprint)]
    totals = dict.fromkeys([*names, INDEX_NAME, "zarr.json"], 0)
    for path, size in sizes.items():
        if path.parts[0] == INDEX_NAME:
            totals[INDEX_NAME] += size
        elif len(path.parts) > 2 and path.parts[1] in totals:
            totals[path.parts[1]] += size
        else:
            totals["zarr.json"] += size
    return totals


def best_tokens(part: Part, fingerprint: Fingerprint) -> npt.NDArray[np.int64]:
    """Most probable token of each frame, `(N,)`; of equal codes the entry standing first."""
    counts = part.entries_per_frame
    if len(counts) == 0:
        return np.zeros(0, dtype=np.int64)
    log_probs = get_quantiser(fingerprint.quantiser).dequantise(part.log_prob_codes)
    starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)[:-1]])
    largest = np.maximum.reduceat(log_probs, starts)
    candidates = np.flatnonzero(log_probs == np.repeat(largest, counts))
    frames = np.repeat(np.arange(len(counts)), counts)[candidates]
    first = np.concatenate([[True], frames[1:] != frames[:-1]])
    best: npt.NDArray[np.int64] = part.tokens[candidates[first]].astype(np.int64)
    return best


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
        best = best_tokens(part, store.fingerprint)
        changed = np.ones(len(best), dtype=bool)
        changed[1:] = best[1:] != best[:-1]
        starts = part.frame_offsets[:-1]
        changed[starts[starts < len(best)]] = True
        kept = np.flatnonzero(changed & (best != blank))
        ends = np.searchsorted(kept, part.frame_offsets[1:-1])
        transcripts = np.split(best[kept], ends)
        for utt_id, tokens in zip(part.utt_ids, transcripts, strict=True):
            yield utt_id, tokens.tolist()
