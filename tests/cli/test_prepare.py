"""`interkd prepare` as a user meets it: the table, the problems, the exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from interkd.cli.main import main


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rows = []
    for index in range(14):
        soundfile.write(tmp_path / f"{index}.wav", np.full(16000, 0.1), 16000)
        rows.append({"audio_filepath": f"{index}.wav", "duration": 1.0, "text": "GOOD DAY"})
    path = tmp_path / "source.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_good_corpus(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = source.parent / "out"
    main(["prepare", str(source), "--out", str(out), "--train", "characters", "--workers", "1"])
    lines = capsys.readouterr().out.splitlines()
    table = {line[:18].strip(): line[18:].strip() for line in lines}
    assert table["utterances"] == "14"
    assert table["characters"] == "␣ADGOY (6)"
    assert table["vocabulary"] == "7 tokens with the blank"
    assert table["rejected"] == "0"
    assert lines[-1] == f"manifest: {out / 'manifest.jsonl'}"
    assert len((out / "manifest.jsonl").read_text().splitlines()) == 14


def test_speeds(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = source.parent / "out"
    arguments = ["prepare", str(source), "--out", str(out), "--train", "characters"]
    main([*arguments, "--speeds", "0.9, 1, 2", "--frame-shift-ms", "80"])
    lines = capsys.readouterr().out.splitlines()
    table = {line[:19].strip(): line[19:].strip() for line in lines}
    assert table["utterances"] == "28"
    assert table["too short for CTC"] == "0"
    assert table["too short at speed"] == "0 at 0.9, 14 at 2.0 (copies left out)"
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert [row["utt_id"] for row in rows[:3]] == ["0", "0_sp0.9", "1"]
    assert [row["samples"] for row in rows[:2]] == [16000, 17778]


def test_bad_rows_are_shown_and_counted(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(12):
        (source.parent / f"{index}.wav").unlink()
    arguments = ["prepare", str(source), "--out", str(source.parent / "o"), "--train", "characters"]
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 12
    assert lines[0].startswith(f"{source}:1: utterance '0': ")
    assert lines[9].startswith(f"{source}:10: utterance '9': ")
    assert lines[10] == "... and 2 more"
    assert lines[11].startswith("interkd: error: 12 of 14 rows are bad, nothing was written")
    assert not (source.parent / "o").exists()

    main([*arguments, "--skip-bad"])
    output = capsys.readouterr().out
    assert "12 (12 audio)" in output
    assert len((source.parent / "o" / "rejected.jsonl").read_text().splitlines()) == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give either --tokens PATH or --train KIND"),
        (["--train", "bpe"], "vocab_size; expected with train bpe or unigram"),
        (["--tokens", "nowhere"], "cannot read the tokens of nowhere"),
        (
            ["--train", "characters", "--speeds", "1;2"],
            "--speeds; expected numbers joined by commas, such as 0.9,1,1.1, got '1;2'",
        ),
        (["--train", "characters", "--speeds", ""], "speeds; expected at least one, got none"),
        (["--train", "characters", "--speeds", "1,1.0"], "speeds; expected each once, got 1 twice"),
        (["--train", "characters", "--speeds", "1,3"], "speeds; expected at least 0.5, at most 2"),
    ],
)
def test_usage_errors(
    options: list[str], message: str, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["prepare", str(source), "--out", str(source.parent / "out"), *options])
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err
