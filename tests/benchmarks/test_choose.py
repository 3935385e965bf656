"""The experiment's sweep is what dev liked best among the tuning's finished runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from interkd.pipeline.sweep.config import read_sweep
from interkd.pipeline.sweep.runs import expand

FOLDER = Path(__file__).parents[2] / "benchmarks" / "inter_kd"
TIMES = FOLDER / "results" / "h200-recipes.json"


def run_choose(out: Path, tunings: list[str], *options: str) -> str:
    """Chooses among those tries, with the sweep's base beside what is written."""
    (out.parent / "jasper.yaml").write_bytes((FOLDER / "jasper.yaml").read_bytes())
    command = [sys.executable, str(FOLDER / "choose.py")]
    command += [str(FOLDER / f"jasper-{name}.yaml") for name in tunings]
    done = subprocess.run(
        [*command, *options, "--out", str(out)],
        cwd=FOLDER.parents[1],  # where the sweep's results are
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def choose(out: Path, times: Path, *more: str) -> str:
    """Chooses among the first tries."""
    options = ["--epochs", "7", "--seeds", "1, 2", "--times", str(times)]
    return run_choose(out, ["first"], *options, *more)


def test_each_recipe_gets_its_best_settings(tmp_path: Path) -> None:
    out = tmp_path / "sweep.yaml"
    measured = json.loads(TIMES.read_text())["runs"]
    runs_of_steps = [run for run in measured if not run["recipe"].startswith("inter-ctc-")]
    runs_of_steps.append({"recipe": "inter-kd-conditioned", "ms": 8.9})
    times = tmp_path / "times.json"
    times.write_text(json.dumps({"runs": runs_of_steps}))
    said = choose(out, times)
    assert "inter-kd: inter-kd-l2: 62.19 % on dev, best of 2" in said
    sweep = read_sweep(out)
    assert {time.name: time.ms for time in sweep.ms_a_step}["inter-kd"] == 8.26
    runs = {run.name: run.config for run in expand(sweep)}
    assert runs["inter-kd-seed2"].objective.distill_weight == 2.0
    assert runs["inter-kd-seed2"].epochs == 7
    assert runs["inter-mass3-ntdk-seed1"].objective.distill_weight is None  # another loss's weight
    assert "inter-ctc-kl: left out" in said
    assert "inter-ctc-kl-seed1" not in runs
    fed_back = runs["inter-kd-conditioned-seed1"]
    assert fed_back.student.self_conditioned
    assert fed_back.objective == runs["inter-kd-seed1"].objective
    assert runs["ctc-seed1"].data.buckets == 20  # the first runs' batches are not taken over


def test_a_try_beyond_the_tuning_has_a_row_where_it_is_better(tmp_path: Path) -> None:
    out = tmp_path / "sweep.yaml"
    said = choose(out, TIMES, "--beyond", str(FOLDER / "jasper-more.yaml"))
    assert "inter-kd-kl-highest-drop: 43.84 % on dev, best of" in said
    runs = {run.name: run.config for run in expand(read_sweep(out))}
    better = runs["inter-kd-kl-highest-drop-seed2"]
    assert (better.objective.recipe, better.optimiser.learning_rate) == ("inter-kd-kl", 0.016)
    recipes = {entry.name for entry in read_sweep(out).runs} - {"inter-kd-kl-highest-drop"}
    said = choose(out, TIMES, "--beyond", str(FOLDER / "jasper-first.yaml"))
    assert "beyond the tuning" in said
    assert {entry.name for entry in read_sweep(out).runs} == recipes


def test_the_sweep_that_stands_is_what_its_command_makes(tmp_path: Path) -> None:
    out = tmp_path / "jasper-sweep.yaml"
    options = ["--beyond", str(FOLDER / "jasper-beyond.yaml"), "--epochs", "80"]
    run_choose(out, ["first", "tuning", "more"], *options, "--times", str(TIMES))
    assert out.read_text() == (FOLDER / "jasper-sweep.yaml").read_text()
