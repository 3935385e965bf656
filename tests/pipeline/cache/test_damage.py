"""Damage of every kind: each is named by the reader and by verify, none is ever read as data."""

from __future__ import annotations

import json
import shutil
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from interkd.kernels.errors import CorruptStoreError, StoreError
from interkd.kernels.sparse import SparsePosteriors
from interkd.pipeline.cache.format import INDEX_COLUMNS, Array
from interkd.pipeline.cache.index import StoreIndex, read_index
from interkd.pipeline.cache.inspect import decode_store, info
from interkd.pipeline.cache.metadata import read_metadata
from interkd.pipeline.cache.part import Part, Problem, column_specs
from interkd.pipeline.cache.reader import TeacherStore
from interkd.pipeline.cache.verify import verify, verify_part

if TYPE_CHECKING:
    from tests.pipeline.cache.conftest import Archive, StoreMaker

Flip = Callable[[Path, int, int], None]
PART_COLUMNS = (
    "blank",
    "token",
    "fraction",
    "utterance_id",
    "audio_hash",
    "frame_offset",
    "entry_offset",
    "samples",
    "digest",
)


def chunk_of(column: str) -> str:
    return f"{column}/c/0/0" if column == "audio_hash" else f"{column}/c/0"


def read_all(path: Path) -> SparsePosteriors:
    store = TeacherStore.open(path)
    return store.targets(store.utterance_ids)


def only_problem(path: Path) -> Problem:
    (problem,) = verify(path).problems
    return problem


def test_these_are_all_the_columns(maker: StoreMaker) -> None:
    assert tuple(spec.name for spec in column_specs(maker.fingerprint())) == PART_COLUMNS


@pytest.mark.parametrize("column", PART_COLUMNS)
@pytest.mark.parametrize("mask", [0x01, 0xFF])
def test_a_flipped_byte_of_a_chunk(
    store: Path, column: str, mask: int, archive: type[Archive]
) -> None:
    part = archive(store / "part-00001.zip")
    _, size = part.span(chunk_of(column))
    for position in (0, size // 2, size - 1):
        part.flip(chunk_of(column), position, mask)
        with pytest.raises(CorruptStoreError, match=f"part-00001, column '{column}'"):
            read_all(store)
        problem = only_problem(store)
        assert (problem.where, problem.column) == ("part-00001", column)
        assert "with it 3 utterances, 'utterance-3' to 'utterance-5'" in problem.what
        part.flip(chunk_of(column), position, mask)
    assert verify(store).problems == ()


@pytest.mark.parametrize("column", [spec.name for spec in INDEX_COLUMNS[2]])
def test_a_flipped_byte_of_the_index(store: Path, column: str, archive: type[Archive]) -> None:
    archive(store / "index.zip").flip(chunk_of(column), -6, 0x10)
    with pytest.raises(CorruptStoreError, match=f"index, column '{column}'.*the store's index"):
        TeacherStore.open(store)
    problem = only_problem(store)
    assert problem.where == "index"
    assert f"column '{column}'" in problem.what


def test_a_flipped_bit_of_the_roots_metadata(store: Path, flip: Flip) -> None:
    file = store / "zarr.json"
    expected = read_metadata(store)
    refused = 0
    for position in range(file.stat().st_size):
        mask = 1 << (position * 3 % 8)
        flip(file, position, mask)
        try:
            assert read_metadata(store) == expected
        except StoreError:
            refused += 1
        flip(file, position, mask)
    assert refused > 0.8 * file.stat().st_size


@pytest.mark.parametrize("size", [0, 1, 40, 1000])
@pytest.mark.parametrize("name", ["zarr.json", "part-00000.zip", "index.zip"])
def test_a_truncated_file(store: Path, name: str, size: int) -> None:
    file = store / name
    file.write_bytes(file.read_bytes()[: min(size, file.stat().st_size - 1)])
    with pytest.raises(CorruptStoreError) as raised:
        read_all(store)
    assert name.removesuffix(".zip") in str(raised.value)


@pytest.mark.parametrize(
    ("file", "member"),
    [
        ("part-00000.zip", "zarr.json"),
        ("part-00000.zip", "token/zarr.json"),
        ("part-00000.zip", "token/c/0"),
        ("part-00000.zip", "samples/zarr.json"),
        ("index.zip", "part/c/0"),
        ("index.zip", "zarr.json"),
    ],
)
def test_a_missing_member(store: Path, file: str, member: str, archive: type[Archive]) -> None:
    archive(store / file).edit(**{member.replace("/", "__"): lambda _: None})
    with pytest.raises(CorruptStoreError) as raised:
        read_all(store)
    assert file.removesuffix(".zip") in str(raised.value)
    assert "missing" in str(raised.value)


@pytest.mark.parametrize("name", ["zarr.json", "index.zip", "part-00000.zip"])
def test_a_missing_file(store: Path, name: str) -> None:
    (store / name).unlink()
    with pytest.raises(StoreError) as raised:
        read_all(store)
    assert name.removesuffix(".zip") in str(raised.value)


def test_a_missing_part(store: Path) -> None:
    (store / "part-00001.zip").unlink()
    with pytest.raises(StoreError, match=r"expected 2 parts, got 1 missing \(part-00001\)"):
        TeacherStore.open(store)
    assert str(only_problem(store)) == "part-00001: the part is missing"


@pytest.mark.parametrize(
    ("changes", "seed", "key"),
    [({"weights_sha256": "cd" * 32}, 0, "fingerprint"), ({}, 1, "plan")],
)
def test_a_part_of_another_store(
    store: Path, tmp_path: Path, maker: StoreMaker, changes: dict[str, Any], seed: int, key: str
) -> None:
    fingerprint = maker.fingerprint(**changes)
    utterances = maker.utterances(fingerprint, [20, 0, 35, 1, 12, 30][: 6 - seed], seed=seed)
    other = maker.write(tmp_path / "other", utterances, fingerprint, parts=2)
    shutil.copy(other / "part-00000.zip", store / "part-00000.zip")
    with pytest.raises(CorruptStoreError, match=f"not this store's part 0: {key}; expected"):
        read_all(store)
    assert f"{key}; expected" in verify(store).problems[0].what


def test_a_part_in_anothers_place(store: Path) -> None:
    shutil.copy(store / "part-00001.zip", store / "part-00000.zip")
    with pytest.raises(CorruptStoreError, match="part 0: part; expected 0; got 1"):
        read_all(store)
    assert {p.where for p in verify(store).problems} == {"part-00000"}


def test_the_index_of_another_store(store: Path, tmp_path: Path, maker: StoreMaker) -> None:
    fingerprint = maker.fingerprint()
    other = maker.write(
        tmp_path / "other", maker.utterances(fingerprint, [3, 4, 5]), fingerprint, parts=2
    )
    shutil.copy(other / "index.zip", store / "index.zip")
    with pytest.raises(CorruptStoreError, match="index is not that of this store"):
        TeacherStore.open(store)


def test_an_index_older_than_its_part(store: Path, tmp_path: Path, maker: StoreMaker) -> None:
    """The same utterances and settings, other posteriors: as a part made anew elsewhere."""
    fingerprint = maker.fingerprint()
    utterances = maker.utterances(fingerprint, [20, 0, 35, 1, 12, 30], seed=9)
    other = maker.write(tmp_path / "other", utterances, fingerprint, parts=2)
    shutil.copy(other / "part-00000.zip", store / "part-00000.zip")
    with pytest.raises(CorruptStoreError, match="the index is older than this part") as raised:
        read_all(store)
    assert "delete the store's index and run cache-teacher again" in str(raised.value)
    assert "older than this part" in only_problem(store).what


@pytest.mark.parametrize("column", ["blank", "token", "fraction", "samples", "audio_hash"])
def test_values_changed_behind_right_checksums(
    store: Path, column: str, archive: type[Archive]
) -> None:
    def change(values: Array) -> Array:
        values.reshape(-1)[-1] ^= 1
        return values

    archive(store / "part-00000.zip").rewrite(column, change)
    with pytest.raises(CorruptStoreError, match=r"part-00000, utterance 'utterance-2': its digest"):
        read_all(store)
    problems = verify(store).problems
    assert all(p.where == "part-00000" for p in problems)
    assert "utterance-2" in {p.utt_id for p in problems}


@pytest.mark.parametrize("column", ["blank", "fraction", "token"])
def test_codes_past_the_tables(store: Path, column: str, archive: type[Archive]) -> None:
    """Right checksums, digests right too: a table would be read past its end."""

    def change(values: Array) -> Array:
        values[-1] = 255
        return values

    archive(store / "part-00000.zip").rewrite(column, change)
    with pytest.raises(CorruptStoreError, match=f"column '{column}', utterance 'utterance-2'.*255"):
        read_all(store)


@pytest.mark.parametrize("column", ["frame_offset", "entry_offset"])
def test_offsets_changed_behind_right_checksums(
    store: Path, column: str, archive: type[Archive]
) -> None:
    def change(values: Array) -> Array:
        values[1] += 1
        return values

    archive(store / "part-00000.zip").rewrite(column, change)
    with pytest.raises(CorruptStoreError, match="part-00000, column '"):
        read_all(store)
    assert verify(store).problems[0].where == "part-00000"


def test_continuation_bits_changed_behind_right_checksums(
    store: Path, archive: type[Archive]
) -> None:
    def change(values: Array) -> Array:
        values[0] ^= 32
        return values

    archive(store / "part-00000.zip").rewrite("blank", change)
    with pytest.raises(CorruptStoreError, match="part-00000, column 'blank', utterance"):
        read_all(store)


def test_verify_collects_every_problem(store: Path, archive: type[Archive]) -> None:
    first, second = archive(store / "part-00000.zip"), archive(store / "part-00001.zip")
    first.flip("token/c/0", -1, 1)
    first.flip("digest/c/0", -1, 1)
    second.flip("samples/c/0", -1, 1)
    seen: list[tuple[int, int]] = []
    report = verify(store, progress=lambda done, parts: seen.append((done, parts)))
    assert seen == [(1, 2), (2, 2)]
    assert [(p.where, p.column) for p in report.problems] == [
        ("part-00000", "token"),
        ("part-00000", "digest"),
        ("part-00001", "samples"),
    ]


def edit_root(store: Path, change: Callable[[dict[str, object]], None]) -> None:
    group = json.loads((store / "zarr.json").read_text())
    change(group["attributes"])
    (store / "zarr.json").write_text(json.dumps(group))


def test_an_unknown_version(store: Path) -> None:
    def change(attributes: dict[str, object]) -> None:
        fingerprint = attributes["fingerprint"]
        assert isinstance(fingerprint, dict)
        fingerprint["format_version"] = 3

    edit_root(store, change)
    for use in (TeacherStore.open, verify, info, lambda path: next(decode_store(path))):
        with pytest.raises(StoreError, match=r"format version of .* expected 1 or 2, got 3; read"):
            use(store)


def test_another_summary_is_not_what_was_written(store: Path) -> None:
    edit_root(store, lambda attributes: attributes.update(summary={"teacher_wer": 1.0}))
    with pytest.raises(CorruptStoreError, match="not what was written"):
        TeacherStore.open(store)


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no teacher cache at"):
        TeacherStore.open(tmp_path / "nothing")
    with pytest.raises(StoreError, match="holds no teacher cache"):
        TeacherStore.open(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="is not a folder"):
        TeacherStore.open(tmp_path / "file")


def test_flipped_bits_anywhere(store: Path, archive: type[Archive]) -> None:
    """Random bits of the parts' and the index's files: detected, or nothing that is read changes.

    Reader and verify agree on every one of them. A flip within a column's chunk is named with part
    and column, and verify says which utterances are lost; whatever the flip, the error is ours.
    """
    tries = 4_000
    generator = np.random.default_rng(tries)
    opened = TeacherStore.open(store)
    metadata, index = opened.metadata, opened.index
    names = ["part-00000.zip", "part-00001.zip", "index.zip"]
    originals = {name: (store / name).read_bytes() for name in names}
    expected = [opened.read_part(i) for i in range(2)]
    chunks = {}
    for name in names:
        file = archive(store / name)
        chunks[name] = [(*file.span(m), m.split("/")[0]) for m in file.names() if "/c/" in m]
    harmless = 0
    for _ in range(tries):
        number = int(generator.integers(len(names)))
        name = names[number]
        content = bytearray(originals[name])
        position = int(generator.integers(len(content)))
        content[position] ^= 1 << int(generator.integers(8))
        (store / name).write_bytes(content)
        inside = [c for start, size, c in chunks[name] if start <= position < start + size]
        problems = verify_part(store, number, metadata, index).problems if number < 2 else ()
        try:
            if number < 2:
                assert_same_part(opened.read_part(number), expected[number])
            else:
                assert_same_index(read_index(store, metadata), index)
        except CorruptStoreError as error:
            message = str(error)
            assert name.removesuffix(".zip") in message
            assert number == 2 or problems
            if inside:
                assert f"column '{inside[0]}'" in message
                assert all(p.column == inside[0] for p in problems)
            if inside and number < 2:
                assert f"with it {index.span_of(number)}" in problems[0].what
        else:
            assert not inside
            assert problems == ()
            harmless += 1
        finally:
            (store / name).write_bytes(originals[name])
    assert 0 < harmless < tries / 4  # names, dates and attributes that the ZIP keeps twice
    assert verify(store).problems == ()


def assert_same_part(found: Part, expected: Part) -> None:
    assert found.utt_ids == expected.utt_ids
    for name, column in expected.payload.items():
        assert found.payload[name].tobytes() == column.tobytes()
    for name in ("audio_hashes", "frame_offsets", "entry_offsets", "samples", "digests"):
        assert getattr(found, name).tobytes() == getattr(expected, name).tobytes()


def assert_same_index(found: StoreIndex, expected: StoreIndex) -> None:
    assert found.utt_ids == expected.utt_ids
    for name in ("audio_hashes", "parts", "rows", "frames", "part_digests"):
        assert getattr(found, name).tobytes() == getattr(expected, name).tobytes()


def test_flips_of_the_metadata_take_no_memory(store: Path, archive: type[Archive]) -> None:
    """Bytes all over a column's zarr.json, one bit each: shapes and lengths among them."""
    part = archive(store / "part-00000.zip")
    with zipfile.ZipFile(part.path) as opened:
        content = opened.read("token/zarr.json")
    expected = TeacherStore.open(store).read_part(0)
    tracemalloc.start()
    try:
        for position in range(0, len(content), 5):
            flipped = bytearray(content)
            flipped[position] ^= 1 << position * 3 % 8
            part.edit(**{"token__zarr.json": lambda _, changed=bytes(flipped): changed})
            try:
                assert_same_part(TeacherStore.open(store).read_part(0), expected)
            except CorruptStoreError as error:
                message = str(error)
                assert "part-00000, column 'token'" in message
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
