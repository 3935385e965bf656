from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from interkd.kernels.errors import CorruptStoreError, FingerprintError, StoreError
from interkd.pipeline.cache import writer
from interkd.pipeline.cache.fingerprint import Fingerprint
from interkd.pipeline.cache.reader import TeacherStore
from interkd.pipeline.cache.verify import verify
from interkd.pipeline.cache.writer import EncodedUtterance, PartPlan, StoreWriter

if TYPE_CHECKING:
    from tests.pipeline.cache.conftest import Archive, StoreMaker


def test_a_store_is_resumed_part_by_part(
    tmp_path: Path,
    fingerprint: Fingerprint,
    utterances: list[EncodedUtterance],
    plan: PartPlan,
) -> None:
    path = tmp_path / "deep" / "store"
    first = StoreWriter.open(path, fingerprint, plan)
    assert first.missing_parts() == [0, 1, 2]
    assert first.write_part(1, utterances[2:4], attributes={"words": [3, 40]})
    assert first.part_attributes() == [{"words": [3, 40]}]
    with pytest.raises(StoreError, match=r"facts of part 0; expected JSON values"):
        first.write_part(0, utterances[:2], attributes={"words": float("nan")})
    with pytest.raises(StoreError, match=r"2 missing, the first part-00000"):
        first.finish({})
    with pytest.raises(StoreError, match=r"2 missing \(part-00000, part-00002\)"):
        TeacherStore.open(path)

    second = StoreWriter.open(str(path), fingerprint, plan)
    assert second.missing_parts() == [0, 2]
    assert second.write_part(0, utterances[:2])
    assert second.write_part(2, utterances[4:])
    assert second.part_attributes() == [{}, {"words": [3, 40]}, {}]
    with pytest.raises(StoreError, match="is not finished"):
        TeacherStore.open(path)
    assert [p.where for p in verify(path).problems] == ["zarr.json", "index"]
    second.finish({"frames": 98})
    assert TeacherStore.open(path).summary == {"frames": 98}
    assert verify(path).problems == ()
    assert [p.name for p in path.iterdir() if p.name.startswith(".")] == []


def test_killed_before_the_summary_was_written(
    tmp_path: Path,
    maker: StoreMaker,
    fingerprint: Fingerprint,
    utterances: list[EncodedUtterance],
    plan: PartPlan,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = maker.write(tmp_path / "store", utterances, fingerprint, parts=3, finish=False)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "write_metadata", stop)
    with pytest.raises(KeyboardInterrupt):
        StoreWriter.open(path, fingerprint, plan).finish({"frames": 98})
    monkeypatch.undo()
    assert (path / "index.zip").exists()
    again = StoreWriter.open(path, fingerprint, plan)
    assert again.missing_parts() == []
    again.finish({"frames": 98})
    assert verify(path).problems == ()


def test_another_fingerprint_or_plan_is_refused(
    tmp_path: Path,
    maker: StoreMaker,
    fingerprint: Fingerprint,
    utterances: list[EncodedUtterance],
    plan: PartPlan,
) -> None:
    path = tmp_path / "store"
    StoreWriter.open(path, fingerprint, plan)
    StoreWriter.open(path, maker.fingerprint(teacher="the same, elsewhere"), plan)
    with pytest.raises(FingerprintError, match=r"mass differs; expected 0.99, got 0.5; write to"):
        StoreWriter.open(path, maker.fingerprint(mass=0.5), plan)
    with pytest.raises(
        StoreError, match=r"expected 6 utterances in 3 parts .* got 6 .* in 2 parts"
    ):
        StoreWriter.open(path, fingerprint, maker.plan(utterances, 2))


def test_a_path_that_cannot_become_a_store(
    tmp_path: Path, fingerprint: Fingerprint, plan: PartPlan
) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(StoreError, match="is not a folder"):
        StoreWriter.open(file, fingerprint, plan)
    with pytest.raises(StoreError, match="cannot write the teacher cache"):
        StoreWriter.open(file / "below", fingerprint, plan)
    with pytest.raises(StoreError, match=r"no teacher cache; .*first 'file'; choose another path"):
        StoreWriter.open(tmp_path, fingerprint, plan)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "zarr.json").write_text(
        '{"zarr_format": 3, "node_type": "group", "attributes": {}}'
    )
    with pytest.raises(StoreError, match="a Zarr group but no teacher cache"):
        StoreWriter.open(tmp_path / "other", fingerprint, plan)


def test_a_refusing_file_system_is_one_line(
    tmp_path: Path,
    fingerprint: Fingerprint,
    utterances: list[EncodedUtterance],
    plan: PartPlan,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = StoreWriter.open(tmp_path / "store", fingerprint, plan)

    def full(*_: object, **__: object) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "publish_file", full)
    with pytest.raises(StoreError, match="got No space left on device"):
        opened.write_part(0, utterances[:2])
    assert opened.missing_parts() == [0, 1, 2]
    assert [p.name for p in opened.path.iterdir()] == ["zarr.json"]


def test_a_disk_that_gives_back_other_bytes(
    tmp_path: Path,
    maker: StoreMaker,
    fingerprint: Fingerprint,
    utterances: list[EncodedUtterance],
    plan: PartPlan,
    archive: type[Archive],
) -> None:
    """Every part is read and checked before the store is declared finished."""
    path = maker.write(tmp_path / "store", utterances, fingerprint, parts=3, finish=False)
    archive(path / "part-00001.zip").flip("token/c/0", -5, 1)
    opened = StoreWriter.open(path, fingerprint, plan)
    with pytest.raises(CorruptStoreError, match=r"part-00001, column 'token'.*delete it and run"):
        opened.finish({})
    assert not opened.is_finished
    (path / "part-00001.zip").unlink()
    assert opened.missing_parts() == [1]
    assert opened.write_part(1, utterances[2:4])
    opened.finish({})
    assert verify(path).problems == ()


def test_only_what_was_planned_is_written(
    tmp_path: Path,
    fingerprint: Fingerprint,
    utterances: list[EncodedUtterance],
    plan: PartPlan,
) -> None:
    opened = StoreWriter.open(tmp_path / "store", fingerprint, plan)
    with pytest.raises(StoreError, match="expected 0 to 2, got 3"):
        opened.write_part(3, utterances[:2])
    with pytest.raises(StoreError, match="expected 2, got 1"):
        opened.write_part(0, utterances[:1])
    with pytest.raises(StoreError, match="planned with another utterance"):
        opened.write_part(0, utterances[1::-1])


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("blank", np.array([5, 5], np.uint8), "are not as many as its entries"),
        ("blank", np.array([37, 37], np.uint8), "are not as many as its entries"),
        ("blank", np.array([37, 64], np.uint8), "values below 64, got 64"),
        ("blank", np.array([37, 5], np.int64), "of uint8, got"),
        ("tokens", np.array([4, 29], np.uint8), "tokens below 29, got 29"),
        ("tokens", np.array([4, 0], np.uint8), r"no blank \(0\) among the entries"),
        ("tokens", np.array([4, -1], np.int32), "tokens below 29, got -1"),
        ("tokens", np.array([4, 257], np.int32), "tokens below 29, got 257"),
        ("tokens", np.array([4, 4], np.uint8), "token 4 stands twice in one frame"),
        ("tokens", np.array([4, 5], np.float32), "of uint8"),
        ("fractions", np.array([7], np.uint8), "expected 2 values, got 1"),
        ("fractions", np.array([39, 39], np.uint8), "are not as many as its entries"),
        ("fractions", np.array([39, 7], np.float16), "of uint8"),
    ],
)
def test_what_breaks_the_format_is_refused(
    tmp_path: Path, maker: StoreMaker, column: str, value: np.ndarray, words: str
) -> None:
    values = {
        "blank": np.array([37, 5], np.uint8),
        "tokens": np.array([4, 5], np.uint8),
        "fractions": np.array([39, 7], np.uint8),
    }
    audio_hash = maker.audio_hash("u")
    whole = EncodedUtterance(utt_id="u", audio_hash=audio_hash, samples=640, **values)
    assert maker.write(tmp_path / "whole", [whole], maker.fingerprint()).is_dir()
    broken = EncodedUtterance(
        utt_id="u", audio_hash=audio_hash, samples=640, **{**values, column: value}
    )
    with pytest.raises(StoreError, match=words):
        maker.write(tmp_path / "store", [broken], maker.fingerprint())
