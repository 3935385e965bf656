"""Table and plots from results that nobody trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from interkd.kernels.errors import ConfigError, CorpusError
from interkd.pipeline.sweep.config import SweepConfig, read_sweep
from interkd.pipeline.sweep.intervals import interval, resampled_rates
from interkd.pipeline.sweep.plots import plot_depth, plot_wer
from interkd.pipeline.sweep.report import report_sweep
from interkd.pipeline.sweep.results import RunResult, read_result
from interkd.pipeline.sweep.runs import expand
from interkd.pipeline.sweep.tables import as_markdown, table_of_heads, write_report

WriteSweep = Callable[..., Path]
MakeResult = Callable[..., RunResult]
WriteResult = Callable[..., None]
RATES = {"ctc": 0.3, "inter-ctc": 0.2}


@pytest.fixture
def sweep(write_sweep: WriteSweep, write_made_up: WriteResult) -> SweepConfig:
    config = read_sweep(write_sweep())
    for run in expand(config):
        write_made_up(run, rate=RATES[run.entry])
    return config


def test_rows_are_means_over_seeds(sweep: SweepConfig) -> None:
    report = report_sweep(sweep, samples=2_000)
    assert [row.group for row in report.rows] == ["ctc", "inter-ctc"]
    assert report.split == "test"
    assert report.missing == ()
    for row in report.rows:
        results = [read_result(sweep.results_folder / f"{row.group}-seed{s}.json") for s in (1, 2)]
        finals = [result.scores["test"].heads[-1] for result in results]
        rates = [100 * sum(f.words.errors) / sum(f.words.lengths) for f in finals]
        assert row.seeds == (1, 2)
        assert row.wer_of_seeds == pytest.approx(rates)
        assert row.wer.value == pytest.approx(np.mean(rates))
        assert row.wer.low < row.wer.value < row.wer.high
        assert row.cer.value == pytest.approx(np.mean([f.characters.rate for f in finals]))
        assert row.cer.low < row.cer.value < row.cer.high
        assert row.other_wer == pytest.approx({"dev": np.mean(rates)})
        assert (row.heads[-1].wer, row.heads[-1].cer) == (row.wer, row.cer)
        assert (row.steps, row.seconds) == (12, 30)


def test_each_head_has_intervals_of_its_own_counts(sweep: SweepConfig) -> None:
    report = report_sweep(sweep, samples=2_000)
    for row in report.rows:
        results = [read_result(sweep.results_folder / f"{row.group}-seed{s}.json") for s in (1, 2)]
        for place, head in enumerate(row.heads):
            scores = [result.scores["test"].heads[place] for result in results]
            for found, counts in (
                (head.wer, [score.words for score in scores]),
                (head.cer, [score.characters for score in scores]),
            ):
                errors = {row.group: [count.errors for count in counts]}
                drawn = resampled_rates(errors, counts[0].lengths, samples=2_000)[row.group]
                assert found.value == pytest.approx(np.mean([count.rate for count in counts]))
                assert (found.low, found.high) == pytest.approx(interval(drawn))
    _, cells = table_of_heads(report)
    final = report.rows[0].heads[-1]
    assert cells[0][3] == f"{final.wer.value:.2f} ({final.wer.low:.1f} to {final.wer.high:.1f})"
    assert cells[1][3] == f"{final.cer.value:.2f} ({final.cer.low:.1f} to {final.cer.high:.1f})"


def test_reduction_against_the_baseline(sweep: SweepConfig) -> None:
    ctc, inter = report_sweep(sweep, samples=2_000).rows
    assert ctc.reductions == {"ctc": None}
    reduction = inter.reductions["ctc"]
    assert reduction is not None
    assert reduction.value == pytest.approx(100 * (1 - inter.wer.value / ctc.wer.value))
    assert reduction.low < reduction.value < reduction.high


def test_baseline_under_the_same_grid_part(
    write_sweep: WriteSweep, write_made_up: WriteResult
) -> None:
    grid = {"seed": [1], "optimiser.learning_rate": [0.1, 0.2]}
    sweep = read_sweep(write_sweep(grid=grid))
    for run in expand(sweep):
        factor = 1 if run.config.optimiser.learning_rate == 0.1 else 2
        write_made_up(run, rate=factor * RATES[run.entry])
    rows = {row.group: row for row in report_sweep(sweep, samples=500).rows}
    for part in ("learning_rate0.1", "learning_rate0.2"):
        reduction = rows[f"inter-ctc-{part}"].reductions["ctc"]
        assert reduction is not None
        wer, base = rows[f"inter-ctc-{part}"].wer.value, rows[f"ctc-{part}"].wer.value
        assert reduction.value == pytest.approx(100 * (1 - wer / base))
        assert rows[f"ctc-{part}"].reductions["ctc"] is None


def test_missing_runs_are_named_and_the_rest_reported(sweep: SweepConfig) -> None:
    for name in ("ctc-seed1", "ctc-seed2", "inter-ctc-seed2"):
        (sweep.results_folder / f"{name}.json").unlink()
    report = report_sweep(sweep, samples=500)
    (row,) = report.rows
    assert (row.group, row.seeds) == ("inter-ctc", (1,))
    assert row.reductions == {"ctc": None}
    assert report.missing == ("ctc-seed1", "ctc-seed2", "inter-ctc-seed2")
    assert "No result yet: ctc-seed1, ctc-seed2, inter-ctc-seed2." in as_markdown(report)
    (sweep.results_folder / "inter-ctc-seed1.json").unlink()
    with pytest.raises(ConfigError, match="no results in"):
        report_sweep(sweep)


def test_files(sweep: SweepConfig) -> None:
    (sweep.results_folder / ".x.json.host.1.tmp").write_text("{")
    report = report_sweep(sweep, samples=500)
    paths = write_report(sweep.results_folder, report)
    assert [path.name for path in paths] == ["table.json", "table.md", "wer.png", "depth.png"]
    table = json.loads(paths[0].read_text())
    assert table["format"] == 2
    head = report.rows[0].heads[0]
    assert table["rows"][0]["heads"][0]["cer"]["high"] == head.cer.high
    assert table["rows"][0]["cer"]["low"] == report.rows[0].cer.low
    assert table["rows"][1]["reductions"]["ctc"]["low"] == report.rows[1].reductions["ctc"].low  # type: ignore[union-attr]
    lines = paths[1].read_text().splitlines()
    assert lines[0] == (
        "| run | seeds | test WER % | 95 % interval | CER % | 95 % interval | dev WER % "
        "| less than ctc, % | steps | seconds |"
    )
    assert lines[2].startswith("| ctc | 2 | ")
    assert lines[3].startswith("| inter-ctc | 2 | ")
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths[2:])
    again = report_sweep(sweep, samples=500)
    assert as_markdown(again) == as_markdown(report)


def test_the_plots_say_which_group_has_fewer_seeds(sweep: SweepConfig) -> None:
    (sweep.results_folder / "inter-ctc-seed2.json").unlink()
    report = report_sweep(sweep, samples=100)
    named = ["ctc", "inter-ctc (1 of 2 seeds)"]
    assert [tick.get_text() for tick in plot_wer(report).axes[0].get_yticklabels()] == named
    assert [text.get_text() for text in plot_depth(report).legends[0].get_texts()] == named


def test_heads_of_different_students_share_a_table(
    sweep: SweepConfig, made_up: MakeResult, write_made_up: WriteResult
) -> None:
    for run in expand(sweep):
        result = made_up(run, rate=0.3)
        if run.entry == "ctc":
            scores = {
                split: replace(score, heads=score.heads[-1:])
                for split, score in result.scores.items()
            }
            write_made_up(run, rate=0.3, scores=scores)
    report = report_sweep(sweep, samples=100)
    titles, (ctc, _, inter, inter_cer) = table_of_heads(report)
    assert titles == ["run", "%", "layer1", "final", "weights"]
    assert ctc[:3] == ["ctc", "WER", ""]
    assert inter_cer[:2] == ["", "CER"]
    for row in (inter, inter_cer):
        assert float(row[2].split()[0]) > float(row[3].split()[0])


def test_without_a_test_split_the_last_one_counts(
    write_sweep: WriteSweep, sweep: SweepConfig, made_up: MakeResult, write_made_up: WriteResult
) -> None:
    score = {split: str(scored.manifest) for split, scored in zip("ab", sweep.score, strict=True)}
    other = read_sweep(write_sweep(score=score))
    for run in expand(other):
        write_made_up(run, rate=0.2, scores=made_up(run, rate=0.2, splits=("a", "b")).scores)
    report = report_sweep(other, samples=100)
    assert report.split == "b"
    assert list(report.rows[0].other_wer) == ["a"]


def test_different_sets_are_not_compared(
    sweep: SweepConfig, made_up: MakeResult, write_made_up: WriteResult
) -> None:
    run = expand(sweep)[-1]
    scores = made_up(run, rate=0.2).scores
    for split in ("dev", "test"):
        # Other utterances, or the same ones of other audio.
        for other in (
            replace(scores[split], utterances="others"),
            replace(scores[split], manifest="noisy"),
        ):
            write_made_up(run, rate=0.2, scores={**scores, split: other})
            expected = f"'ctc-seed1' and 'inter-ctc-seed2' were scored on different '{split}' sets"
            with pytest.raises(CorpusError, match=expected):
                report_sweep(sweep)
