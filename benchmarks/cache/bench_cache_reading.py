"""Reading targets: the store's reader against plain Zarr slices; opening a store of 1,000 parts.

    python benchmarks/cache/bench_cache_reading.py STORE [--batch 64] [--json FILE]

STORE is a finished store of version 2. Random batches of utterances, the same for every way, in
turn; median milliseconds a batch:

- TeacherStore: the columns of the parts in memory, as in training;
- TeacherStore, cold parts: only one part fits in memory, so most utterances read a part anew;
- zarr-python, zarr-python with zarrs: the same columns as Zarr arrays (chunks of 65,536 in one
  shard, zstd 3), a slice an utterance and column, then the same expansion.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from interkd.pipeline.cache.part import EncodedUtterance
from interkd.pipeline.cache.plan import PartPlan
from interkd.pipeline.cache.reader import TeacherStore
from interkd.pipeline.cache.versions import layout_of
from interkd.pipeline.cache.writer import StoreWriter

CHUNK = 1 << 16
ZARRS = "zarrs.ZarrsCodecPipeline"


class PlainZarr:
    """The columns of a store as three Zarr arrays, sliced utterance by utterance."""

    def __init__(self, store: TeacherStore, folder: Path, *, pipeline: str | None) -> None:
        self.fingerprint = store.fingerprint
        self.layout = layout_of(store.fingerprint)
        parts = [store.read_part(index) for index in range(store.part_count)]
        columns = {
            name: np.concatenate([part.payload[name] for part in parts])
            for name in parts[0].payload
        }
        self.bounds: dict[str, tuple[int, int, int, int]] = {}
        frames = entries = 0
        for part in parts:
            for row, utt_id in enumerate(part.utt_ids):
                t0, t1, e0, e1 = part.bounds(row)
                self.bounds[utt_id] = (frames + t0, frames + t1, entries + e0, entries + e1)
            frames, entries = frames + part.frames, entries + part.entries
        if pipeline is not None:
            zarr.config.set({"codec_pipeline.path": pipeline})
        group = zarr.open_group(folder, mode="w")
        for name, column in columns.items():
            array = group.create_array(
                name,
                shape=column.shape,
                dtype=column.dtype,
                chunks=(CHUNK,),
                shards=(-(-len(column) // CHUNK) * CHUNK,),
                compressors=[ZstdCodec(level=3)],
            )
            array[...] = column
        self.arrays = {name: zarr.open_array(folder / name, mode="r") for name in columns}

    def targets(self, utt_ids: Sequence[str]) -> object:
        pieces: dict[str, list[Any]] = {name: [] for name in self.arrays}
        for utt_id in utt_ids:
            t0, t1, e0, e1 = self.bounds[utt_id]
            for name, array in self.arrays.items():
                first, last = (t0, t1) if name == self.layout.frame_column else (e0, e1)
                pieces[name].append(array[first:last])
        columns = {name: np.concatenate(values) for name, values in pieces.items()}
        return self.layout.expand(columns, self.fingerprint)


def milliseconds(
    ways: dict[str, Callable[[Sequence[str]], object]], batches: list[list[str]]
) -> dict[str, float]:
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for number, batch in enumerate(batches):
        for way, targets in ways.items():
            start = time.perf_counter()
            targets(batch)
            if number >= 3:  # the first ones warm up
                taken[way].append(1000 * (time.perf_counter() - start))
    return {way: statistics.median(values) for way, values in taken.items()}


def opening(store: TeacherStore, folder: Path, parts: int = 1000, rows: int = 325) -> float:
    """Seconds to open a store of so many parts and utterances."""
    ids = [f"utterance-{i:07d}" for i in range(parts * rows)]
    hashes = [hashlib.md5(utt_id.encode()).hexdigest() for utt_id in ids]
    plan = PartPlan(
        utt_ids=tuple(ids),
        audio_hashes=tuple(hashes),
        parts=tuple(range(i * rows, (i + 1) * rows) for i in range(parts)),
    )
    writer = StoreWriter.open(folder, store.fingerprint, plan)
    code = np.full(20, 1, layout_of(store.fingerprint).payload_specs(store.fingerprint)[0].dtype)
    none = code[:0]
    frame = EncodedUtterance(
        utt_id="", audio_hash="", blank=code, tokens=none, fractions=none, samples=6400
    )
    for index, positions in enumerate(plan.parts):
        writer.write_part(
            index, [replace(frame, utt_id=ids[i], audio_hash=hashes[i]) for i in positions]
        )
    writer.finish({})
    start = time.perf_counter()
    opened = TeacherStore.open(folder)
    seconds = time.perf_counter() - start
    files = sum(1 for _ in folder.iterdir())
    print(f"opening {parts} parts, {len(opened.utterance_ids):,} utterances: {seconds:.2f} s, ")
    print(f"{files} files; loading every part: ", end="")
    start = time.perf_counter()
    opened.load()
    print(f"{time.perf_counter() - start:.1f} s")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    store = TeacherStore.open(arguments.store)
    start = time.perf_counter()
    store.load()
    load_seconds = time.perf_counter() - start
    cold = TeacherStore.open(arguments.store, memory_gb=0)
    generator = np.random.default_rng(0)
    batches = [
        generator.choice(store.utterance_ids, arguments.batch, replace=False).tolist()
        for _ in range(arguments.batches)
    ]
    ways: dict[str, Callable[[Sequence[str]], object]] = {
        "TeacherStore": store.targets,
        "TeacherStore, cold parts": cold.targets,
    }
    with tempfile.TemporaryDirectory() as folder:
        plain = PlainZarr(store, Path(folder, "plain"), pipeline=None)
        ways["zarr-python"] = plain.targets
        results = milliseconds(ways, batches)
        if find_spec("zarrs"):
            fast = PlainZarr(store, Path(folder, "zarrs"), pipeline=ZARRS)
            results |= milliseconds({"zarr-python with zarrs": fast.targets}, batches)
        frames = float(np.mean([sum(map(store.frame_count, batch)) for batch in batches]))
        print(f"{arguments.batch} utterances, {frames:,.0f} frames a batch")
        for way, value in results.items():
            print(f"{way:26}{value:9.2f} ms  {value / results['TeacherStore']:8.1f} x")
        megabytes = store.held_bytes / 1e6
        print(f"{store.part_count} parts loaded in {load_seconds:.2f} s, {megabytes:.1f} MB")
        open_seconds = opening(store, Path(folder, "many"))
    if arguments.json:
        record = {
            "milliseconds": results,
            "frames": frames,
            "load_seconds": load_seconds,
            "held_mb": megabytes,
            "open_1000_parts_seconds": open_seconds,
        }
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
