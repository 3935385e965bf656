"""Two groups of results beside each other: the figures of docs/results.md."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).parents[2] / "benchmarks" / "inter_kd" / "results"


def compare(results: str, baseline: str, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(RESULTS.parent / "compare.py"), results, baseline, *more]
    return subprocess.run(command, cwd=RESULTS, capture_output=True, text=True, check=False)


def test_heads_are_compared_where_both_have_them() -> None:
    done = compare("jasper/inter-kd-kl-seed*.json", "jasper/inter-ctc-kl-seed*.json")
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        f"{rate} of {head}"
        for rate in ("WER", "CER")
        for head in ("layer18", "layer24", "layer30", "final")
    ]
    assert lines[1].startswith("WER of layer24: 43.60 and 45.99 %, +5.2 % less (+")
    assert lines[3].startswith("WER of final: 39.35 and 40.13 %, +2.0 % less (-")


def test_of_other_heads_the_last_are_compared() -> None:
    done = compare("jasper/kl-seed*.json", "jasper/inter-kd-seed*.json", "--split", "dev")
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == [
        "WER of final",
        "CER of final",
    ]
    assert "% less (-" in done.stdout


def test_nothing_to_compare_is_said() -> None:
    done = compare("jasper/none-*.json", "jasper/kl-seed*.json")
    assert done.returncode == 1
    assert "no result fits jasper/none-*.json" in done.stderr
