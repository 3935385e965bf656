"""Training time in the report: GPU seconds, and the dev WER at equal ones or equal steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from interkd.kernels.errors import ConfigError
from interkd.pipeline.sweep.config import SweepConfig, read_sweep
from interkd.pipeline.sweep.report import report_sweep
from interkd.pipeline.sweep.results import RunResult
from interkd.pipeline.sweep.rows import Validated
from interkd.pipeline.sweep.runs import expand
from interkd.pipeline.sweep.tables import (
    as_markdown,
    table_of_budgets,
    table_of_groups,
    table_of_steps,
)

WriteSweep = Callable[..., Path]
WriteResult = Callable[..., None]
MakeResult = Callable[..., RunResult]
# Steps and own seconds of each validation; inter-ctc's GPU was shared.
MARKS = {
    "ctc": ((100, 10.0), (200, 20.0), (400, 40.0)),
    "inter-ctc": ((100, 40.0), (200, 80.0), (400, 160.0)),
}


def curve(marks: Sequence[tuple[int, float]], worst: float) -> tuple[Mapping[str, Any], ...]:
    return tuple(
        {
            "step": step,
            "epochs_done": place,
            "seconds": seconds,
            "dev_wer": {"layer1": 99.0, "final": worst - place},
        }
        for place, (step, seconds) in enumerate(marks)
    )


@pytest.fixture
def write(
    write_sweep: WriteSweep, write_made_up: WriteResult, made_up: MakeResult
) -> Callable[..., SweepConfig]:
    """A sweep whose WER falls by one at each validation, from 50 with the first seed."""

    def write(**changes: Any) -> SweepConfig:
        config = read_sweep(write_sweep(**changes))
        for run in expand(config):
            marks = MARKS[run.entry]
            steps, seconds = marks[-1]
            trained = replace(made_up(run, rate=0.3).trained, steps=steps, seconds=seconds)
            rows = curve(marks, 40.0 + 10 * run.config.seed)
            write_made_up(run, rate=0.3, trained=trained, curve=rows)
        return config

    return write


def test_a_steps_time_makes_gpu_seconds(write: Callable[..., SweepConfig]) -> None:
    sweep = write(ms_a_step={"ctc": 100, "inter-ctc": 120.0, "skd": 1})
    report = report_sweep(sweep, samples=50)
    ctc, inter = report.rows
    assert (ctc.gpu_seconds, inter.gpu_seconds) == (40.0, 48.0)
    assert report.budgets == (10.0, 20.0, 40.0)
    assert ctc.dev_wer_at == tuple(
        Validated(wer=wer, seconds=at) for wer, at in ((55.0, 10.0), (54.0, 20.0), (53.0, 40.0))
    )
    first = Validated(wer=55.0, seconds=12.0)
    assert inter.dev_wer_at == (None, first, Validated(wer=54.0, seconds=24.0))
    titles, rows = table_of_groups(report)
    assert titles[-2:] == ["seconds", "GPU s"]
    assert [row[-2:] for row in rows] == [["40", "40"], ["160", "48"]]
    assert table_of_budgets(report) == (
        ["run", "10 s", "20 s", "40 s"],
        [
            ["ctc", "55.00 (10 s)", "54.00 (20 s)", "53.00 (40 s)"],
            ["inter-ctc", "", "55.00 (12 s)", "54.00 (24 s)"],
        ],
    )
    assert table_of_steps(report) == (
        ["run", "100", "200", "400"],
        [["ctc", "55.00", "54.00", "53.00"], ["inter-ctc", "55.00", "54.00", "53.00"]],
    )
    assert "Dev WER % at equal GPU seconds" in as_markdown(report)
    assert "Dev WER % at equal steps" in as_markdown(report)


def test_without_it_the_runs_own_seconds_count(write: Callable[..., SweepConfig]) -> None:
    report = report_sweep(write(), samples=50)
    ctc, inter = report.rows
    assert ctc.gpu_seconds is None
    assert report.budgets == (10.0, 20.0, 40.0)
    assert inter.dev_wer_at == (None, None, Validated(wer=55.0, seconds=40.0))
    text = as_markdown(report)
    assert "GPU s |" not in text
    assert "Dev WER % at equal seconds" in text
    assert "Without ms_a_step the seconds are the runs' own" in text


def test_the_slowest_seed_of_the_first_group_is_done(
    write: Callable[..., SweepConfig], write_made_up: WriteResult, made_up: MakeResult
) -> None:
    sweep = write()
    slow = next(run for run in expand(sweep) if run.name == "ctc-seed2")
    trained = replace(made_up(slow, rate=0.3).trained, steps=400, seconds=44.0)
    rows = curve(((100, 11.0), (200, 22.0), (400, 44.0)), 60.0)
    write_made_up(slow, rate=0.3, trained=trained, curve=rows)
    report = report_sweep(sweep, samples=50)
    assert report.budgets == (11.0, 22.0, 44.0)
    assert report.rows[0].dev_wer_at[-1] == Validated(wer=53.0, seconds=42.0)


def test_equal_steps_are_those_of_the_group_that_makes_the_fewest(
    write: Callable[..., SweepConfig], write_made_up: WriteResult, made_up: MakeResult
) -> None:
    sweep = write()
    for run in expand(sweep):
        if run.entry == "ctc":
            trained = replace(made_up(run, rate=0.3).trained, steps=900, seconds=40.0)
            rows = curve(((150, 10.0), (300, 20.0), (900, 40.0)), 40.0 + 10 * run.config.seed)
            write_made_up(run, rate=0.3, trained=trained, curve=rows)
    report = report_sweep(sweep, samples=50)
    assert report.step_budgets == (100.0, 200.0, 400.0)
    ctc, inter = report.rows
    assert ctc.dev_wer_at_steps == (None, 55.0, 54.0)  # at 150 and 300 steps
    assert inter.dev_wer_at_steps == (55.0, 54.0, 53.0)


def test_a_seed_without_validation_leaves_its_group_empty(
    write: Callable[..., SweepConfig], write_made_up: WriteResult
) -> None:
    sweep = write()
    write_made_up(expand(sweep)[0], rate=0.3, curve=())
    row = report_sweep(sweep, samples=50).rows[0]
    assert row.dev_wer_at == (None, None, None)
    assert row.dev_wer_at_steps == (None, None, None)
    for run in expand(sweep):
        write_made_up(run, rate=0.3, curve=())
    assert "at equal" not in as_markdown(report_sweep(sweep, samples=50))


def test_every_recipe_needs_its_time(write: Callable[..., SweepConfig]) -> None:
    sweep = write(ms_a_step={"ctc": 9.7})
    with pytest.raises(ConfigError, match="no time of recipe 'inter-ctc', which run 'inter-ctc-s"):
        report_sweep(sweep)
