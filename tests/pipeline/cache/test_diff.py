from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from interkd.kernels.errors import CorruptStoreError, StoreError
from interkd.pipeline.cache.compact import compact
from interkd.pipeline.cache.diff import FrameDifferences, diff
from interkd.pipeline.cache.writer import EncodedUtterance, StoreWriter

if TYPE_CHECKING:
    from tests.pipeline.cache.conftest import StoreMaker

GOLDEN = Path(__file__).parents[2] / "golden"


def test_a_store_equals_itself_however_it_is_cut(
    maker: StoreMaker, store: Path, utterances: list[EncodedUtterance], tmp_path: Path
) -> None:
    named = maker.fingerprint(teacher="the same by another name")
    other = maker.write(tmp_path / "other", utterances[::-1], named, parts=4)
    for left, right in ((store, store), (store, other), (other, store)):
        found = diff(left, right)
        assert found.is_equal
        assert found.frames == FrameDifferences(
            utterances=6, frames=98, identical=98, same_tokens=98, same_best=98
        )
    assert diff(store, other).to_dict()["is_equal"] is True


def test_settings_utterances_and_audio(
    maker: StoreMaker, store: Path, utterances: list[EncodedUtterance], tmp_path: Path
) -> None:
    settings = maker.fingerprint(weights_sha256="cd" * 32, mass=0.9)
    changed = [
        replace(utterances[0], audio_hash="0" * 32),
        *utterances[2:5],
        replace(utterances[5], utt_id="new"),
    ]
    found = diff(store, maker.write(tmp_path / "other", changed, settings, parts=2))
    assert [(f.field, f.left, f.right) for f in found.fields] == [
        ("weights_sha256", "ab" * 32, "cd" * 32),
        ("mass", 0.99, 0.9),
    ]
    assert found.only_left == ("utterance-1", "utterance-5")
    assert found.only_right == ("new",)
    assert found.other_audio == ("utterance-0",)
    assert not found.is_equal
    assert found.frames is not None
    assert (found.frames.utterances, found.frames.frames) == (3, 48)
    assert found.frames.identical == 48


def test_frames(
    maker: StoreMaker, store: Path, utterances: list[EncodedUtterance], tmp_path: Path
) -> None:
    blank = utterances[2].blank.copy()
    frame = int(np.flatnonzero(blank < 32)[0])  # the blank alone
    blank[frame] = 16
    changed = [*utterances[:2], replace(utterances[2], blank=blank), *utterances[3:]]
    found = diff(store, maker.write(tmp_path / "other", changed, maker.fingerprint()))
    assert not found.is_equal
    frames = found.frames
    assert frames is not None
    assert (frames.identical, frames.same_tokens, frames.same_best) == (97, 98, 98)
    old, new = (
        float(np.sin(np.pi / 2 * (int(code) + 0.2) / 31.4) ** 2)
        for code in (utterances[2].blank[frame], 16)
    )
    divergence = old * np.log(old / new) + (1 - old) * np.log((1 - old) / (1 - new))
    reverse = new * np.log(new / old) + (1 - new) * np.log((1 - new) / (1 - old))
    assert frames.largest_difference == pytest.approx(abs(old - new), rel=1e-5)
    assert frames.largest_at == "utterance-2"
    assert frames.largest_divergence == pytest.approx(divergence, rel=1e-3)
    assert frames.mean_divergence == pytest.approx(divergence / 98, rel=1e-3)
    assert frames.mean_reverse == pytest.approx(reverse / 98, rel=1e-3)


def test_other_numbers_of_frames(
    maker: StoreMaker, store: Path, utterances: list[EncodedUtterance], tmp_path: Path
) -> None:
    log_probs = maker.log_probs(13, 29, "peaky", 4)
    longer = maker.encode("utterance-4", log_probs, maker.fingerprint())
    changed = [*utterances[:4], longer, utterances[5]]
    found = diff(store, maker.write(tmp_path / "other", changed, maker.fingerprint()))
    assert found.other_lengths == ("utterance-4",)
    assert found.frames is not None
    assert found.frames.frames == found.frames.identical == 98 - 12
    assert not found.is_equal


def test_other_vocabularies_are_not_compared(
    maker: StoreMaker, store: Path, tmp_path: Path
) -> None:
    tokens = list(maker.fingerprint().tokens)
    tokens[3] = "x"
    other = maker.fingerprint(tokens=tuple(tokens))
    path = maker.write(tmp_path / "other", maker.utterances(other, [20, 0]), other)
    found = diff(store, path)
    assert found.frames is None
    assert not found.is_equal
    (field,) = found.fields
    assert (field.field, field.left, field.right) == ("tokens", "'丂' at 3 of 29", "'x' at 3 of 29")
    shorter = maker.fingerprint(28)
    path = maker.write(tmp_path / "shorter", maker.utterances(shorter, [20, 0]), shorter)
    assert diff(store, path).fields[0].right == "None at 28 of 28"


def test_nothing_in_common(maker: StoreMaker, store: Path, tmp_path: Path) -> None:
    other = [replace(maker.utterances(maker.fingerprint(), [3])[0], utt_id="another")]
    found = diff(store, maker.write(tmp_path / "other", other, maker.fingerprint()))
    assert found.frames == FrameDifferences()
    assert len(found.only_left) == 6
    assert not found.is_equal


def test_stores_of_both_versions(tmp_path: Path) -> None:
    one = Path(shutil.copytree(GOLDEN / "teacher-cache-v1", tmp_path / "one"))
    compact(one, tmp_path / "two", mass=0.5)
    forth, back = diff(one, tmp_path / "two"), diff(tmp_path / "two", one)
    assert not forth.is_equal
    assert {f.field for f in forth.fields} == {"mass", "quantiser", "format_version"}
    assert diff(one, one).is_equal
    assert forth.frames is not None
    assert back.frames is not None
    assert forth.frames.same_best == forth.frames.frames > 0
    assert forth.frames.same_tokens < forth.frames.frames
    assert forth.frames.mean_divergence == pytest.approx(back.frames.mean_reverse, rel=1e-12)
    assert forth.frames.mean_divergence > 0
    assert forth.frames.largest_difference == back.frames.largest_difference > 0


def test_stores_that_cannot_be_read(
    maker: StoreMaker, store: Path, utterances: list[EncodedUtterance], tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match="no teacher cache at"):
        diff(store, tmp_path / "nothing")
    plan = maker.plan(utterances, 1)
    StoreWriter.open(tmp_path / "begun", maker.fingerprint(), plan)
    with pytest.raises(StoreError, match="is not whole"):
        diff(tmp_path / "begun", store)
    damaged = Path(shutil.copytree(store, tmp_path / "damaged"))
    part = damaged / "part-00000.zip"
    part.write_bytes(part.read_bytes()[:-30])
    with pytest.raises(CorruptStoreError, match="part-00000"):
        diff(store, damaged)
