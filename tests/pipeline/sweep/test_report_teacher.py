"""The teacher's row: from transcripts or a score report, compared where that is possible."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from interkd.kernels.errors import ConfigError
from interkd.pipeline.corpus.manifest import read_manifest
from interkd.pipeline.scoring.error_rates import count_errors_each
from interkd.pipeline.scoring.report import HeadResult, HeadResults, ScoredUtterance, write_report
from interkd.pipeline.scoring.score import summarise
from interkd.pipeline.scoring.trn import format_trn
from interkd.pipeline.sweep.config import SweepConfig, read_sweep
from interkd.pipeline.sweep.plots import plot_wer
from interkd.pipeline.sweep.report import report_sweep
from interkd.pipeline.sweep.report_inputs import (
    TEACHER_FILE,
    keep_teacher_scores,
    teacher_scores,
)
from interkd.pipeline.sweep.runs import expand
from interkd.pipeline.sweep.scores import HeadScore, SplitScore, UnitCounts, split_score
from interkd.pipeline.sweep.tables import as_markdown, table_of_groups

WriteSweep = Callable[..., Path]
WriteResult = Callable[..., None]


def heard(manifest: Path) -> HeadResults:
    """Every utterance without its first word."""
    utterances = read_manifest(manifest).utterances
    references = [utterance.text for utterance in utterances]
    hypotheses = [" ".join(text.split()[1:]) for text in references]
    head = HeadResult(
        name="final",
        weight_count=70,
        hypotheses=tuple(hypotheses),
        words=tuple(count_errors_each(references, hypotheses)),
        characters=tuple(count_errors_each(references, hypotheses, unit="character")),
    )
    scored = tuple(
        ScoredUtterance(utt_id=u.utt_id, speaker="", audio_seconds=1.0, reference=u.text)
        for u in utterances
    )
    return HeadResults(utterances=scored, heads=(head,), model_seconds=1.0)


def worse(score: SplitScore) -> SplitScore:
    """Two heads with every word wrong."""

    def all_wrong(counts: UnitCounts) -> UnitCounts:
        return UnitCounts(errors=counts.lengths, lengths=counts.lengths)

    final = score.heads[-1]
    words, characters = all_wrong(final.words), all_wrong(final.characters)
    heads = (
        HeadScore(name="layer1", weight_count=1, words=words, characters=characters),
        HeadScore(name="final", weight_count=2, words=words, characters=characters),
    )
    return replace(score, heads=heads)


@pytest.fixture
def sweep(
    write_sweep: WriteSweep, write_made_up: WriteResult, tmp_path: Path, tone_corpus: Any
) -> SweepConfig:
    """Students that get every word of the real manifests wrong, beside a teacher's transcripts."""
    teacher = {}
    for split, manifest in (("dev", tone_corpus.dev), ("test", tone_corpus.train)):
        results = heard(manifest)
        ids = [utterance.utt_id for utterance in results.utterances]
        teacher[split] = str(tmp_path / f"{split}.trn")
        Path(teacher[split]).write_text(format_trn(ids, results.final.hypotheses))
    config = read_sweep(write_sweep(teacher=teacher))
    for run in expand(config):
        scores = {
            scored.split: worse(split_score(heard(scored.manifest), "m")) for scored in config.score
        }
        write_made_up(run, rate=0.3, scores=scores)
    return config


def test_transcripts_on_the_same_utterances_are_compared(
    sweep: SweepConfig, tone_corpus: Any
) -> None:
    report = report_sweep(sweep, samples=500)
    final = heard(tone_corpus.train).final
    teacher = report.teacher
    assert teacher is not None
    assert teacher.is_paired
    assert teacher.wer.value == pytest.approx(final.word_total.rate)
    assert teacher.cer.value == pytest.approx(final.character_total.rate)
    assert teacher.wer.low < teacher.wer.value < teacher.wer.high
    assert teacher.cer.low < teacher.cer.value < teacher.cer.high
    assert teacher.other_wer == {"dev": pytest.approx(heard(tone_corpus.dev).final.word_total.rate)}
    less = teacher.reductions["ctc"]
    assert less is not None
    assert less.value == pytest.approx(100 - teacher.wer.value)
    # Students are always wrong: in each resample the reduction is what the teacher got right.
    assert (less.low, less.high) == pytest.approx((100 - teacher.wer.high, 100 - teacher.wer.low))
    titles, rows = table_of_groups(report)
    assert [row[0] for row in rows] == ["ctc", "inter-ctc", "teacher"]
    assert {len(row) for row in rows} == {len(titles)}
    assert rows[-1][2] == f"{teacher.wer.value:.2f}"
    assert "| teacher |  | " in as_markdown(report)


def test_a_score_report_is_the_same_teacher(
    sweep: SweepConfig, write_sweep: WriteSweep, tmp_path: Path, tone_corpus: Any
) -> None:
    folder = tmp_path / "score"
    folder.mkdir()
    scored = summarise(heard(tone_corpus.train), student="t", manifest="x", device="cpu")
    write_report(folder / "report.json", scored)
    from_trn = report_sweep(sweep, samples=200).teacher
    assert from_trn is not None
    for path in (folder, folder / "report.json"):
        other = read_sweep(write_sweep(teacher={"test": str(path)}))
        assert report_sweep(other, samples=200).teacher == replace(from_trn, other_wer={})


def test_results_are_reported_where_the_teachers_files_are_not(sweep: SweepConfig) -> None:
    whole = report_sweep(sweep, samples=200)
    keep_teacher_scores(sweep, teacher_scores(sweep))
    sweep.teacher[1].path.unlink()
    assert report_sweep(sweep, samples=200) == whole
    kept = sweep.results_folder / TEACHER_FILE
    kept.write_text('{"dev": {}}')
    with pytest.raises(ConfigError, match=r"teacher.json is damaged"):
        report_sweep(sweep)


def test_other_utterances_are_not_compared(
    write_sweep: WriteSweep, write_made_up: WriteResult, sweep: SweepConfig
) -> None:
    paired = report_sweep(sweep, samples=200).teacher
    for run in expand(sweep):
        write_made_up(run, rate=0.3)
    report = report_sweep(sweep, samples=200)
    assert paired is not None
    assert report.teacher == replace(paired, is_paired=False, reductions={"ctc": None})
    assert "no comparison with it" in as_markdown(report)


def test_the_teacher_is_a_line_of_the_plot(sweep: SweepConfig) -> None:
    report = report_sweep(sweep, samples=200)
    with_teacher, without = plot_wer(report), plot_wer(replace(report, teacher=None))
    assert report.teacher is not None
    said = f"teacher {report.teacher.wer.value:.1f}"
    assert [said in {t.get_text() for t in f.axes[0].texts} for f in (with_teacher, without)] == [
        True,
        False,
    ]
    assert len(with_teacher.axes[0].lines) == len(without.axes[0].lines) + 1


def test_without_the_setting_there_is_no_row(sweep: SweepConfig) -> None:
    report = report_sweep(replace(sweep, teacher=()), samples=100)
    assert report.teacher is None
    assert "teacher" not in as_markdown(report)


def test_files_that_will_not_do(sweep: SweepConfig, tmp_path: Path) -> None:
    (dev, test) = sweep.teacher
    gone = replace(sweep, teacher=(dev, replace(test, path=tmp_path / "none.json")))
    with pytest.raises(
        ConfigError, match=r"teacher.test: there is no .*none.json; give the folder"
    ):
        report_sweep(gone)
    (tmp_path / "half.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(ConfigError, match=r"half\.json is damaged"):
        report_sweep(replace(sweep, teacher=(dev, replace(test, path=tmp_path / "half.json"))))
    swapped = replace(sweep, teacher=(dev, replace(test, path=dev.path)))
    with pytest.raises(ConfigError, match=r"teacher.test: .*dev.trn lacks utterances of"):
        report_sweep(swapped)
