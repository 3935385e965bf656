"""Spike offsets: what the benchmark measured stays, and the report shows it by head."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from interkd.kernels.errors import ConfigError
from interkd.pipeline.scoring.spikes import SpikeOffsets, to_json
from interkd.pipeline.sweep.config import SweepConfig, read_sweep
from interkd.pipeline.sweep.report import report_sweep
from interkd.pipeline.sweep.runs import expand
from interkd.pipeline.sweep.tables import as_markdown, table_of_spikes

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "inter_kd" / "spikes.py"
WriteSweep = Callable[..., Path]
WriteResult = Callable[..., None]


def offsets(mean: float, same: float) -> SpikeOffsets:
    return SpikeOffsets(
        matched=9,
        student_tokens=10,
        teacher_tokens=11,
        mean_offset=mean,
        mean_absolute_offset=abs(mean),
        share_same_frame=same,
        share_within_one_frame=1.0,
        histogram={0: 9},
    )


@pytest.fixture
def sweep(write_sweep: WriteSweep, write_made_up: WriteResult) -> SweepConfig:
    config = read_sweep(write_sweep())
    for run in expand(config):
        write_made_up(run, rate=0.3)
    return config


def write_spikes(sweep: SweepConfig, found: Any) -> None:
    (sweep.results_folder / "spikes.json").write_text(json.dumps(found))


def test_means_over_seeds_by_head(sweep: SweepConfig) -> None:
    assert "Spikes" not in as_markdown(report_sweep(sweep, samples=50))
    both = {"layer1": offsets(2.0, 0.5), "final": offsets(-1.0, 0.9)}
    found = {
        "ctc-seed1": to_json(both),
        "ctc-seed2": to_json({**both, "final": offsets(0.0, 0.7)}),
        "inter-ctc-seed1": to_json(both),  # the other seed was not measured
    }
    write_spikes(sweep, found)
    report = report_sweep(sweep, samples=50)
    titles, rows = table_of_spikes(report)
    assert titles == ["run", "layer1", "final"]
    assert rows == [["ctc", "+2.00 (50 %)", "-0.50 (80 %)"], ["inter-ctc", "", ""]]
    assert "| ctc | +2.00 (50 %) | -0.50 (80 %) |" in as_markdown(report)


@pytest.mark.parametrize("found", [[], {"ctc-seed1": 3}])
def test_damage_is_named(sweep: SweepConfig, found: Any) -> None:
    write_spikes(sweep, found)
    with pytest.raises(ConfigError, match=r"spikes\.json is damaged"):
        report_sweep(sweep)


def test_what_was_measured_before_stays(
    sweep: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("spikes_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    run = expand(sweep)[1]
    run.config.out.mkdir(parents=True)
    (run.config.out / "best.json").write_text("{}")
    found = {"final": offsets(1.0, 0.5)}
    monkeypatch.setattr(script, "measure_spike_offsets", lambda *_, **__: found)
    monkeypatch.setattr(script, "load_student", lambda *_, **__: SimpleNamespace(model=None))
    monkeypatch.setattr(script, "TeacherStore", SimpleNamespace(open=lambda _: None))
    monkeypatch.setattr(script, "read_manifest", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["spikes.py", str(tmp_path / "sweep.yaml"), "m", "s"])
    before = to_json({"final": offsets(2.0, 0.5)})
    write_spikes(sweep, {"ctc-seed1": before, "ctc-seed2": before})
    script.main()
    written = json.loads((sweep.results_folder / "spikes.json").read_text())
    assert written == {"ctc-seed1": before, "ctc-seed2": to_json(found)}
