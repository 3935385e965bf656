"""What the teacher's posteriors look like: entropy, blanks, entries, spikes, bits a column."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any

import numpy as np

from interkd.pipeline.cache.compare import (
    Float64,
    Int64,
    best_tokens,
    entropies,
    probabilities,
)
from interkd.pipeline.cache.fingerprint import Fingerprint
from interkd.pipeline.cache.format import INDEX_NAME
from interkd.pipeline.cache.inspect import column_bytes
from interkd.pipeline.cache.part import Part
from interkd.pipeline.cache.parts_parallel import Progress, map_parts
from interkd.pipeline.cache.reader import TeacherStore
from interkd.pipeline.cluster.tasks import IN_PROCESS, ClusterSettings
from interkd.pipeline.progress import SILENT, Message

LONG_WORK = 100  # parts of an hour, 80 ms each; processes need some 4 s to start
BLANK_THRESHOLDS = (0.5, 0.9, 0.99, 0.999)
QUANTILES = (0.1, 0.5, 0.9, 0.99, 0.999)
TOP_SPIKES = 20
_BINS_A_DECADE = 50
_ENTROPY_DECADES = (-6, 2)
_LEFT_OUT_DECADES = (-8, 0)


@dataclass(frozen=True, kw_only=True)
class LogHistogram:
    """Counts of values in bins of equal ratio; smaller values lie in the first bin.

    Attributes:
        edges: Rising, `(bins + 1,)`.
        counts: `(bins,)`.
        total: Sum of the values themselves.
    """

    edges: Float64
    counts: Int64
    total: float

    @classmethod
    def of(cls, values: Float64, decades: tuple[int, int]) -> LogHistogram:
        """The histogram of values, of which none lies above the last decade."""
        low, high = decades
        edges = np.logspace(low, high, (high - low) * _BINS_A_DECADE + 1)
        counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
        return cls(edges=edges, counts=counts.astype(np.int64), total=float(values.sum()))

    def __add__(self, other: LogHistogram) -> LogHistogram:
        return LogHistogram(
            edges=self.edges, counts=self.counts + other.counts, total=self.total + other.total
        )

    @property
    def mean(self) -> float:
        """Mean of the values, exact."""
        return self.total / max(1, int(self.counts.sum()))

    def quantile(self, share: float) -> float:
        """The value that a share of the values does not exceed, to one bin (5 %)."""
        rising = np.cumsum(self.counts)
        if not len(rising) or rising[-1] == 0:
            return 0.0
        return float(self.edges[int(np.searchsorted(rising, share * rising[-1])) + 1])

    def to_dict(self) -> dict[str, Any]:
        """Mean, quantiles, and the bins that hold anything, `[low, high, count]`."""
        filled = np.flatnonzero(self.counts)
        return {
            "mean": self.mean,
            "quantiles": {f"{share:g}": self.quantile(share) for share in QUANTILES},
            "bins": [
                [float(self.edges[i]), float(self.edges[i + 1]), int(self.counts[i])]
                for i in filled
            ],
        }


@dataclass(frozen=True, kw_only=True)
class FrameCounts:
    """Counts over frames; those of parts add up.

    Attributes:
        samples: Of the audio.
        utterances: Number of utterances.
        frames: Number of frames.
        entropy: Of each frame's kept tokens and its rest as one more class, in nats.
        left_out: Probability that a frame's kept tokens lack.
        blank_above: Frames whose blank is more probable than each of `BLANK_THRESHOLDS`.
        entries: Frames by the number of tokens they keep, the blank among them, from 0.
        blank_runs: Runs of frames whose most probable token is the blank, by length, from 0.
        spikes: Runs of frames with the same most probable token, by token; what greedy decoding
            writes, and the blank.
    """

    samples: int
    utterances: int
    frames: int
    entropy: LogHistogram
    left_out: LogHistogram
    blank_above: Int64
    entries: Int64
    blank_runs: Int64
    spikes: Int64

    def __add__(self, other: FrameCounts) -> FrameCounts:
        def add(one: Any, two: Any) -> Any:
            if isinstance(one, np.ndarray) and len(one) != len(two):
                longer, shorter = sorted((one, two), key=len, reverse=True)
                return longer + np.pad(shorter, (0, len(longer) - len(shorter)))
            return one + two

        names = [field.name for field in dataclasses.fields(self)]
        return FrameCounts(**{n: add(getattr(self, n), getattr(other, n)) for n in names})


@dataclass(frozen=True, kw_only=True)
class StoreStats:
    """Statistics of a store.

    Attributes:
        path: The store.
        fingerprint: What it was made with.
        counts: Over all frames.
        column_bits: Bits on disk a frame of each column over all parts, of the index and of the
            rest.
    """

    path: Path
    fingerprint: Fingerprint
    counts: FrameCounts
    column_bits: dict[str, float]

    @property
    def hours(self) -> float:
        """Length of the audio."""
        return self.counts.samples / self.fingerprint.sample_rate / 3600

    @property
    def blank_shares(self) -> dict[float, float]:
        """Share of frames whose blank is more probable than a threshold."""
        shares = self.counts.blank_above / max(1, self.counts.frames)
        return dict(zip(BLANK_THRESHOLDS, shares.tolist(), strict=True))

    @property
    def top_spikes(self) -> list[tuple[str, int]]:
        """The tokens that greedy decoding writes most often, and how often."""
        spikes = self.counts.spikes.copy()
        spikes[self.fingerprint.blank_index] = 0
        order = np.argsort(-spikes, kind="stable")[:TOP_SPIKES]
        return [(self.fingerprint.tokens[i], int(spikes[i])) for i in order if spikes[i]]

    @property
    def spike_count(self) -> int:
        """Tokens that greedy decoding writes."""
        return int(self.counts.spikes.sum() - self.counts.spikes[self.fingerprint.blank_index])

    def blank_run_quantile(self, share: float) -> int:
        """Frames that a share of the runs of blanks does not exceed."""
        rising = np.cumsum(self.counts.blank_runs)
        if not len(rising) or rising[-1] == 0:
            return 0
        return int(np.searchsorted(rising, share * rising[-1]))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        counts = self.counts
        return {
            "path": str(self.path),
            "fingerprint": self.fingerprint.to_dict(),
            "hours": self.hours,
            "utterances": counts.utterances,
            "frames": counts.frames,
            "entropy_nats": counts.entropy.to_dict(),
            "probability_left_out": counts.left_out.to_dict(),
            "blank_share_above": {f"{p:g}": share for p, share in self.blank_shares.items()},
            "frames_by_entries": counts.entries.tolist(),
            "blank_runs_by_frames": counts.blank_runs.tolist(),
            "spikes": self.spike_count,
            "top_spikes": [{"token": token, "count": n} for token, n in self.top_spikes],
            "column_bits_a_frame": self.column_bits,
        }


def stats(
    path: Path,
    *,
    progress: Progress | None = None,
    cluster: ClusterSettings = IN_PROCESS,
    message: Message = SILENT,
) -> StoreStats:
    """Goes through a finished store and counts; digests are verified on the way.

    Args:
        path: The store.
        progress: Called with the parts done and the parts in all, after each part.
        cluster: Where.
        message: Told what a user waits for.

    Raises:
        StoreError: As `TeacherStore.open`.
        CorruptStoreError: For a damaged part.
    """
    store = TeacherStore.open(path)
    parts = map_parts(
        partial(_count_of, store),
        store.part_count,
        progress,
        cluster=cluster,
        long_work=LONG_WORK,
        message=message,
    )
    total: FrameCounts = reduce(FrameCounts.__add__, parts)
    sizes = column_bytes(store)
    # What stands once a store, the index, is listed after the columns.
    names = [*(name for name in sizes if name != INDEX_NAME), INDEX_NAME]
    return StoreStats(
        path=store.path,
        fingerprint=store.fingerprint,
        counts=total,
        column_bits={name: 8 * sizes[name] / max(1, total.frames) for name in names},
    )


def _count_of(store: TeacherStore, index: int) -> FrameCounts:
    return count(store.read_part(index))


def count(part: Part) -> FrameCounts:
    """The counts of one part."""
    fingerprint = part.fingerprint
    expanded = part.expand()
    probs, left_out = probabilities(expanded)
    blank_probs = probs[expanded.tokens == fingerprint.blank_index]
    best = best_tokens(expanded)
    runs, lengths = _runs(best, part.frame_offsets)
    return FrameCounts(
        samples=int(part.samples.sum()),
        utterances=len(part.utt_ids),
        frames=part.frames,
        entropy=LogHistogram.of(entropies(expanded), _ENTROPY_DECADES),
        left_out=LogHistogram.of(left_out, _LEFT_OUT_DECADES),
        blank_above=np.array([(blank_probs > p).sum() for p in BLANK_THRESHOLDS], dtype=np.int64),
        entries=np.bincount(np.diff(expanded.entry_offsets)),
        blank_runs=np.bincount(lengths[runs == fingerprint.blank_index]),
        spikes=np.bincount(runs, minlength=fingerprint.vocab_size),
    )


def _runs(best: Int64, frame_offsets: Int64) -> tuple[Int64, Int64]:
    """Token and length of every run of equal tokens; a run ends with its utterance."""
    starts_run = np.ones(len(best), dtype=bool)
    starts_run[1:] = best[1:] != best[:-1]
    firsts = frame_offsets[:-1]
    starts_run[firsts[firsts < len(best)]] = True
    starts = np.flatnonzero(starts_run)
    return best[starts], np.diff(starts, append=len(best))
