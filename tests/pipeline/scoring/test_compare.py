from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from interkd.kernels.errors import ConfigError, CorpusError
from interkd.pipeline.scoring.compare import compare
from interkd.pipeline.scoring.report import ScoreReport, write_report

MakeReport = Callable[..., ScoreReport]
Texts = tuple[list[str], dict[str, list[str]]]


@pytest.fixture
def save(make_report: MakeReport, tmp_path: Path) -> Callable[..., Path]:
    def save_report(name: str, *texts: object, **options: object) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        write_report(folder / "report.json", make_report(*texts, student=name, **options))
        return folder

    return save_report


def test_better_system_is_found(save: Callable[..., Path], noisy_texts: Texts) -> None:
    references, hypotheses = noisy_texts
    a = save("a", references, {"final": hypotheses["layer4"]})
    b = save("b", references, {"final": hypotheses["final"]})
    result = compare(a, b / "report.json", samples=1000)
    assert result.is_significant
    assert result.paired.difference == pytest.approx(result.wer_a - result.wer_b)
    assert 0 < result.paired.low < result.paired.difference < result.paired.high
    assert result.paired.p_value == pytest.approx(2 / 1001)
    assert (result.name_a, result.name_b, result.utterances) == ("a (final)", "b (final)", 120)


def test_same_system_is_not_different(save: Callable[..., Path], noisy_texts: Texts) -> None:
    a = save("a", *noisy_texts)
    result = compare(a, a, samples=500)
    assert not result.is_significant
    assert result.paired.p_value == 1.0


def test_order_of_utterances_does_not_matter(save: Callable[..., Path]) -> None:
    a = save("a", ["one two", "three"], {"final": ["one", "three"]}, utt_ids=["x", "y"])
    b = save("b", ["three", "one  two"], {"final": ["three", "one"]}, utt_ids=["y", "x"])
    assert compare(a, b, samples=200).paired.p_value == 1.0


def test_heads_by_name(save: Callable[..., Path], noisy_texts: Texts) -> None:
    a = save("a", *noisy_texts)
    references, hypotheses = noisy_texts
    b = save("b", references, {"final": hypotheses["layer4"], "layer4": hypotheses["final"]})
    assert compare(a, b, head="final", samples=200).paired.difference < -20
    assert compare(a, b, head="layer4", samples=200).paired.difference > 20
    assert compare(a, b, samples=200).paired.p_value == 1.0  # the last head of each
    with pytest.raises(ConfigError, match="did you mean 'layer4'"):
        compare(a, b, head="layer5")


def test_refuses_other_references(save: Callable[..., Path]) -> None:
    a = save("a", ["one two", "three"], {"final": ["one", "three"]})
    b = save("b", ["one two", "tree"], {"final": ["one", "three"]})
    with pytest.raises(CorpusError, match=r"reference of 'utt-001'; expected 'three', got 'tree'"):
        compare(a, b)


def test_refuses_other_utterances(save: Callable[..., Path]) -> None:
    a = save("a", ["one two", "three"], {"final": ["one", "three"]})
    b = save("b", ["one two"], {"final": ["one"]})
    with pytest.raises(
        CorpusError, match="1 only in the first and 0 only in the second, such as 'utt-001'"
    ):
        compare(a, b)


def test_speakers_widen_the_interval(save: Callable[..., Path]) -> None:
    references = ["a b c d e"] * 40
    speakers = [f"s{index // 10}" for index in range(40)]
    bad = ["a b c d e"] * 20 + ["a b c x y"] * 20
    a = save("a", references, {"final": bad}, speakers=speakers)
    b = save("b", references, {"final": references}, speakers=speakers)
    by_utterance, by_speaker = (
        compare(a, b, samples=2000, resample=unit).paired for unit in ("utterance", "speaker")
    )
    assert by_speaker.high - by_speaker.low > 2 * (by_utterance.high - by_utterance.low)
    with pytest.raises(ConfigError, match="resample"):
        compare(a, b, resample="word")
