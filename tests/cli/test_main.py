"""The front door: every error is one line and exit code 2."""

from __future__ import annotations

import pytest

from interkd.cli.main import COMMANDS, main


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return int(stopped.value.code or 0)


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        main([name, "--help"])
        assert "Usage: interkd" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "No such command"),
        (["cache-teacher"], "Missing option"),
        (["train-student", "--config", "none.yaml"], "cannot read none.yaml"),
        (["train-student", "--set", "outt=x"], "unknown setting 'outt'; did you mean 'out'?"),
        (["train-student", "--set", "objective.recipe=interkd"], "did you mean 'inter-kd'?"),
        (["train-teacher", "--set", "objective.recipe=skd"], "learns from transcripts alone"),
        (["cache-teacher", "--teacher", "x:y", "--manifest", "none", "--out", "o"], "none"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))
    if arguments[0].startswith("train") and "--config" not in arguments:
        arguments = [*arguments, "--set", "data.train_manifest=a", "--set", "data.dev_manifest=b"]
        arguments += ["--out", "run"]
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    if error.startswith("interkd: error"):
        assert error.count("\n") == 1
