"""The experiment's results stand by themselves: each report is made from what is committed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from interkd.pipeline.sweep.config import read_sweep
from interkd.pipeline.sweep.report import report_sweep

ROOT = Path(__file__).parents[2]
SWEEPS = {
    path.stem: path
    for path in sorted((ROOT / "benchmarks" / "inter_kd").glob("*.yaml"))
    if "results: benchmarks/" in path.read_text(encoding="utf-8")
}
TABLES = ("conformer-sweep", "jasper-sweep")


def test_every_folder_of_results_has_its_sweep() -> None:
    named = {read_sweep(path).results_folder.name for path in SWEEPS.values()}
    there = {path.parent.name for path in ROOT.glob("benchmarks/inter_kd/results/*/*.json")}
    assert there <= named


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_is_reported_without_its_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = read_sweep(SWEEPS[name])
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    monkeypatch.chdir(tmp_path)  # where no run, no manifest and no teacher's transcript is
    report = report_sweep(sweep, samples=20)
    assert report.rows
    assert (report.teacher is not None) == bool(sweep.teacher)
    if name in TABLES:
        table = json.loads((sweep.results_folder / "table.json").read_text(encoding="utf-8"))
        kept = [(row["group"], row["wer"]["value"], row["gpu_seconds"]) for row in table["rows"]]
        assert kept == [
            (row.group, pytest.approx(row.wer.value), pytest.approx(row.gpu_seconds))
            for row in report.rows
        ]
