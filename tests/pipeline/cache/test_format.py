"""The format itself: a store of each version as it was first written, read by two readers."""

from __future__ import annotations

import json
import math
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
import zarr
from zarr.storage import ZipStore

from interkd.kernels.errors import StoreError
from interkd.pipeline.cache.codec import QUANTISERS
from interkd.pipeline.cache.format import FORMAT_VERSION, QUANTISER_NAMES, token_dtype
from interkd.pipeline.cache.inspect import decode_store
from interkd.pipeline.cache.reader import TeacherStore
from interkd.pipeline.cache.verify import verify
from interkd.pipeline.cache.writer import PartPlan, StoreWriter

GOLDEN = Path(__file__).parents[2] / "golden"
V1, V2 = GOLDEN / "teacher-cache-v1", GOLDEN / "teacher-cache-v2"
IDS = ("utt-1", "utt-ü-2", "utt-3")
HASHES = (
    "0123456789abcdef0123456789abcdef",
    "02468acf13579bde02468acf13579bde",
    "0369d0369d0369cd0369d0369d0369cd",
)
V1_CODES = [0, 255, 7, 3, 20, 160, 90, 100, 110]  # the most probable of a frame first


@pytest.mark.parametrize(("path", "entries"), [(V1, 9), (V2, 4)])
def test_the_golden_stores_are_whole(path: Path, entries: int) -> None:
    report = verify(path)
    assert report.problems == ()
    assert (report.parts, report.utterances, report.frames) == (2, 3, 5)
    assert report.entries == entries


@pytest.mark.parametrize("path", [V1, V2])
def test_what_the_golden_stores_say(path: Path) -> None:
    store = TeacherStore.open(path)
    assert store.utterance_ids == IDS
    assert tuple(store.audio_hash(utt_id) for utt_id in IDS) == HASHES
    assert [store.frame_count(utt_id) for utt_id in IDS] == [3, 0, 2]
    assert store.summary == {"teacher_wer": 25.0}
    assert str(store.fingerprint.frame_formula) == "400,160,200/3,2,1"


def test_the_values_of_version_1() -> None:
    store = TeacherStore.open(V1)
    targets = store.targets(["utt-3", "utt-ü-2", "utt-1"])
    assert targets.frame_offsets.tolist() == [0, 2, 2, 5]
    assert targets.entry_offsets.tolist() == [0, 2, 3, 4, 6, 9]
    assert targets.tokens.tolist() == [1, 0, 0, 0, 2, 0, 0, 3, 4]
    expected = [-16.0 * (code / 255) ** 3 for code in V1_CODES]
    np.testing.assert_array_equal(targets.log_probs.numpy(), np.array(expected, np.float32))
    assert list(decode_store(V1)) == [("utt-1", [2]), ("utt-ü-2", []), ("utt-3", [1])]
    assert list(TeacherStore.open(V1).read_part(0).digests) == [
        9216287751404440525,
        11364031473685273443,
    ]
    assert store.fingerprint.digest == "93dbf3d51ad6062741b27c12faeaf5dc"
    assert store.metadata.plan_digest == "4e5a3d3ae9243dd6c434e139f5a7b16e"


def test_the_values_of_version_2() -> None:
    targets = TeacherStore.open(V2).targets(["utt-3", "utt-ü-2", "utt-1"])
    assert targets.frame_offsets.tolist() == [0, 2, 2, 5]
    assert targets.entry_offsets.tolist() == [0, 2, 3, 4, 6, 9]
    assert targets.tokens.tolist() == [1, 0, 0, 0, 2, 0, 0, 3, 4]

    def value(code: int) -> float:
        return float(np.sin(np.pi / 2 * (code + 0.2) / 31.4) ** 2)

    def rest(*codes: int) -> float:
        return float(np.prod([1 - value(code) for code in codes]))

    expected = [rest(0) * value(31), value(0), value(30), value(31), rest(3) * value(28), value(3)]
    expected += [value(16), rest(16) * value(20), rest(16, 20) * value(7)]
    np.testing.assert_allclose(targets.log_probs.numpy(), np.log(expected), rtol=3e-7)
    assert list(decode_store(V2)) == [("utt-1", [2]), ("utt-ü-2", []), ("utt-3", [1])]


def test_digests_are_pinned() -> None:
    store = TeacherStore.open(V2)
    assert store.fingerprint.digest == "ffab89872527e511e06d16b44cee81f9"
    assert store.metadata.plan_digest == "4e5a3d3ae9243dd6c434e139f5a7b16e"
    digests = [store.read_part(index).digests.tolist() for index in (0, 1)]
    assert digests == [[2403423249556015625, 6608109624492071665], [12790226160631321002]]
    assert store.index.part_digests is not None
    assert store.index.part_digests.tolist() == [10820639142585586167, 1971951743667515410]


def test_a_golden_store_can_be_resumed(tmp_path: Path) -> None:
    path = Path(shutil.copytree(V2, tmp_path / "store"))
    plan = PartPlan(utt_ids=IDS, audio_hashes=HASHES, parts=(range(2), range(2, 3)))
    writer = StoreWriter.open(path, TeacherStore.open(path).fingerprint, plan)
    assert writer.missing_parts() == []
    assert writer.part_attributes() == [{"teacher_words": [1, 4]}, {}]


def test_version_1_is_read_and_not_written(tmp_path: Path) -> None:
    path = Path(shutil.copytree(V1, tmp_path / "store"))
    plan = PartPlan(utt_ids=IDS, audio_hashes=HASHES, parts=(range(2), range(2, 3)))
    fingerprint = TeacherStore.open(V2).fingerprint
    with pytest.raises(StoreError, match=r"expected 2, got 1; make it new with interkd cache"):
        StoreWriter.open(path, fingerprint, plan)


def canonical(values: Any) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()


def without(values: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in values.items() if k != key}


def test_a_reader_written_from_the_page_alone() -> None:
    """ZIP, Zarr, XXH3 and JSON libraries, and docs/cache-format.md: no line of ours."""
    root = json.loads((V2 / "zarr.json").read_text())["attributes"]
    assert root["checksum"] == xxhash.xxh3_64_hexdigest(canonical(without(root, "checksum")))
    fingerprint = xxhash.xxh3_128_hexdigest(canonical(without(root["fingerprint"], "teacher")))

    columns: dict[str, list[np.ndarray]] = {"audio_hash": [], "utterance_id": []}
    sizes, part_digests, frames_of, probs = [], [], [], []
    for index in range(root["plan"]["parts"]):
        group = zarr.open_group(ZipStore(V2 / f"part-{index:05d}.zip", mode="r"), mode="r")
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
            frames_of.append(counts[0])
            content = (
                len(utt_id).to_bytes(8, "little")
                + utt_id
                + part["audio_hash"][u].tobytes()
                + np.array([part["samples"][u], *counts], "<i8").tobytes()
                + part["blank"][frames].tobytes()
                + part["token"][entries].tobytes()
                + part["fraction"][entries].tobytes()
            )
            assert xxhash.xxh3_64_intdigest(content) == part["digest"][u]
        remaining = zip(part["token"].tolist(), part["fraction"].tolist(), strict=True)
        for code in part["blank"].tolist():
            frame = {0: math.sin(math.pi / 2 * (code % 32 + 0.2) / 31.4) ** 2}
            while code >= 32:
                token, code = next(remaining)
                share = math.sin(math.pi / 2 * (code % 32 + 0.2) / 31.4) ** 2
                frame[token] = share * (1 - sum(frame.values()))
            probs.append(frame)
        assert next(remaining, None) is None
        part_digests.append(xxhash.xxh3_64_intdigest(part["digest"].astype("<u8").tobytes()))
        sizes.append(len(ids))
        for name, values in columns.items():
            values.append(part[name])
    plan = (
        np.array([len(sizes), *sizes], "<u8").tobytes()
        + b"\n".join(ids.tobytes() for ids in columns["utterance_id"])
        + b"".join(hashes.tobytes() for hashes in columns["audio_hash"])
    )
    assert xxhash.xxh3_128_hexdigest(plan) == root["plan"]["digest"]
    index_group = zarr.open_group(ZipStore(V2 / "index.zip", mode="r"), mode="r")
    found = {name: np.asarray(array[...]) for name, array in index_group.arrays()}
    assert found["part_digest"].tolist() == part_digests
    assert found["frames"].tolist() == frames_of
    assert found["part"].tolist() == [0, 0, 1]

    targets = TeacherStore.open(V2).targets(IDS)
    bounds = targets.entry_offsets.tolist()
    for frame, first, last in zip(probs, bounds, bounds[1:], strict=False):
        tokens, kept = targets.tokens[first:last].tolist(), targets.log_probs[first:last].exp()
        ours = dict(zip(tokens, kept.tolist(), strict=True))
        assert ours == pytest.approx(frame, rel=1e-6)


def test_every_array_is_one_chunk_with_these_codecs() -> None:
    for path in V2.glob("*.zip"):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            assert names == sorted(names)
            for name in names:
                is_json = name.endswith("zarr.json")
                expected = zipfile.ZIP_DEFLATED if is_json else zipfile.ZIP_STORED
                assert archive.getinfo(name).compress_type == expected
                if not is_json or name == "zarr.json":
                    continue
                array = json.loads(archive.read(name))
                chunk_shape = array["chunk_grid"]["configuration"]["chunk_shape"]
                assert chunk_shape == [max(1, size) for size in array["shape"]]
                assert [codec["name"] for codec in array["codecs"]] == ["bytes", "zstd", "crc32c"]


@pytest.mark.parametrize(
    ("vocab_size", "name"),
    [(2, "|u1"), (256, "|u1"), (257, "<u2"), (65_536, "<u2"), (65_537, "<u4"), (70_000, "<u4")],
)
def test_tokens_take_the_smallest_dtype(vocab_size: int, name: str) -> None:
    dtype = token_dtype(vocab_size)
    assert dtype.str == name
    assert np.iinfo(dtype.name).max >= vocab_size - 1


def test_codes_are_little_endian() -> None:
    dtypes = {name: q.code_dtype.str for name, q in QUANTISERS.items()}
    assert dtypes == {"angle5": "|u1", "angle6": "|u1", "angle7": "|u1", "angle15": "<u2"}
    assert tuple(QUANTISERS) == QUANTISER_NAMES[FORMAT_VERSION]
