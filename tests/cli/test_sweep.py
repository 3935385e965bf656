"""`interkd sweep`: its options, its tables, its exit codes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from interkd.cli import sweep as command
from interkd.kernels.errors import ConfigError
from interkd.pipeline.config import as_plain
from interkd.pipeline.sweep.config import read_sweep
from interkd.pipeline.sweep.processes import SweepOutcome
from interkd.pipeline.sweep.runs import expand
from interkd.pipeline.training.recipes import uses_teacher
from tests.command_line import interkd
from tests.students import conformer, training


@pytest.fixture
def sweep(tone_corpus: Any, tmp_path: Path) -> Path:
    """One run of one epoch."""
    config = training(
        tone_corpus,
        Path("ignored"),
        data={"batch_seconds": 30.0},
        student=conformer(16),
        epochs=1,
    )
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(as_plain(config)))
    values = {
        "base": "base.yaml",
        "out": str(tmp_path / "runs"),
        "score": {"dev": str(tone_corpus.dev)},
        "runs": [{"name": "inter-ctc"}],
        "grid": {"seed": [1]},
    }
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def run(*arguments: str) -> int:
    return interkd("sweep", *arguments)


def test_from_nothing_to_a_report(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(sweep), "--list", "--only", "inter-*") == 0
    assert "1 waiting" in capsys.readouterr().out
    assert run(str(sweep), "--report") == 2
    assert "no results in" in capsys.readouterr().err
    assert run(str(sweep), "--devices", "cpu", "--jobs", "3") == 0
    first = capsys.readouterr().out
    assert "dev WER %" in first
    assert "Each head on dev" in first
    results = sweep.parent / "runs" / "results"
    written = sorted(path.name for path in results.iterdir())
    assert written == ["depth.png", "inter-ctc-seed1.json", "table.json", "table.md", "wer.png"]
    assert run(str(sweep), "--list") == 0
    assert "1 done" in capsys.readouterr().out
    for name in written[2:]:
        (results / name).unlink()
    assert run(str(sweep), "--report") == 0
    assert capsys.readouterr().out == first
    assert json.loads((results / "table.json").read_text())["rows"][0]["group"] == "inter-ctc"
    check_that_another_set_is_scored_without_training(sweep)


def check_that_another_set_is_scored_without_training(sweep: Path) -> None:
    result = sweep.parent / "runs" / "results" / "inter-ctc-seed1.json"
    log = sweep.parent / "runs" / "inter-ctc-seed1" / "log.jsonl"
    before, trained = json.loads(result.read_text()), log.read_bytes()
    values = yaml.safe_load(sweep.read_text())
    values["score"]["again"] = values["score"]["dev"]
    sweep.write_text(yaml.safe_dump(values))
    assert run(str(sweep)) == 0
    after = json.loads(result.read_text())
    assert after["scores"] == {**before["scores"], "again": before["scores"]["dev"]}
    assert {**after, "scores": None} == {**before, "scores": None}
    assert log.read_bytes() == trained


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.yaml"], "cannot read none.yaml"),
        ([], "Missing argument"),
        (["SWEEP", "--jobs", "0"], "Invalid value for '--jobs'"),
        (["SWEEP", "--minutes", "0"], "Invalid value for '--minutes'"),
        (["SWEEP", "--only", "inter-tc-seed1"], "did you mean 'inter-ctc-seed1'?"),
        (["SWEEP", "--devices", "gpu"], "unknown device"),
        (["SWEEP", "--list", "--report"], "--list and --report are two commands"),
        (["SWEEP", "--report", "--only", "inter-ctc"], "not --only some"),
        (["SWEEP", "--list", "--only", "ctc"], "no run fits 'ctc'"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    sweep: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*(str(sweep) if word == "SWEEP" else word for word in arguments)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_damaged_results_and_failing_runs(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = sweep.parent / "runs" / "results" / "inter-ctc-seed1.json"
    result.parent.mkdir(parents=True)
    result.write_text('{"format": 1, "na')
    for option in ("--list", "--report", "--jobs=1"):
        assert run(str(sweep), option) == 2
        assert f"{result} is not a run's result" in capsys.readouterr().err
    result.unlink()
    base = yaml.safe_load((sweep.parent / "base.yaml").read_text())
    broken = sweep.parent / "broken.jsonl"
    broken.write_text("{}")
    base["data"]["train_manifest"] = str(broken)
    (sweep.parent / "base.yaml").write_text(yaml.safe_dump(base))
    assert run(str(sweep)) == 1
    error = capsys.readouterr().err
    assert "failed: inter-ctc-seed1, exit code 2, log" in error
    assert "broken.jsonl" in error
    assert run(str(sweep), "--list") == 0
    assert "1 failed" in capsys.readouterr().out


def test_a_report_that_cannot_be_made_hides_nothing(
    sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (one,) = expand(read_sweep(sweep))
    outcome = SweepOutcome(done=[one], unfinished=[replace(one, name="other")], stopped=True)
    monkeypatch.setattr(command, "run_sweep", lambda *_, **__: outcome)

    def fail(_: object) -> None:
        raise ConfigError("teacher.dev: damaged")

    monkeypatch.setattr(command, "_report", fail)
    assert run(str(sweep)) == 3
    error = capsys.readouterr().err
    assert "no report: teacher.dev: damaged" in error
    assert "unfinished: other" in error
    outcome = SweepOutcome(done=[one])
    assert run(str(sweep)) == 2


def test_the_demo_s_sweep_names_what_the_demo_makes() -> None:
    folder = Path(__file__).parents[2] / "examples" / "demo"
    runs = expand(read_sweep(folder / "sweep.yaml"))
    assert len(runs) == 24
    made = Path("runs/demo")  # by run.py
    for one in runs:
        distilled = uses_teacher(one.config.objective)
        assert one.config.store == (made / "train.teacher.zarr" if distilled else None)
        assert one.config.data.train_manifest == made / "train" / "manifest.jsonl"
        assert one.config.out.parent == made / "sweep"
