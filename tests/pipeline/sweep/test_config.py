"""A sweep's YAML and the runs it means: names, groups, settings, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from interkd.kernels.errors import ConfigError
from interkd.pipeline.sweep.config import read_sweep
from interkd.pipeline.sweep.runs import (
    completed,
    differences,
    expand,
    ms_a_step,
    select,
    settings_digest,
    stored_settings,
)

WriteSweep = Callable[..., Path]


def test_grid_multiplies_every_run(write_sweep: WriteSweep, tmp_path: Path) -> None:
    sweep = read_sweep(
        write_sweep(grid={"objective.distill_weight": [0.25, None], "seed": [1, 2]}, results=None)
    )
    runs = expand(sweep)
    assert [(run.name, run.group) for run in runs[:4]] == [
        ("ctc-distill_weight0.25-seed1", "ctc-distill_weight0.25"),
        ("ctc-distill_weight0.25-seed2", "ctc-distill_weight0.25"),
        ("ctc-distill_weightnull-seed1", "ctc-distill_weightnull"),
        ("ctc-distill_weightnull-seed2", "ctc-distill_weightnull"),
    ]
    assert len(runs) == 8
    first = runs[0]
    assert first.config.objective.recipe == "ctc"
    assert first.config.objective.distill_weight == 0.25
    assert first.config.seed == 1
    assert first.config.out == tmp_path / "runs" / first.name
    assert first.log == tmp_path / "runs" / f"{first.name}.txt"
    assert first.result == tmp_path / "runs" / "results" / f"{first.name}.json"
    assert runs[-1].config.objective.recipe == "inter-ctc"
    assert runs[-1].config.objective.distill_weight is None


def test_without_runs_and_grid_the_file_names_the_one_run(write_sweep: WriteSweep) -> None:
    (run,) = expand(read_sweep(write_sweep(runs=None, grid=None, baselines=None)))
    assert (run.name, run.group, run.config.seed) == ("sweep", "sweep", 1)


def test_sections_in_set_change_only_what_they_name(write_sweep: WriteSweep) -> None:
    changes = {"student": {"conformer": {"layers": 3}}, "spec_augment": {}}
    (run,) = expand(
        read_sweep(write_sweep(runs=[{"name": "a", "set": changes}], grid=None, baselines=None))
    )
    assert run.config.student.conformer.layers == 3
    assert run.config.student.conformer.dim == 16
    assert run.config.spec_augment is not None
    assert run.config.spec_augment.time_masks == 5


def test_values_reach_the_run_as_they_stand_in_the_file(write_sweep: WriteSweep) -> None:
    path = write_sweep(grid=None, baselines=None, runs=[{"name": "a"}])
    text = (
        path.read_text() + "grid: {student.head_layers: [[1], []], optimiser.betas: [[9e-1, 1e-5]]}"
    )
    path.write_text(text)
    first, second = expand(read_sweep(path))
    assert first.config.student.head_layers == (1,)
    assert second.config.student.head_layers == ()
    assert first.config.optimiser.betas == (0.9, 1e-5)
    assert first.name == "a-head_layers1-betas0.9_1e-05"
    assert second.name == "a-head_layers-betas0.9_1e-05"


def test_digest_ignores_what_does_not_change_the_result(write_sweep: WriteSweep) -> None:
    def digest(base: dict[str, Any]) -> str:
        return expand(read_sweep(write_sweep(base)))[0].digest

    plain = digest({})
    same = {"device": "cuda:1", "checkpoint_minutes": 1, "stop_signal": "SIGTERM", "out": "x"}
    assert digest(same) == plain
    assert digest({"epochs": 3}) != plain
    assert digest({"optimiser": {"learning_rate": 1e-3}}) != plain
    run = expand(read_sweep(write_sweep()))[0]
    settings = stored_settings(run.config)
    data = settings["data"]
    other = {**data, "decode_threads": 9, "audio_memory_gb": 1.0, "prefetch_batches": 1}
    assert settings_digest({**settings, "data": other}) == plain
    # A store that does not fit is drawn from part by part.
    for change in ({"buckets": 9}, {"store_memory_gb": 1.0}):
        assert settings_digest({**settings, "data": {**data, **change}}) != plain


def test_settings_of_an_older_version_are_completed(write_sweep: WriteSweep) -> None:
    run = expand(read_sweep(write_sweep()))[0]
    settings = stored_settings(run.config)
    older = {key: value for key, value in settings.items() if key != "average_epochs"}
    assert settings_digest(older) != run.digest
    assert settings_digest(completed(older)) == run.digest
    assert completed({**settings, "gone": 1})["gone"] == 1
    assert differences(older, settings) == ["average_epochs: absent -> 0"]


def test_only_takes_names_groups_and_patterns(write_sweep: WriteSweep) -> None:
    runs = expand(read_sweep(write_sweep()))
    names = [run.name for run in select(runs, ["ctc", "*-seed2"])]
    assert names == ["ctc-seed1", "ctc-seed2", "inter-ctc-seed2"]
    assert select(runs, []) == runs
    with pytest.raises(ConfigError, match=r"no run fits 'ctc-sed1'.*did you mean 'ctc-seed1'"):
        select(runs, ["ctc-sed1"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"job": 3}, "unknown setting 'job'; did you mean 'jobs'?"),
        ({"jobs": 0}, "jobs; expected at least 1, got 0"),
        ({"out": None}, "missing setting 'out'"),
        ({"score": None}, "missing setting 'score'"),
        ({"score": {}}, "score; expected at least one split"),
        ({"score": "dev.jsonl"}, "setting 'score'; expected a mapping, got 'dev.jsonl'"),
        ({"score": {"dev": 3}}, "expected Path, got 3"),
        ({"score": {"a/b": "x"}}, "score: name; expected letters"),
        ({"baselines": ["cct"]}, "unknown baseline.*did you mean 'ctc'?"),
        ({"runs": {"name": "a"}}, "setting 'runs'; expected a list"),
        ({"runs": []}, "setting 'runs'; expected at least one run"),
        ({"runs": ["ctc"]}, r"setting 'runs\[0\]'; expected a mapping, got 'ctc'"),
        ({"runs": [{"set": {}}]}, r"missing setting 'runs\[0\].name'"),
        ({"runs": [{"name": "a", "sett": {}}]}, r"'runs\[0\].sett'; did you mean 'set'?"),
        ({"runs": [{"name": "a", "set": [1]}]}, r"setting 'runs\[0\].set'; expected a mapping"),
        ({"runs": [{"name": "a", "set": {"out": "x"}}]}, "'out'; each run's folder follows"),
        ({"runs": [{"name": "../a"}]}, "runs: name; expected letters"),
        ({"runs": [{"name": "table"}]}, "not results, table, spikes, teacher, got 'table'"),
        ({"runs": [{"name": "spikes"}]}, "not results, table, spikes, teacher, got 'spikes'"),
        ({"teacher": "x"}, "setting 'teacher'; expected a mapping"),
        ({"teacher": {"tset": "x"}}, "unknown teacher split; expected dev | test, got 'tset'"),
        ({"teacher": {"dev": "x"}}, "teacher; expected its score on 'test'.*got dev"),
        ({"teacher": {"test": 3}}, r"setting 'teacher\[0\].path'; expected Path, got 3"),
        ({"ms_a_step": [9.7]}, "setting 'ms_a_step'; expected a mapping"),
        ({"ms_a_step": {"cct": 9.7}}, "unknown ms_a_step recipe or run.*did you mean 'ctc'"),
        ({"ms_a_step": {"ctc": 0}}, "ms_a_step.ctc: ms; expected above 0, got 0"),
        ({"runs": [{"name": "a"}, {"name": "a"}]}, "two runs are named 'a'"),
        ({"grid": [1]}, "setting 'grid'; expected a mapping"),
        ({"grid": {"seed": 3}}, "setting 'grid.seed'; expected a list, got 3"),
        ({"grid": {"seed": []}}, "setting 'grid.seed'; expected a list"),
        ({"grid": {"objective": [{"recipe": "ctc"}]}}, "sections that vary are runs"),
        ({"grid": {"seed": [1, 1]}}, "two runs of the sweep are named 'ctc-seed1'"),
        ({"grid": {"sed": [1]}}, "run 'ctc-sed1': unknown setting 'sed'; did you mean 'seed'"),
        ({"grid": {"seed": ["x"]}}, "run 'ctc-seedx': setting 'seed'; expected int, got 'x'"),
        ({"grid": {"objective.recipe": ["cct"]}}, "run 'ctc-recipecct': unknown objective.recipe"),
        ({"base": "none.yaml"}, "cannot read .*none.yaml"),
    ],
)
def test_mistakes_name_their_place(
    write_sweep: WriteSweep, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        expand(read_sweep(write_sweep(**{"baselines": None, **changes})))


def test_the_teacher_and_the_time_of_a_step(write_sweep: WriteSweep) -> None:
    path = write_sweep(teacher={"test": "a.trn", "dev": "b"}, ms_a_step={"ctc": 9, "skd": 10.5})
    sweep = read_sweep(path)
    assert [(t.split, t.path) for t in sweep.teacher] == [
        ("test", Path("a.trn")),
        ("dev", Path("b")),
    ]
    assert [(time.name, time.ms) for time in sweep.ms_a_step] == [("ctc", 9.0), ("skd", 10.5)]
    assert sweep.main_split == "test"
    entries = [{"name": "plain"}, {"name": "fed-back", "set": {"student.self_conditioned": True}}]
    sweep = read_sweep(
        write_sweep(runs=entries, baselines=[], ms_a_step={"inter-ctc": 8.2, "fed-back": 8.8})
    )
    assert [ms_a_step(sweep, run) for run in expand(sweep)] == [8.2, 8.2, 8.8, 8.8]


def test_the_base_is_beside_the_sweep(
    write_sweep: WriteSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_sweep(out="here/runs")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    sweep = read_sweep(path)
    assert sweep.base == tmp_path / "base.yaml"
    assert sweep.out == Path("here/runs")
    assert yaml.safe_load(sweep.base.read_text())["epochs"] == 2
