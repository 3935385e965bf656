"""Stage one on workers: each caches parts of the store, with a teacher of its own."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from interkd.pipeline.cache.part import EncodedUtterance
from interkd.pipeline.cache.part_claims import PartClaims
from interkd.pipeline.cache.writer import StoreWriter
from interkd.pipeline.cluster.tasks import ClusterSettings, open_workers
from interkd.pipeline.corpus.manifest import Utterance
from interkd.pipeline.devices import cores
from interkd.pipeline.part_runner import PartRunner
from interkd.pipeline.part_writer import PartFacts, PartWriter

Part = tuple[int, Sequence[Utterance]]


@dataclass(frozen=True, kw_only=True)
class CachedPart:
    """What became of a part.

    Attributes:
        index: Which part.
        samples: Of its audio.
        is_written: Whether this copy stands; False where another writer's stood first.
    """

    index: int
    samples: int
    is_written: bool


@dataclass(frozen=True, kw_only=True)
class PartCacher:
    """Runs the teacher over one part after the other and writes them; each process has its own.

    Attributes:
        load: Loads the teacher, when the first part comes.
        writer: Of the store.
        threads: With which the teacher computes.
    """

    load: Callable[[], PartRunner]
    writer: StoreWriter
    threads: int

    @cached_property
    def runner(self) -> PartRunner:
        """With the teacher loaded."""
        torch.set_num_threads(min(self.threads, cores()))
        return self.load()

    def __call__(self, part: Part) -> CachedPart:
        """Caches a part."""
        index, utterances = part
        written = []

        def write(index: int, encoded: list[EncodedUtterance], facts: PartFacts) -> None:
            written.append(write_part(self.writer, index, utterances, encoded, facts))

        with PartWriter(self.runner.teacher.info, write) as part_writer:
            for batch in self.runner.run([part]):
                part_writer.put(batch)
        return CachedPart(
            index=index, samples=sum(u.samples for u in utterances), is_written=any(written)
        )


def write_part(
    writer: StoreWriter,
    index: int,
    utterances: Sequence[Utterance],
    encoded: list[EncodedUtterance],
    facts: PartFacts,
) -> bool:
    """Writes a part, its utterances back in the manifest's order; whether this copy stands."""
    order = {u.utt_id: row for row, u in enumerate(utterances)}
    encoded.sort(key=lambda item: order[item.utt_id])
    return writer.write_part(index, encoded, attributes=facts.to_dict())


def cache_on_workers(
    cacher: PartCacher,
    claims: PartClaims,
    parts: Mapping[int, Sequence[Utterance]],
    cluster: ClusterSettings,
) -> Generator[CachedPart, None, None]:
    """Caches parts on workers, each as soon as it is done.

    The claims are this process's own, whichever worker has the part: one that dies is followed by
    another under the same claim, and other writers of the store need not wait for it to be stale.

    Args:
        cacher: What a worker does.
        claims: Entered.
        parts: Utterances of the parts to cache.
        cluster: Where the workers run.
    """
    with open_workers(cluster, claims.message, tasks=len(parts)) as workers:
        for free in claims.rounds(parts):
            items: Iterator[Part] = ((index, parts[index]) for index in free)
            for _, done in workers.run(cacher, items):
                claims.release(done.index)
                yield done
