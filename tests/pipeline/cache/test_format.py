"""The format itself: a store of version 1 as it was first written, read by two readers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
import zarr

from interkd.pipeline.cache.codec import QUANTISERS
from interkd.pipeline.cache.format import token_dtype
from interkd.pipeline.cache.inspect import decode_store
from interkd.pipeline.cache.reader import TeacherStore
from interkd.pipeline.cache.verify import verify
from interkd.pipeline.cache.writer import PartPlan, StoreWriter

GOLDEN = Path(__file__).parents[2] / "golden" / "teacher-cache-v1"
IDS = ("utt-1", "utt-ü-2", "utt-3")
HASHES = (
    "0123456789abcdef0123456789abcdef",
    "02468acf13579bde02468acf13579bde",
    "0369d0369d0369cd0369d0369d0369cd",
)
CODES = [255, 0, 7, 3, 160, 20, 90, 100, 110]


def test_the_golden_store_is_whole() -> None:
    report = verify(GOLDEN)
    assert report.problems == ()
    assert (report.parts, report.utterances, report.frames, report.entries) == (2, 3, 5, 9)


def test_the_golden_store_gives_its_values() -> None:
    store = TeacherStore.open(GOLDEN)
    assert store.utterance_ids == IDS
    assert tuple(store.audio_hash(utt_id) for utt_id in IDS) == HASHES
    assert store.summary == {"teacher_wer": 25.0}
    assert str(store.fingerprint.frame_formula) == "400,160,200/3,2,1"
    targets = store.targets(["utt-3", "utt-ü-2", "utt-1"])
    assert targets.frame_offsets.tolist() == [0, 2, 2, 5]
    assert targets.entry_offsets.tolist() == [0, 2, 3, 4, 6, 9]
    assert targets.tokens.tolist() == [0, 1, 0, 0, 0, 2, 0, 3, 4]
    expected = [-16.0 * (code / 255) ** 3 for code in CODES]
    np.testing.assert_array_equal(targets.log_probs.numpy(), np.array(expected, np.float32))
    assert list(decode_store(GOLDEN)) == [("utt-1", [2]), ("utt-ü-2", []), ("utt-3", [1])]


def test_digests_are_pinned() -> None:
    store = TeacherStore.open(GOLDEN)
    assert store.fingerprint.digest == "93dbf3d51ad6062741b27c12faeaf5dc"
    assert store.metadata.plan_digest == "4e5a3d3ae9243dd6c434e139f5a7b16e"
    digests = [store.read_part(index).digests.tolist() for index in (0, 1)]
    assert digests == [
        [9216287751404440525, 11364031473685273443],
        [11144928505632395674],
    ]


def test_the_golden_store_can_be_resumed(tmp_path: Path) -> None:
    path = Path(shutil.copytree(GOLDEN, tmp_path / "store"))
    plan = PartPlan(utt_ids=IDS, audio_hashes=HASHES, parts=(range(2), range(2, 3)))
    writer = StoreWriter.open(path, TeacherStore.open(path).fingerprint, plan)
    assert writer.missing_parts() == []
    assert writer.part_attributes() == [{"teacher_words": [1, 4]}, {}]


def canonical(values: Any) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()


def without(values: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in values.items() if k != key}


def test_a_reader_written_from_the_page_alone() -> None:
    root = json.loads((GOLDEN / "zarr.json").read_text())["attributes"]
    assert root["checksum"] == xxhash.xxh3_64_hexdigest(canonical(without(root, "checksum")))
    fingerprint = xxhash.xxh3_128_hexdigest(canonical(without(root["fingerprint"], "teacher")))

    columns: dict[str, list[np.ndarray]] = {"audio_hash": [], "utterance_id": []}
    sizes = []
    for index in range(root["plan"]["parts"]):
        group = zarr.open_group(GOLDEN / f"part-{index:05d}", mode="r")
        attributes = group.attrs.asdict()
        assert attributes["part"] == index
        assert attributes["fingerprint"] == fingerprint
        assert attributes["plan"] == root["plan"]["digest"]
        part = {name: np.asarray(array[...]) for name, array in group.arrays()}
        ids = part["utterance_id"].tobytes().split(b"\n")
        for u, utt_id in enumerate(ids):
            frames = slice(*part["frame_offset"][u : u + 2].tolist())
            entries = slice(*part["entry_offset"][u : u + 2].tolist())
            counts = [frames.stop - frames.start, entries.stop - entries.start]
            content = (
                len(utt_id).to_bytes(8, "little")
                + utt_id
                + part["audio_hash"][u].tobytes()
                + np.array([part["samples"][u], *counts], "<i8").tobytes()
                + part["entries_per_frame"][frames].tobytes()
                + part["token"][entries].tobytes()
                + part["log_prob"][entries].tobytes()
            )
            assert xxhash.xxh3_64_intdigest(content) == part["digest"][u]
        sizes.append(len(ids))
        for name, values in columns.items():
            values.append(part[name])
    plan = (
        np.array([len(sizes), *sizes], "<u8").tobytes()
        + b"\n".join(ids.tobytes() for ids in columns["utterance_id"])
        + b"".join(hashes.tobytes() for hashes in columns["audio_hash"])
    )
    assert xxhash.xxh3_128_hexdigest(plan) == root["plan"]["digest"]


def test_every_array_is_one_chunk_with_these_codecs() -> None:
    for file in GOLDEN.glob("*/*/zarr.json"):
        array = json.loads(file.read_text())
        chunk_shape = array["chunk_grid"]["configuration"]["chunk_shape"]
        assert chunk_shape == [max(1, size) for size in array["shape"]]
        assert [codec["name"] for codec in array["codecs"]] == ["bytes", "zstd", "crc32c"]
        chunks = [p for p in file.parent.rglob("*") if p.is_file() and p != file]
        assert len(chunks) == 1


@pytest.mark.parametrize(
    ("vocab_size", "name"),
    [(2, "|u1"), (256, "|u1"), (257, "<u2"), (65_536, "<u2"), (65_537, "<u4"), (70_000, "<u4")],
)
def test_tokens_take_the_smallest_dtype(vocab_size: int, name: str) -> None:
    dtype = token_dtype(vocab_size)
    assert dtype.str == name
    assert np.iinfo(dtype.name).max >= vocab_size - 1


def test_codes_are_little_endian() -> None:
    assert {name: q.code_dtype.str for name, q in QUANTISERS.items()} == {
        "log8": "|u1",
        "float16": "<f2",
    }
