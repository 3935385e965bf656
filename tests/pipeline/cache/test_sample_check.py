from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor

from interkd.kernels.errors import ConfigError, FingerprintError, StoreError, TeacherError
from interkd.pipeline.cache.reader import TeacherStore
from interkd.pipeline.cache.sample_check import draw, sample_check
from interkd.pipeline.cache.teacher_gap import check_utterance, gap_of
from interkd.pipeline.cache.version2 import Version2Layout
from interkd.pipeline.cache_settings import CacheTeacherConfig
from interkd.pipeline.cache_teacher import cache_teacher
from interkd.pipeline.corpus.manifest import read_manifest, write_manifest
from interkd.pipeline.frames import FrameFormula
from interkd.pipeline.teachers.protocol import TeacherInfo

if TYPE_CHECKING:
    from tests.pipeline.cache.conftest import StoreMaker

SPEC = "python:made_up_teacher:make"
TOKENS = ("<blk>", "▁", *"ABCDEFGH")


@dataclass
class PitchTeacher:
    """Peaked posteriors of each 20 ms of audio, a fixed function of it; may be disturbed."""

    info: TeacherInfo
    noise: float = 0.0
    extra_frames: int = 0
    shape: tuple[int, ...] | None = None

    def log_probs(self, waveforms: Tensor, sample_lengths: Tensor) -> tuple[Tensor, Tensor]:
        frames = waveforms.unfold(1, 320, 320)
        weights = torch.randn(320, len(TOKENS), generator=torch.Generator().manual_seed(0))
        logits = 3 * (frames @ weights)
        logits = logits + self.noise * torch.randn(logits.shape)
        if self.shape is not None:
            return torch.zeros(self.shape), sample_lengths // 320
        logits = torch.nn.functional.pad(logits, (0, 0, 0, self.extra_frames))
        return logits.log_softmax(-1), sample_lengths // 320 + self.extra_frames


@pytest.fixture(scope="module")
def teacher() -> PitchTeacher:
    return PitchTeacher(
        TeacherInfo(
            name=SPEC,
            weights_sha256="12" * 32,
            tokens=TOKENS,
            blank_index=0,
            sample_rate=16_000,
            frame_formula=FrameFormula(((320, 320, 0),)),
        )
    )


def use(teacher: PitchTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("made_up_teacher")
    module.make = lambda device, precision: teacher  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "made_up_teacher", module)


@pytest.fixture(scope="module")
def cached(
    tone_corpus: Any, teacher: PitchTeacher, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("cached") / "store"
    with pytest.MonkeyPatch.context() as monkeypatch:
        use(teacher, monkeypatch)
        cache_teacher(
            CacheTeacherConfig(teacher=SPEC, manifest=tone_corpus.dev, out=out, device="cpu")
        )
    return out


def test_the_same_teacher_says_the_same(
    cached: Path, tone_corpus: Any, teacher: PitchTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(teacher, monkeypatch)
    seen: list[tuple[int, int]] = []
    report = sample_check(
        cached,
        tone_corpus.dev,
        SPEC,
        count=3,
        device="cpu",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert report.passes
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert len(report.utt_ids) == 3
    store = TeacherStore.open(cached)
    assert report.frames == sum(store.frame_count(utt_id) for utt_id in report.utt_ids)
    assert report.equal_codes == 1.0
    assert report.expected == report.found
    assert report.found.changed_best == 0.0
    assert 0 < report.found.mean_divergence < 2e-3
    assert report.found.mean_divergence <= report.found.largest_divergence
    assert 0 < report.found.mean_difference <= report.found.largest_difference < 0.06
    assert report.largest_at in report.utt_ids


def test_a_real_difference_is_told_from_quantisation(
    cached: Path, tone_corpus: Any, teacher: PitchTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    use(replace(teacher, noise=0.5), monkeypatch)
    report = sample_check(cached, tone_corpus.dev, SPEC, count=99, device="cpu")
    assert len(report.utt_ids) == 8
    assert not report.passes
    assert report.expected is not None
    assert report.equal_codes is not None
    assert report.found.mean_divergence > 5 * report.expected.mean_divergence
    assert report.expected.changed_best == 0.0
    assert report.found.changed_best > 0.005
    assert report.equal_codes < 0.9
    assert not sample_check(
        cached, tone_corpus.dev, SPEC, count=99, device="cpu", tolerance=9.0
    ).passes  # of the changed argmaxes


def test_the_tolerance_decides(
    cached: Path, tone_corpus: Any, teacher: PitchTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(teacher, monkeypatch)
    report = sample_check(cached, tone_corpus.dev, SPEC, count=2, device="cpu", tolerance=1e-6)
    assert not report.passes
    found = replace(report.found, mean_divergence=float("nan"))
    assert not replace(report, found=found, tolerance=1.0).passes


def test_only_the_teacher_of_the_store_is_heard(
    cached: Path, tone_corpus: Any, teacher: PitchTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    for changes, message in (
        ({"weights_sha256": "34" * 32}, "weights_sha256 differs; expected 1212"),
        ({"tokens": (*TOKENS[:-1], "Z")}, "tokens differ at index 9; expected 'H' of 10 tokens"),
        ({"sample_rate": 8000}, "sample_rate differs; expected 16000, got 8000"),
    ):
        use(replace(teacher, info=replace(teacher.info, **changes)), monkeypatch)
        with pytest.raises(FingerprintError, match=message) as caught:
            sample_check(cached, tone_corpus.dev, SPEC, count=1, device="cpu")
        assert f"{cached} was made with another teacher than {SPEC}" in str(caught.value)


def test_a_teacher_that_breaks_its_word(
    cached: Path, tone_corpus: Any, teacher: PitchTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(replace(teacher, extra_frames=1), monkeypatch)
    with pytest.raises(StoreError, match=r"frames of utterance .*, as the teacher makes now"):
        sample_check(cached, tone_corpus.dev, SPEC, count=1, device="cpu")
    use(replace(teacher, shape=(1, 2, 10)), monkeypatch)
    with pytest.raises(TeacherError, match=r"log-probabilities .* got \(1, 2, 10\)"):
        sample_check(cached, tone_corpus.dev, SPEC, count=1, device="cpu")


def test_utterances_are_drawn_by_the_seed(cached: Path, tone_corpus: Any) -> None:
    store = TeacherStore.open(cached)
    utterances = read_manifest(tone_corpus.dev).utterances
    draws = [[u.utt_id for u in draw(store, utterances, 3, seed)] for seed in (0, 0, 1, 2, 3)]
    assert draws[0] == draws[1]
    assert len({tuple(ids) for ids in draws}) > 1
    order = {utt_id: place for place, utt_id in enumerate(store.utterance_ids)}
    assert all(ids == sorted(ids, key=order.__getitem__) for ids in draws)
    reversed_draw = [u.utt_id for u in draw(store, utterances[::-1], 3, 0)]
    assert reversed_draw == draws[0]
    two = utterances[2:4]
    assert [u.utt_id for u in draw(store, two, 5, 0)] == [u.utt_id for u in two]


def test_manifests_that_do_not_fit(
    cached: Path,
    tone_corpus: Any,
    teacher: PitchTeacher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(teacher, monkeypatch)
    with pytest.raises(StoreError, match="lacks 36 utterances of the manifest"):
        sample_check(cached, tone_corpus.train, SPEC, count=1, device="cpu")
    utterances = read_manifest(tone_corpus.dev).utterances
    manifest = tmp_path / "manifest.jsonl"
    write_manifest(manifest, [replace(u, audio_hash="0" * 32) for u in utterances])
    with pytest.raises(StoreError, match="was made of other audio for 2 utterances"):
        sample_check(cached, manifest, SPEC, count=2, device="cpu")


def test_settings_that_cannot_be(cached: Path, tone_corpus: Any) -> None:
    with pytest.raises(ConfigError, match="utterances to sample; expected 1 or more, got 0"):
        sample_check(cached, tone_corpus.dev, SPEC, count=0)
    for tolerance in (0.0, float("nan")):
        with pytest.raises(ConfigError, match="tolerance in nats a frame; expected above 0"):
            sample_check(cached, tone_corpus.dev, SPEC, count=1, tolerance=tolerance)


def test_numbers_of_one_utterance(maker: StoreMaker) -> None:
    fingerprint = maker.fingerprint()
    log_probs = maker.log_probs(40, 29, "peaky", 1)
    made = maker.encode("u", log_probs, fingerprint)
    columns = {"blank": made.blank, "token": made.tokens, "fraction": made.fractions}
    stored = Version2Layout().expand(columns, fingerprint)
    check = check_utterance(stored, torch.from_numpy(log_probs), fingerprint)
    assert check.equal_codes is not None
    assert check.equal_codes.all()
    gap = gap_of([check.found], [check.changed])
    expected = []
    for frame, (first, last) in enumerate(
        zip(stored.entry_offsets[:-1], stored.entry_offsets[1:], strict=True)
    ):
        tokens = stored.tokens[first:last]
        fresh = np.exp(log_probs[frame, tokens].astype(np.float64))
        kept = np.exp(stored.log_probs[first:last].astype(np.float64))
        rests = [max(1 - fresh.sum(), 1e-7), max(1 - kept.sum(), 1e-7)]
        value = (fresh * np.log(fresh / kept)).sum() + rests[0] * np.log(rests[0] / rests[1])
        expected.append(value)
    assert gap.mean_divergence == pytest.approx(np.mean(expected), rel=1e-3)
    assert gap.largest_divergence == pytest.approx(np.max(expected), rel=1e-3)
    assert gap.changed_best == 0.0


def test_version_1_has_no_codes_to_expect(maker: StoreMaker) -> None:
    fingerprint = maker.fingerprint(quantiser="log8", format_version=1)
    log_probs = maker.log_probs(10, 29, "peaky", 2)
    made = maker.encode("u", log_probs, maker.fingerprint())
    columns = {"blank": made.blank, "token": made.tokens, "fraction": made.fractions}
    stored = Version2Layout().expand(columns, maker.fingerprint())
    check = check_utterance(stored, torch.from_numpy(log_probs), fingerprint)
    assert check.expected is None
    assert check.equal_codes is None
    assert not check.changed.any()
