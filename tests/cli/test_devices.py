"""`cache-teacher --devices`: a process each, one store; devices here are the CPU, twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from interkd.cli.main import main
from tests.students import conformer, save_untaught


@pytest.fixture(scope="module")
def arguments(tone_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Stage one with an untaught teacher in parts of a few seconds."""
    root = tmp_path_factory.mktemp("untaught teacher")
    save_untaught(root, conformer(16), tone_corpus.tokens)
    settings = {
        "teacher": f"interkd:{root}",
        "manifest": tone_corpus.train,
        "part-minutes": 0.1,
        "batch-seconds": 5,
    }
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]


def columns(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.rglob("*.zip")}


def test_two_processes_make_the_store_of_one(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["cache-teacher", *arguments, "--out", str(tmp_path / "one"), "--device", "cpu"])
    capsys.readouterr()
    main(["cache-teacher", *arguments, "--out", str(tmp_path / "two"), "--devices", "cpu,cpu"])
    assert "(0)" in capsys.readouterr().out  # the processes had made all parts
    logs = sorted(path.name for path in (tmp_path / "two.logs").iterdir())
    assert logs == ["0-cpu.txt", "1-cpu.txt"]
    one, two = columns(tmp_path / "one"), columns(tmp_path / "two")
    assert len(one) > 3
    assert sorted(one) == sorted(two)
    main(["cache", "verify", str(tmp_path / "two")])


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--devices", "cpu,nonsense"], "unknown device"),
        (["--devices", "cpu", "--device", "cpu"], "neither --device nor --cluster"),
        (["--devices", "cpu", "--mass", "2"], "mass"),
    ],
)
def test_mistakes(
    arguments: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    extra: list[str],
    message: str,
) -> None:
    with pytest.raises(SystemExit):
        main(["cache-teacher", *arguments, "--out", str(tmp_path / "store"), *extra])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_a_process_that_fails_is_named(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = ["--teacher", f"interkd:{tmp_path}", *arguments[2:]]
    with pytest.raises(SystemExit):
        main(["cache-teacher", *broken, "--out", str(tmp_path / "store"), "--devices", "cpu,cpu"])
    error = capsys.readouterr().err
    assert "cache-teacher on cpu ended with 2: " in error
    assert "no checkpoint" in error
