"""Damage of every kind: each is named by the reader and by verify, none is ever read as data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr

from interkd.kernels.errors import CorruptStoreError, StoreError
from interkd.kernels.sparse import SparsePosteriors
from interkd.pipeline.cache.format import INDEX_COLUMNS, Array
from interkd.pipeline.cache.inspect import decode_store, info
from interkd.pipeline.cache.metadata import read_metadata
from interkd.pipeline.cache.part import Problem, column_specs
from interkd.pipeline.cache.reader import TeacherStore
from interkd.pipeline.cache.verify import verify

if TYPE_CHECKING:
    from tests.pipeline.cache.conftest import StoreMaker

Flip = Callable[[Path, int, int], None]
PART_COLUMNS = (
    "entries_per_frame",
    "token",
    "log_prob",
    "utterance_id",
    "audio_hash",
    "frame_offset",
    "entry_offset",
    "samples",
    "digest",
)


def read_all(path: Path) -> SparsePosteriors:
    store = TeacherStore.open(path)
    return store.targets(store.utterance_ids)


def chunk_file(column: Path) -> Path:
    (file,) = [p for p in (column / "c").rglob("*") if p.is_file()]
    return file


def only_problem(path: Path) -> Problem:
    (problem,) = verify(path).problems
    return problem


def rewrite(path: Path, change: Callable[[Array], Array]) -> None:
    """Changes values through zarr, so that every checksum of the chunk is right again."""
    array = zarr.open_array(path, mode="r+")
    array[...] = change(np.asarray(array[...]))


def test_these_are_all_the_columns(maker: StoreMaker) -> None:
    assert tuple(spec.name for spec in column_specs(maker.fingerprint())) == PART_COLUMNS


@pytest.mark.parametrize("column", PART_COLUMNS)
@pytest.mark.parametrize("mask", [0x01, 0xFF])
def test_a_flipped_byte_of_a_chunk(store: Path, column: str, mask: int, flip: Flip) -> None:
    file = chunk_file(store / "part-00001" / column)
    size = file.stat().st_size
    for position in (0, size // 2, size - 1):
        flip(file, position, mask)
        with pytest.raises(CorruptStoreError, match=f"part-00001, column '{column}'"):
            read_all(store)
        problem = only_problem(store)
        assert (problem.where, problem.column) == ("part-00001", column)
        flip(file, position, mask)
    assert verify(store).problems == ()


@pytest.mark.parametrize("column", [spec.name for spec in INDEX_COLUMNS])
def test_a_flipped_byte_of_the_index(store: Path, column: str, flip: Flip) -> None:
    flip(chunk_file(store / "index" / column), -6, 0x10)
    with pytest.raises(CorruptStoreError, match=f"index, column '{column}'.*folder 'index'"):
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


@pytest.mark.parametrize("group", ["index", "part-00000"])
def test_a_flipped_bit_of_other_metadata(store: Path, group: str, flip: Flip) -> None:
    expected = read_all(store)
    generator = np.random.default_rng(0)
    messages = []
    for file in sorted((store / group).rglob("zarr.json")):
        for position in generator.integers(file.stat().st_size, size=6).tolist():
            mask = 1 << int(generator.integers(8))
            flip(file, position, mask)
            try:
                found = read_all(store)
                assert found.tokens.equal(expected.tokens)
                assert found.log_probs.equal(expected.log_probs)
            except StoreError as error:
                messages.append(str(error))
            flip(file, position, mask)
    assert len(messages) > 8
    assert all(group in message for message in messages)


@pytest.mark.parametrize("size", [0, 1, 40])
@pytest.mark.parametrize(
    "name",
    [
        "zarr.json",
        "part-00000/zarr.json",
        "part-00000/token/zarr.json",
        "part-00000/token/c/0",
        "index/part/c/0",
    ],
)
def test_a_truncated_file(store: Path, name: str, size: int) -> None:
    file = store / name
    file.write_bytes(file.read_bytes()[: min(size, file.stat().st_size - 1)])
    with pytest.raises(CorruptStoreError):
        read_all(store)


@pytest.mark.parametrize(
    "name",
    [
        "zarr.json",
        "part-00000/zarr.json",
        "part-00000/token/zarr.json",
        "part-00000/token/c/0",
        "index/part/c/0",
        "part-00000/samples",
        "index",
    ],
)
def test_a_missing_file(store: Path, name: str) -> None:
    path = store / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises(StoreError) as raised:
        read_all(store)
    assert name.split("/")[0] in str(raised.value)


def test_a_missing_part(store: Path) -> None:
    shutil.rmtree(store / "part-00001")
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
    shutil.rmtree(store / "part-00000")
    shutil.copytree(other / "part-00000", store / "part-00000")
    with pytest.raises(CorruptStoreError, match=f"not this store's part 0: {key}; expected"):
        read_all(store)
    assert f"{key}; expected" in verify(store).problems[0].what


def test_a_part_in_anothers_place(store: Path) -> None:
    shutil.rmtree(store / "part-00000")
    shutil.copytree(store / "part-00001", store / "part-00000")
    with pytest.raises(CorruptStoreError, match="part 0: part; expected 0; got 1"):
        read_all(store)
    assert [p.where for p in verify(store).problems] == ["part-00000", "part-00000"]


def test_the_index_of_another_store(store: Path, tmp_path: Path, maker: StoreMaker) -> None:
    fingerprint = maker.fingerprint()
    utterances = maker.utterances(fingerprint, [3, 4, 5])
    other = maker.write(tmp_path / "other", utterances, fingerprint, parts=2)
    shutil.rmtree(store / "index")
    shutil.copytree(other / "index", store / "index")
    with pytest.raises(CorruptStoreError, match="index is not that of this store"):
        TeacherStore.open(store)


@pytest.mark.parametrize("column", ["token", "log_prob", "samples", "audio_hash", "digest"])
def test_values_changed_behind_right_checksums(store: Path, column: str) -> None:
    def change(values: Array) -> Array:
        values.reshape(-1)[-1] ^= 1
        return values

    rewrite(store / "part-00000" / column, change)
    with pytest.raises(CorruptStoreError, match=r"part-00000, utterance 'utterance-2': its digest"):
        read_all(store)
    problems = verify(store).problems
    assert all(p.where == "part-00000" for p in problems)
    assert "utterance-2" in {p.utt_id for p in problems}


@pytest.mark.parametrize("column", ["frame_offset", "entry_offset", "entries_per_frame"])
def test_offsets_changed_behind_right_checksums(store: Path, column: str) -> None:
    def change(values: Array) -> Array:
        values[1] += 1
        return values

    rewrite(store / "part-00000" / column, change)
    with pytest.raises(CorruptStoreError, match="part-00000, column '"):
        read_all(store)
    assert verify(store).problems[0].where == "part-00000"


def test_verify_collects_every_problem(store: Path, flip: Flip) -> None:
    flip(chunk_file(store / "part-00000" / "token"), -1, 1)
    flip(chunk_file(store / "part-00000" / "digest"), -1, 1)
    flip(chunk_file(store / "part-00001" / "samples"), -1, 1)
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
        fingerprint["format_version"] = 2

    edit_root(store, change)
    for use in (TeacherStore.open, verify, info, lambda path: next(decode_store(path))):
        with pytest.raises(StoreError, match=r"format version of .* expected 1, got 2; read it"):
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
