from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from interkd.kernels.errors import ConfigError, CorpusError
from interkd.pipeline.scoring.report import (
    ScoreReport,
    format_weights,
    read_report,
    write_report,
)

MakeReport = Callable[..., ScoreReport]
Texts = tuple[list[str], dict[str, list[str]]]


def test_round_trip(make_report: MakeReport, noisy_texts: Texts, tmp_path: Path) -> None:
    report = make_report(*noisy_texts)
    write_report(tmp_path / "report.json", report)
    assert read_report(tmp_path / "report.json") == report
    assert read_report(tmp_path) == report


def test_summary_is_plain_to_read(make_report: MakeReport, tmp_path: Path) -> None:
    report = make_report(["a b c", "d"], {"final": ["a x c", "d e"]})
    write_report(tmp_path / "report.json", report)
    value = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    (head,) = value["heads"]
    assert head["name"] == "final"
    assert head["weights"] == 1_500_000
    assert head["wer"]["percent"] == 50.0
    assert head["wer"]["low"] <= 50.0 <= head["wer"]["high"]
    counts = {"substitutions": 1, "insertions": 1, "deletions": 0, "hits": 3, "reference_length": 4}
    assert counts.items() <= head["wer"].items()
    assert value["audio_seconds"] == 5.0
    assert value["real_time_factor"] == 0.25
    assert value["utterances"][1]["heads"]["final"]["words"] == [0, 1, 0, 1]
    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    assert text.count('"utt_id"') == sum('"utt_id"' in line for line in text.splitlines()) == 2


def test_nothing_but_the_report_is_left(make_report: MakeReport, tmp_path: Path) -> None:
    report = make_report(["a"], {"final": ["ä"]})
    write_report(tmp_path / "report.json", report)
    write_report(tmp_path / "report.json", report)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a report"),
        ("[]", "report format"),
        ('{"format": 99}', "expected 1, got 99"),
        ('{"format": 1}', "is damaged"),
    ],
)
def test_refuses_damage(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_report(tmp_path)


def test_missing_report(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="interkd score --out"):
        read_report(tmp_path)


def test_speakers_must_be_known_to_be_drawn(make_report: MakeReport) -> None:
    with pytest.raises(CorpusError, match="utt-001 has no speaker"):
        make_report(["a", "b"], {"final": ["a", "b"]}, speakers=["x", ""], resample="speaker")
    by_speaker = make_report(
        ["a", "b"], {"final": ["a", "c"]}, speakers=["x", "x"], resample="speaker"
    )
    assert by_speaker.word_intervals[0].low == by_speaker.word_intervals[0].high == 50.0


def test_weights_for_people() -> None:
    assert format_weights(8_188_893) == "8.19 M"
    assert format_weights(412_300) == "412 k"
