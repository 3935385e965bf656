"""Result files: what is written is read, and nothing else counts as done."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from interkd.kernels.errors import ConfigError
from interkd.pipeline.sweep.config import read_sweep
from interkd.pipeline.sweep.results import RunResult, finished_result, read_result, write_result
from interkd.pipeline.sweep.runs import Run, expand, stored_settings
from interkd.pipeline.sweep.scores import UnitCounts
from interkd.pipeline.training.run_folder import SETTINGS_FILE

WriteSweep = Callable[..., Path]
MakeResult = Callable[..., RunResult]
WriteResult = Callable[..., None]
KNOWN = {"dev": "m", "test": "m"}


@pytest.fixture
def run(write_sweep: WriteSweep) -> Run:
    return expand(read_sweep(write_sweep()))[0]


def test_what_is_written_is_read(run: Run, made_up: MakeResult) -> None:
    result = made_up(run, rate=0.2)
    write_result(run.result, result)
    row = {**result.curve[0], "dev_wer": {"layer1": 90.0, "final": 80.1235}}
    assert read_result(run.result) == replace(result, curve=(row,))
    assert finished_result(run, KNOWN) == read_result(run.result)


def test_numbers_stand_on_one_line_and_the_file_is_small(run: Run, made_up: MakeResult) -> None:
    result = made_up(run, rate=0.2)
    head = result.scores["test"].heads[0]
    many = UnitCounts(errors=(12,) * 330, lengths=(123,) * 330)
    heads = tuple(replace(head, name=f"layer{i}", words=many, characters=many) for i in range(1, 5))
    scores = {split: replace(score, heads=heads) for split, score in result.scores.items()}
    rates = {f"layer{i}": 12.345678 for i in range(1, 5)}
    row = {"step": 1, "epochs_done": 1, "seconds": 1.5, "dev_wer": rates, "dev_cer": rates}
    write_result(run.result, replace(result, scores=scores, curve=(row,) * 50))
    text = run.result.read_text()
    assert len(text) < 60_000
    assert sum("[12,12,12" in line for line in text.splitlines()) == 16
    assert json.loads(text)["scores"]["dev"]["heads"][0]["wer"] == round(100 * 12 / 123, 4)


def test_no_file_and_half_a_file(run: Run, write_made_up: WriteResult) -> None:
    assert finished_result(run, KNOWN) is None
    write_made_up(run, rate=0.2)
    text = run.result.read_text()
    run.result.write_text(text[: len(text) // 2])
    with pytest.raises(ConfigError, match=r"ctc-seed1.json is not a run's result.*remove it"):
        finished_result(run, KNOWN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "result format; expected 1, got 2"),
        ({"scores": 3}, "is damaged"),
        ({"trained": {}}, "is damaged"),
        ({"settings": None}, "is damaged"),
    ],
)
def test_damage_is_named(
    run: Run, change: dict[str, Any], message: str, write_made_up: WriteResult
) -> None:
    write_made_up(run, rate=0.2)
    value = json.loads(run.result.read_text())
    run.result.write_text(json.dumps({**value, **change}))
    with pytest.raises(ConfigError, match=message):
        finished_result(run, KNOWN)


def test_a_list_cut_short_is_damage(run: Run, write_made_up: WriteResult) -> None:
    write_made_up(run, rate=0.2)
    value = json.loads(run.result.read_text())
    value["scores"]["test"]["heads"][0]["words"]["errors"].pop()
    run.result.write_text(json.dumps(value))
    with pytest.raises(ConfigError, match="do not belong together"):
        finished_result(run, KNOWN)


def test_other_settings_are_refused(
    run: Run, write_sweep: WriteSweep, write_made_up: WriteResult
) -> None:
    write_made_up(run, rate=0.2)
    changed = {"epochs": 7, "dev_every": 2, "precision": "bfloat16", "average_epochs": 2}
    other = expand(read_sweep(write_sweep(changed)))[0]
    message = (
        r"run 'ctc-seed1' has a result with other settings; got epochs: 2 -> 7, "
        r"precision: float32 -> bfloat16, average_epochs: 0 -> 2 and 1 more; remove .*ctc-seed1"
    )
    with pytest.raises(ConfigError, match=message):
        finished_result(other, KNOWN)


def test_a_setting_that_came_later_at_its_default_is_the_same(
    run: Run, write_made_up: WriteResult
) -> None:
    settings = {k: v for k, v in stored_settings(run.config).items() if k != "average_epochs"}
    write_made_up(run, rate=0.2, settings=settings)
    assert finished_result(run, KNOWN) is not None


def test_other_manifests_are_refused(run: Run, write_made_up: WriteResult) -> None:
    write_made_up(run, rate=0.2)
    with pytest.raises(ConfigError, match=r"another 'test' manifest.*scored again"):
        finished_result(run, {"dev": "m", "test": "new"})
    assert finished_result(run, {"dev": None, "test": None}) is not None


def test_a_set_that_came_later_is_scored_from_the_checkpoint(
    run: Run, write_made_up: WriteResult
) -> None:
    write_made_up(run, rate=0.2)
    message = r"has a result without scores of third; got no checkpoint .*to train again"
    with pytest.raises(ConfigError, match=message):
        finished_result(run, {**KNOWN, "third": None})
    run.config.out.mkdir(parents=True)
    (run.config.out / SETTINGS_FILE).write_text("")
    assert finished_result(run, {**KNOWN, "third": None}) is None
    with pytest.raises(ConfigError, match="another 'test' manifest"):
        finished_result(run, {"test": "new", "third": None})
