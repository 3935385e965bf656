from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from interkd.cli import score as cli
from interkd.cli.main import main
from interkd.pipeline.scoring.error_rates import count_errors_each
from interkd.pipeline.scoring.report import (
    HeadResult,
    HeadResults,
    ScoredUtterance,
    ScoreReport,
    write_report,
)
from interkd.pipeline.scoring.score import ScoreConfig, summarise

REFERENCES = [f"one two three four {number}" for number in range(60)]


def make_report(name: str, errors_every: int) -> ScoreReport:
    hypotheses = [
        text if index % errors_every else f"x {text}" for index, text in enumerate(REFERENCES)
    ]
    heads = tuple(
        HeadResult(
            name=head,
            weight_count=weights,
            hypotheses=tuple(hypotheses),
            words=tuple(count_errors_each(REFERENCES, hypotheses)),
            characters=tuple(count_errors_each(REFERENCES, hypotheses, unit="character")),
        )
        for head, weights in (("layer8", 4_000_000), ("final", 8_188_893))
    )
    utterances = tuple(
        ScoredUtterance(utt_id=f"u{index}", speaker="", audio_seconds=2.0, reference=text)
        for index, text in enumerate(REFERENCES)
    )
    return summarise(
        HeadResults(utterances=utterances, heads=heads, model_seconds=0.5),
        student=name,
        manifest="dev.jsonl",
        device="cpu",
        bootstrap_samples=100,
    )


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    for name, errors_every in (("a", 1), ("b", 4)):
        (tmp_path / name).mkdir()
        write_report(tmp_path / name / "report.json", make_report(name, errors_every))
    return str(tmp_path / "a"), str(tmp_path / "b")


def test_prints_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[ScoreConfig] = []

    def fake_score(config: ScoreConfig, *, reporter: object) -> ScoreReport:
        seen.append(config)
        return make_report("a", 4)

    monkeypatch.setattr(cli, "score", fake_score)
    arguments = "--checkpoint runs/a --manifest dev.jsonl --out scores/a --device cpu --seed 7"
    result = CliRunner().invoke(cli.score_command, arguments.split())
    assert result.exit_code == 0, result.output
    (config,) = seen
    assert (config.checkpoint, config.device, config.seed) == (Path("runs/a"), "cpu", 7)
    assert (
        config.batch_seconds
        == ScoreConfig(checkpoint=Path(), manifest=Path(), out=Path()).batch_seconds
    )
    title, first, second, *rest = result.output.splitlines()
    assert title.split()[:3] == ["head", "WER", "%"]
    assert first.split()[:2] == ["layer8", "5.00"]
    assert second.split()[:2] == ["final", "5.00"]
    assert second.split()[3:6] == ["0", "15", "0"]
    assert second.endswith("8.19 M")
    assert "real-time factor 0.00417 on cpu: 240 s of audio a second" in rest[0]
    assert rest[1] == "report: scores/a/report.html"


def test_compare_names_the_better(folders: tuple[str, str]) -> None:
    result = CliRunner().invoke(cli.score_command, ["--compare", *folders])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == "A   20.00 % WER  a (final)"
    assert lines[1] == "B    5.00 % WER  b (final)"
    assert lines[2].startswith("A - B  +15.00 points, 95 % interval +1")
    assert "p = 0.0002, 60 utterances" in lines[2]
    assert lines[3] == "significant: B is better (p < 0.05)"


def test_compare_with_itself(folders: tuple[str, str]) -> None:
    result = CliRunner().invoke(
        cli.score_command, ["--compare", folders[0], folders[0], "--head", "layer8"]
    )
    assert result.exit_code == 0, result.output
    assert "+0.00 points" in result.output
    assert "p = 1," in result.output
    assert "not significant" in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--checkpoint", "a", "--manifest", "b"],
        ["--compare", "a", "b", "--out", "c"],
        ["--checkpoint", "a", "--manifest", "b", "--out", "c", "--head", "final"],
        ["--compare", "a"],
    ],
)
def test_usage(arguments: list[str]) -> None:
    assert CliRunner().invoke(cli.score_command, arguments).exit_code == 2


def test_mistakes_are_one_line(
    folders: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["score", "--compare", folders[0], str(tmp_path / "none")])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("interkd: error: cannot read ")
    assert error.count("\n") == 1
