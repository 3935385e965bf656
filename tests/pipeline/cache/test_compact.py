from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interkd.kernels.errors import ConfigError, CorruptStoreError, StoreError
from interkd.pipeline.cache.codec import get_quantiser
from interkd.pipeline.cache.compact import HISTORY_KEY, compact
from interkd.pipeline.cache.compare import best_tokens, compare_frames, probabilities
from interkd.pipeline.cache.diff import diff
from interkd.pipeline.cache.fingerprint import Fingerprint
from interkd.pipeline.cache.format import Array
from interkd.pipeline.cache.inspect import decode_store
from interkd.pipeline.cache.layout import Expanded
from interkd.pipeline.cache.reader import TeacherStore
from interkd.pipeline.cache.reencode import break_sparse, reencode, truncate
from interkd.pipeline.cache.verify import verify
from interkd.pipeline.cache.versions import layout_of
from interkd.pipeline.cache.writer import EncodedUtterance, StoreWriter
from tests.properties import examples

if TYPE_CHECKING:
    from tests.pipeline.cache.conftest import StoreMaker

GOLDEN_1 = Path(__file__).parents[2] / "golden" / "teacher-cache-v1"
HALF_STEP = {"angle5": np.pi / 4 / 31.4, "angle6": np.pi / 4 / 63.4, "angle7": np.pi / 4 / 127.4}
SECOND = 1 / 60  # of --part-minutes


def content(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}


def payloads(path: Path) -> dict[str, list[bytes]]:
    store = TeacherStore.open(path)
    parts = [store.read_part(index) for index in range(store.part_count)]
    return {
        utt_id: [column.tobytes() for column in part.payload_of(row).values()]
        for part in parts
        for row, utt_id in enumerate(part.utt_ids)
    }


def expand(blank: Array, tokens: Array, fractions: Array, fingerprint: Fingerprint) -> Expanded:
    columns = {"blank": blank, "token": tokens, "fraction": fractions}
    return layout_of(fingerprint).expand(columns, fingerprint)


@pytest.mark.parametrize(("part_minutes", "parts"), [(60.0, 1), (0.7 * SECOND, 3)])
def test_parts_are_merged_and_split_bit_for_bit(
    store: Path, tmp_path: Path, part_minutes: float, parts: int
) -> None:
    before = content(store)
    report = compact(store, tmp_path / "new", part_minutes=part_minutes)
    assert (report.source_parts, report.parts, report.parts_written) == (2, parts, parts)
    assert report.copied
    assert (report.utterances, report.dropped, report.lost_facts) == (6, 0, ())
    assert payloads(tmp_path / "new") == payloads(store)
    assert diff(store, tmp_path / "new").is_equal
    assert verify(tmp_path / "new").problems == ()
    assert content(store) == before
    opened = TeacherStore.open(tmp_path / "new")
    assert opened.fingerprint == TeacherStore.open(store).fingerprint
    assert opened.summary["teacher_wer"] == 7.25
    assert opened.summary["hours"] == pytest.approx(98 * 320 / 16000 / 3600)
    assert opened.summary[HISTORY_KEY] == ["angle5, mass 0.99"]


def test_counts_of_the_parts_keep_their_sums(
    maker: StoreMaker, utterances: list[EncodedUtterance], tmp_path: Path
) -> None:
    plan = maker.plan(utterances, 3)
    writer = StoreWriter.open(tmp_path / "old", maker.fingerprint(), plan)
    for index, part in enumerate(plan.parts):
        facts = {"teacher_words": [index, 10 * index + 1], "note": "free"}
        writer.write_part(index, [utterances[i] for i in part], attributes=facts)
    writer.finish({"teacher_wer": 1.0})
    for name, drop, words in (("all", [], [3, 33]), ("some", ["utterance-0"], [0, 0])):
        compact(tmp_path / "old", tmp_path / name, part_minutes=0.7 * SECOND, drop=drop)
        opened = TeacherStore.open(tmp_path / name)
        again = StoreWriter(opened.path, opened.metadata, plan)
        facts_of_parts = again.part_attributes()
        assert len(facts_of_parts) == opened.part_count > 1
        sums = np.sum([facts["teacher_words"] for facts in facts_of_parts], axis=0)
        assert sums.tolist() == words
        assert all(set(facts) == {"teacher_words"} for facts in facts_of_parts)


@pytest.mark.parametrize("way", ["drop", "keep"])
def test_utterances_are_left_out(store: Path, tmp_path: Path, way: str) -> None:
    gone = ["utterance-1", "utterance-4"]
    kept = [f"utterance-{i}" for i in (0, 2, 3, 5)]
    choice: dict[str, Any] = {"drop": gone} if way == "drop" else {"keep": kept[::-1]}
    report = compact(store, tmp_path / "new", **choice)
    assert (report.utterances, report.dropped) == (4, 2)
    assert report.lost_facts == ("teacher_wer",)
    opened = TeacherStore.open(tmp_path / "new")
    assert opened.utterance_ids == tuple(kept)
    assert opened.summary["teacher_wer"] is None
    old = payloads(store)
    assert payloads(tmp_path / "new") == {utt_id: old[utt_id] for utt_id in kept}


@settings(max_examples=examples(40))
@given(
    kind=st.sampled_from(["peaky", "flat", "ties", "zeros"]),
    source=st.sampled_from(["angle7", "angle15"]),
    target=st.sampled_from(["angle5", "angle6", "angle7"]),
    masses=st.sampled_from([(1.0, 1.0), (0.999, 0.9), (0.99, 0.5)]),
    seed=st.integers(0, 1000),
)
def test_reencoding_takes_the_nearest_codes_and_keeps_the_best_token(
    maker: StoreMaker, kind: str, source: str, target: str, masses: tuple[float, float], seed: int
) -> None:
    old = maker.fingerprint(9, quantiser=source, mass=masses[0], top_k=9)
    new = maker.fingerprint(9, quantiser=target, mass=masses[1], top_k=9)
    made = maker.encode("u", maker.log_probs(20, 9, kind, seed), old)
    stored = expand(made.blank, made.tokens, made.fractions, old)
    again = expand(*reencode(stored, old, new), new)
    best = best_tokens(stored)
    assert (best_tokens(again) == best).all()
    probs, _ = probabilities(stored)
    again_probs, _ = probabilities(again)
    for frame, best_token in enumerate(best):
        rows = slice(*stored.entry_offsets[frame : frame + 2])
        order = stored.tokens[rows].tolist()
        values = dict(zip(order, probs[rows].tolist(), strict=True))
        kept = slice(*again.entry_offsets[frame : frame + 2])
        kept_values = dict(zip(again.tokens[kept].tolist(), again_probs[kept], strict=True))
        expected, reached = [0], values[0]
        for token in (token for token in order if token != 0):
            if masses[0] > masses[1] and reached >= masses[1] and token != best_token:
                break
            expected.append(token)
            reached += values[token]
        assert set(kept_values) == set(expected)
        left, kept_left = 1.0, 1.0
        for place, token in enumerate(expected):
            error = abs(
                np.arcsin(np.sqrt(np.clip(values[token] / left, 0, 1)))
                - np.arcsin(np.sqrt(np.clip(kept_values[token] / kept_left, 0, 1)))
            )
            steps = 3 if place == 0 else 1  # the blank's code may be moved by one
            assert error <= steps * HALF_STEP[target] * 1.01 + 1e-3
            left, kept_left = left - values[token], kept_left - kept_values[token]
            if min(left, kept_left) < 1e-4:
                break


def test_reencoding_fine_codes_is_encoding(maker: StoreMaker) -> None:
    fine = maker.fingerprint(29, quantiser="angle15", mass=1.0, top_k=29)
    coarse = maker.fingerprint(29, quantiser="angle5", mass=0.99, top_k=29)
    log_probs = maker.log_probs(400, 29, "peaky", 5)
    made, wanted = (maker.encode("u", log_probs, f) for f in (fine, coarse))
    stored = expand(made.blank, made.tokens, made.fractions, fine)
    found = expand(*reencode(stored, fine, coarse), coarse)
    direct = expand(wanted.blank, wanted.tokens, wanted.fractions, coarse)
    assert compare_frames(found, direct, 29).identical.mean() > 0.98


@settings(max_examples=examples(20))
@given(
    kind=st.sampled_from(["peaky", "flat", "ties", "zeros"]),
    mass=st.sampled_from([0.999, 0.9, 0.5, 0.1]),
    seed=st.integers(0, 1000),
)
def test_a_smaller_mass_alone_leaves_the_codes(
    maker: StoreMaker, kind: str, mass: float, seed: int
) -> None:
    fingerprint = maker.fingerprint(9, mass=1.0, top_k=9)
    made = maker.encode("u", maker.log_probs(30, 9, kind, seed), fingerprint)
    payload = {"blank": made.blank, "token": made.tokens, "fraction": made.fractions}
    stored = expand(made.blank, made.tokens, made.fractions, fingerprint)
    blank, tokens, fractions = truncate(payload, stored, fingerprint, mass)
    found = expand(blank, tokens, fractions, fingerprint)
    kept = break_sparse(stored, blank_index=0, version=2, mass=mass)
    assert (blank % 32 == made.blank % 32).all()
    assert np.diff(found.entry_offsets).tolist() == (kept.counts + 1).tolist()
    values = {
        (frame, token): value
        for frame in range(30)
        for token, value in zip(
            stored.tokens[slice(*stored.entry_offsets[frame : frame + 2])].tolist(),
            stored.log_probs[slice(*stored.entry_offsets[frame : frame + 2])].tolist(),
            strict=True,
        )
    }
    frames = np.repeat(np.arange(30), np.diff(found.entry_offsets)).tolist()
    for frame, token, value in zip(
        frames, found.tokens.tolist(), found.log_probs.tolist(), strict=True
    ):
        assert values[frame, token] == value
    assert (best_tokens(found) == best_tokens(stored)).all()


def test_a_smaller_mass_through_the_store(maker: StoreMaker, tmp_path: Path) -> None:
    fingerprint = maker.fingerprint(9, top_k=9)
    flat = maker.utterances(fingerprint, [20, 0, 35], kind="flat")
    store = maker.write(tmp_path / "old", flat, fingerprint, parts=2)
    report = compact(store, tmp_path / "new", mass=0.6)
    assert not report.copied
    found = diff(store, tmp_path / "new")
    assert [(f.field, f.left, f.right) for f in found.fields] == [("mass", 0.99, 0.6)]
    assert found.frames is not None
    assert found.frames.same_best == found.frames.frames == 55
    assert found.frames.largest_difference < 1e-6
    assert found.frames.same_tokens == 0


def test_long_utterances_are_reencoded_in_blocks(
    maker: StoreMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = maker.fingerprint(quantiser="angle7"), maker.fingerprint()
    made = maker.encode("u", maker.log_probs(50, 29, "peaky", 3), old)
    stored = expand(made.blank, made.tokens, made.fractions, old)
    whole = reencode(stored, old, new)
    monkeypatch.setattr("interkd.pipeline.cache.reencode._FRAMES_AT_ONCE", 7)
    for one, other in zip(whole, reencode(stored, old, new), strict=True):
        assert one.dtype == other.dtype
        assert (one == other).all()


@pytest.mark.parametrize("quantiser", [None, "angle5", "angle15"])
def test_version_1_becomes_todays(tmp_path: Path, quantiser: str | None) -> None:
    old = Path(shutil.copytree(GOLDEN_1, tmp_path / "old"))
    before = content(old)
    report = compact(old, tmp_path / "new", quantiser=quantiser)
    assert not report.copied
    assert verify(tmp_path / "new").problems == ()
    assert content(old) == before
    one, two = TeacherStore.open(old), TeacherStore.open(tmp_path / "new")
    assert two.fingerprint.format_version == 2
    assert two.fingerprint.quantiser == (quantiser or "angle5")
    assert two.fingerprint.weights_sha256 == one.fingerprint.weights_sha256
    assert two.summary["teacher_wer"] == one.summary["teacher_wer"]
    version_1 = f"{one.fingerprint.quantiser}, mass {one.fingerprint.mass:g}, format version 1"
    assert two.summary[HISTORY_KEY] == [version_1]
    assert list(decode_store(tmp_path / "new")) == list(decode_store(old))
    found = diff(old, tmp_path / "new").frames
    assert found is not None
    assert found.same_tokens == found.frames
    assert found.mean_divergence < (1e-6 if quantiser == "angle15" else 4e-3)


def test_what_is_lost_cannot_come_back(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "new"
    with pytest.raises(StoreError, match=r"expected angle5 or fewer bits, got angle7; .*cannot"):
        compact(store, out, quantiser="angle7")
    with pytest.raises(StoreError, match=r"expected above 0, at most 0\.99, got 0\.995"):
        compact(store, out, mass=0.995)
    for mass in (0.0, -1.0, float("nan")):
        with pytest.raises(StoreError, match="expected above 0, at most"):
            compact(store, out, mass=mass)
    with pytest.raises(StoreError, match="quantiser; expected angle5"):
        compact(store, out, quantiser="log8")
    old = Path(shutil.copytree(GOLDEN_1, tmp_path / "old"))
    with pytest.raises(StoreError, match="mass of"):
        compact(old, out, mass=1.0)
    assert not out.exists()


def test_choices_that_cannot_be(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "new"
    with pytest.raises(ConfigError, match="onto itself"):
        compact(store, tmp_path / "." / store.name)
    with pytest.raises(ConfigError, match="part_minutes; expected above 0"):
        compact(store, out, part_minutes=0)
    with pytest.raises(StoreError, match=r"lacks 1 utterances of the list; .* got 'utterance-9'"):
        compact(store, out, drop=["utterance-0", "utterance-9"])
    with pytest.raises(StoreError, match=r"no utterance of .* is left"):
        compact(store, out, keep=[])
    assert not out.exists()
    compact(store, out)
    with pytest.raises(StoreError, match="was begun for other utterances"):
        compact(store, out, drop=["utterance-0"])


def test_killed_and_started_again(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "new"
    write_part = StoreWriter.write_part

    def fail(self: StoreWriter, index: int, *args: Any, **kwargs: Any) -> bool:
        if index != 1:
            return write_part(self, index, *args, **kwargs)
        deadline = time.monotonic() + 30
        while not list(out.glob("part-*.zip")) and time.monotonic() < deadline:
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(StoreWriter, "write_part", fail)
    with pytest.raises(KeyboardInterrupt):
        compact(store, out, part_minutes=0.7 * SECOND, mass=0.9)
    assert not (out / "part-00001.zip").exists()
    monkeypatch.undo()
    seen: list[tuple[int, int]] = []
    report = compact(
        store, out, part_minutes=0.7 * SECOND, mass=0.9, progress=lambda *s: seen.append(s)
    )
    assert 1 <= report.parts_written <= 2
    assert seen[-1] in ((1, 1), (2, 2))
    assert verify(out).problems == ()
    assert compact(store, out, part_minutes=0.7 * SECOND, mass=0.9).parts_written == 0


def test_a_damaged_source_is_named(store: Path, tmp_path: Path, archive: Any) -> None:
    archive(store / "part-00001.zip").flip("token/c/0", 3)
    with pytest.raises(CorruptStoreError, match="part-00001"):
        compact(store, tmp_path / "new")


def test_quantiser_levels_are_what_the_tests_take_them_for() -> None:
    for name, half_step in HALF_STEP.items():
        angles = np.arcsin(np.sqrt(get_quantiser(name).values))
        assert np.diff(angles).max() == pytest.approx(2 * half_step)
