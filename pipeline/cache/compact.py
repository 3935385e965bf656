"""A store made anew from another: other parts, fewer utterances, fewer bits, today's version."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from interkd.kernels.errors import ConfigError
from interkd.pipeline.cache.compact_plan import (
    audio_seconds,
    part_plan,
    remaining_positions,
    target_fingerprint,
)
from interkd.pipeline.cache.fingerprint import Fingerprint
from interkd.pipeline.cache.format import FORMAT_VERSION, Array, part_name
from interkd.pipeline.cache.inspect import store_files
from interkd.pipeline.cache.part import EncodedUtterance, Part
from interkd.pipeline.cache.part_io import read_facts
from interkd.pipeline.cache.parts_parallel import Progress, map_parts
from interkd.pipeline.cache.plan import PartPlan
from interkd.pipeline.cache.reader import TeacherStore
from interkd.pipeline.cache.reencode import reencode, truncate
from interkd.pipeline.cache.writer import StoreWriter
from interkd.pipeline.cluster.tasks import IN_PROCESS, ClusterSettings
from interkd.pipeline.progress import SILENT, Message

LONG_WORK = 25  # parts of an hour, 0.4 s each; processes need some 4 s to start
HISTORY_KEY = "compacted_from"
_PARTS_HELD = 8


@dataclass(frozen=True, kw_only=True)
class CompactReport:
    """What a run of `compact` did.

    Attributes:
        source: The store that was read.
        out: The store that stands now.
        utterances: In the new store.
        dropped: Utterances left out.
        source_parts: Parts of the old store.
        parts: Parts of the new one.
        parts_written: Of them, those that this run wrote; the others stood already.
        source_bytes: Of the old store's files.
        out_bytes: Of the new one's.
        copied: Whether codes were copied bit for bit, not made anew.
        lost_facts: Names in the summary that held for the old store's utterances alone.
        seconds: Wall-clock seconds.
    """

    source: Path
    out: Path
    utterances: int
    dropped: int
    source_parts: int
    parts: int
    parts_written: int
    source_bytes: int
    out_bytes: int
    copied: bool
    lost_facts: tuple[str, ...]
    seconds: float


def compact(
    source: Path,
    out: Path,
    *,
    part_minutes: float = 60.0,
    quantiser: str | None = None,
    mass: float | None = None,
    drop: Collection[str] = (),
    keep: Collection[str] | None = None,
    progress: Progress | None = None,
    cluster: ClusterSettings = IN_PROCESS,
    message: Message = SILENT,
) -> CompactReport:
    """Writes a new store from a finished one, which is never changed.

    Killed, it is simply started again: parts that stand are skipped.

    Args:
        source: The store to read.
        out: The store to write.
        part_minutes: Audio in a part of the new store.
        quantiser: Of the new store; the old one's when None, `angle5` for one of version 1.
        mass: Probability that the kept tokens reach; the old store's when None.
        drop: Ids of utterances to leave out.
        keep: Ids of the utterances to take; all when None.
        progress: Called with the parts done and the parts in all, after each part.
        cluster: Where.
        message: Told what a user waits for.

    Raises:
        ConfigError: For a part length that cannot be, or `out` being `source`.
        StoreError: For a quantiser with more bits or a mass larger than the source's, ids that it
            lacks, no utterances left, or a folder that cannot be written.
        CorruptStoreError: For a damaged part of the source.
    """
    started = time.monotonic()
    if not part_minutes > 0:
        raise ConfigError("part_minutes", expected="above 0", got=part_minutes)
    if source.resolve() == out.resolve():
        raise ConfigError("a store cannot be compacted onto itself", got=str(out))
    store = TeacherStore.open(source)
    fingerprint = target_fingerprint(store, quantiser, mass)
    positions = remaining_positions(store, drop, keep)
    seconds = audio_seconds(store)[positions]
    plan = part_plan(store, positions, seconds, 60 * part_minutes)
    writer = StoreWriter.open(out, fingerprint, plan)
    missing = writer.missing_parts()
    dropped = len(store.utterance_ids) - len(positions)
    facts = _facts(store, plan, is_whole=not dropped)
    maker = _UtteranceMaker(store, fingerprint)
    write = _PartMaker(
        maker=maker, writer=writer, positions=positions, missing=missing, facts=facts
    )
    written = map_parts(
        write, len(missing), progress, cluster=cluster, long_work=LONG_WORK, message=message
    )
    if missing or not writer.is_finished:
        writer.finish(_summary(store, float(seconds.sum()), dropped))
    return CompactReport(
        source=store.path,
        out=writer.path,
        utterances=len(positions),
        dropped=dropped,
        source_parts=store.part_count,
        parts=len(plan.parts),
        parts_written=sum(written),
        source_bytes=_bytes(store),
        out_bytes=_bytes(TeacherStore.open(out)),
        copied=maker.copies,
        lost_facts=tuple(_lost(store.summary)) if dropped else (),
        seconds=time.monotonic() - started,
    )


@dataclass(frozen=True, kw_only=True)
class _PartMaker:
    """Makes and writes the parts that the new store lacks; a process gets one of its own.

    Attributes:
        maker: Of utterances.
        writer: Of the new store.
        positions: In the old store, of the new one's utterances.
        missing: The parts to make.
        facts: Of each part of the new store.
    """

    maker: _UtteranceMaker
    writer: StoreWriter
    positions: Sequence[int]
    missing: Sequence[int]
    facts: Sequence[dict[str, list[int]]]

    def __call__(self, number: int) -> bool:
        """Writes a missing part; False where another writer's stood first."""
        index = self.missing[number]
        utterances = self.maker.make(self.positions[i] for i in self.writer.plan.parts[index])
        return self.writer.write_part(index, utterances, attributes=self.facts[index])


class _UtteranceMaker:
    """Makes the new store's utterances of the old store's."""

    def __init__(self, store: TeacherStore, target: Fingerprint) -> None:
        self.store = store
        self.source, self.target = store.fingerprint, target
        self.copies = self.source == target
        self.truncates = replace(self.source, mass=target.mass) == target
        # Parts of both stores follow the same order, so each is read about once.
        self._part = lru_cache(_PARTS_HELD)(store.read_part)

    def __reduce__(self) -> tuple[Callable[..., _UtteranceMaker], tuple[Any, ...]]:
        return _UtteranceMaker, (self.store, self.target)  # a process holds parts of its own

    def make(self, positions: Iterable[int]) -> list[EncodedUtterance]:
        """The utterances at those positions of the old store."""
        return [self._make(position) for position in positions]

    def _make(self, position: int) -> EncodedUtterance:
        index = self.store.index
        part, row = self._part(int(index.parts[position])), int(index.rows[position])
        blank, tokens, fractions = self._columns(part, row)
        return EncodedUtterance(
            utt_id=index.utt_ids[position],
            audio_hash=index.audio_hashes[position].tobytes().hex(),
            blank=blank,
            tokens=tokens,
            fractions=fractions,
            samples=int(part.samples[row]),
        )

    def _columns(self, part: Part, row: int) -> tuple[Array, Array, Array]:
        payload = part.payload_of(row)
        if self.copies:
            return payload["blank"], payload["token"], payload["fraction"]
        expanded = part.layout.expand(payload, self.source)
        if self.truncates:
            return truncate(payload, expanded, self.source, self.target.mass)
        return reencode(expanded, self.source, self.target)


def _facts(store: TeacherStore, plan: PartPlan, *, is_whole: bool) -> list[dict[str, list[int]]]:
    """Counts of the old parts for the new ones, so that their sums stay what they are.

    Nobody can split a part's counts: they go to the new part with its first utterance. Where
    utterances were dropped all counts are 0, nothing counted.
    """
    old = [
        read_facts(store.path, index, store.metadata, where=f"{store.path} {part_name(index)}")
        for index in range(store.part_count)
    ]
    names = [
        name
        for name in old[0]
        if all(isinstance(facts.get(name), list) and facts[name] for facts in old)
    ]
    new = [{name: [0] * len(old[0][name]) for name in names} for _ in plan.parts]
    if not is_whole:
        return new
    stops = [part.stop for part in plan.parts]
    for index, facts in enumerate(old):
        receiver = new[int(np.searchsorted(stops, store.index.rows_of(index).start, side="right"))]
        for name in names:
            receiver[name] = [a + b for a, b in zip(receiver[name], facts[name], strict=True)]
    return new


def _summary(store: TeacherStore, seconds: float, dropped: int) -> dict[str, Any]:
    """What the old summary says that still holds, and where the codes come from."""
    old = store.summary
    fingerprint = store.fingerprint
    summary = {name: None if name in _lost(old) and dropped else old[name] for name in old}
    origin = f"{fingerprint.quantiser}, mass {fingerprint.mass:g}"
    if fingerprint.format_version < FORMAT_VERSION:
        origin += f", format version {fingerprint.format_version}"
    if dropped:
        origin += f", {len(store.utterance_ids)} utterances"
    history = [*old.get(HISTORY_KEY, []), origin]
    return {**summary, "hours": seconds / 3600, HISTORY_KEY: history}


def _lost(summary: dict[str, Any]) -> list[str]:
    """What was measured over all utterances of a store and cannot be told of some."""
    return [n for n in summary if n not in ("hours", HISTORY_KEY) and summary[n] is not None]


def _bytes(store: TeacherStore) -> int:
    return sum(file.stat().st_size for file in store_files(store))
