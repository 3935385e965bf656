"""The experiment's sweep is what dev liked best among the tuning's finished runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from interkd.pipeline.sweep.config import read_sweep
from interkd.pipeline.sweep.runs import expand

FOLDER = Path(__file__).parents[2] / "benchmarks" / "inter_kd"


def test_each_recipe_gets_its_best_settings(tmp_path: Path) -> None:
    out = tmp_path / "sweep.yaml"
    (tmp_path / "jasper.yaml").write_bytes((FOLDER / "jasper.yaml").read_bytes())
    measured = json.loads((FOLDER / "results" / "h200-recipes.json").read_text())["runs"]
    runs_of_steps = [run for run in measured if not run["recipe"].startswith("inter-ctc-")]
    runs_of_steps.append({"recipe": "inter-kd-conditioned", "ms": 8.9})
    times = tmp_path / "times.json"
    times.write_text(json.dumps({"runs": runs_of_steps}))
    command = [sys.executable, str(FOLDER / "choose.py"), str(FOLDER / "jasper-first.yaml")]
    command += ["--epochs", "7", "--seeds", "1, 2", "--times", str(times), "--out", str(out)]
    done = subprocess.run(
        command,
        cwd=FOLDER.parents[1],  # where the sweep's results are
        capture_output=True,
        text=True,
        check=True,
    )
    assert "inter-kd: inter-kd-l2: 62.19 % on dev, best of 2" in done.stdout
    sweep = read_sweep(out)
    assert {time.name: time.ms for time in sweep.ms_a_step}["inter-kd"] == 8.26
    runs = {run.name: run.config for run in expand(sweep)}
    assert runs["inter-kd-seed2"].objective.distill_weight == 2.0
    assert runs["inter-kd-seed2"].epochs == 7
    assert runs["inter-mass3-ntdk-seed1"].objective.distill_weight is None  # another loss's weight
    assert "inter-ctc-kl: left out" in done.stdout
    assert "inter-ctc-kl-seed1" not in runs
    fed_back = runs["inter-kd-conditioned-seed1"]
    assert fed_back.student.self_conditioned
    assert fed_back.objective == runs["inter-kd-seed1"].objective
    assert runs["ctc-seed1"].data.buckets == 20  # the first runs' batches are not taken over
