"""A sweep's results as figures: each group of seeds with its interval, compared with baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from interkd.kernels.errors import ConfigError, CorpusError
from interkd.pipeline.scoring.error_rates import Unit
from interkd.pipeline.sweep.config import SweepConfig
from interkd.pipeline.sweep.intervals import Estimate, Rates, rates_of_heads
from interkd.pipeline.sweep.report_inputs import Spikes, read_spikes, teacher_scores
from interkd.pipeline.sweep.results import RunResult, finished_result
from interkd.pipeline.sweep.rows import GroupRow, HeadRow, SweepReport, TeacherRow, Validated
from interkd.pipeline.sweep.runs import Run, expand, ms_a_step
from interkd.pipeline.sweep.scores import HeadScore, SplitScore, UnitCounts

SAMPLES = 10_000
BUDGET_SHARES = (0.25, 0.5, 1.0)  # of the training time, or steps, of the group done first
_TEACHER = "(teacher)"  # among the groups: no run can have this name


@dataclass(frozen=True, kw_only=True)
class _Course:
    """How long a run trained, in seconds or steps, and when it had which WER on the dev set."""

    total: float
    validated: tuple[Validated, ...]


_Courses = Mapping[str, Sequence[_Course]]  # of each group


def report_sweep(sweep: SweepConfig, *, samples: int = SAMPLES) -> SweepReport:
    """Reads the results that are there and compares them.

    Args:
        sweep: Settings.
        samples: Resamples behind each interval.

    Raises:
        ConfigError: If there is no result, or one is damaged or of other settings; if the teacher's
            file is not there or damaged, or a recipe has no `ms_a_step` where others have.
        CorpusError: If results are of different utterances.
    """
    runs = expand(sweep)
    splits = [scored.split for scored in sweep.score]
    unknown = dict.fromkeys(splits, None)
    found = {run.name: finished_result(run, unknown) for run in runs}
    results = {name: result for name, result in found.items() if result is not None}
    if not results:
        raise ConfigError(
            f"no results in {sweep.results_folder}", remedy="'interkd sweep' without --report"
        )
    main = sweep.main_split
    others = [split for split in splits if split != main]
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.name in results:
            groups.setdefault(run.group, []).append(run)
    for split in splits:
        _check_same_set(results, split)
    systems = {
        group: [results[run.name].scores[main] for run in members]
        for group, members in groups.items()
    }
    score = next(iter(systems.values()))[0]
    teacher, spikes = teacher_scores(sweep), read_spikes(sweep)
    is_paired = bool(teacher) and _identity(teacher[main]) == _identity(score)
    alone = {_TEACHER: [teacher[main]]} if teacher else {}
    if is_paired:  # then the same utterances are drawn for it
        systems.update(alone)
    words = _resampled(systems, "word", samples=samples)
    characters = _resampled(systems, "character", samples=samples)
    courses = {
        group: [_course_in_time(results[run.name], ms_a_step(sweep, run)) for run in members]
        for group, members in groups.items()
    }
    in_steps = {
        group: [
            _course(results[run.name], "step", results[run.name].trained.steps) for run in members
        ]
        for group, members in groups.items()
    }
    budgets, step_budgets = _budgets(courses), _budgets(in_steps)
    rows = tuple(
        _row(
            group,
            [results[run.name] for run in members],
            words=words[group],
            characters=characters[group],
            main=main,
            others=others,
            reductions={
                name: _reduction(group, name + members[0].grid_part, words)
                for name in sweep.baselines
            },
            gpu_seconds=_mean([course.total for course in courses[group]])
            if sweep.ms_a_step
            else None,
            dev_wer_at=tuple(_wer_at(courses[group], budget) for budget in budgets),
            dev_wer_at_steps=tuple(
                None if found is None else found.wer
                for found in (_wer_at(in_steps[group], budget) for budget in step_budgets)
            ),
            spikes=[spikes.get(run.name, {}) for run in members],
        )
        for group, members in groups.items()
    )
    return SweepReport(
        split=main,
        utterances=len(score.heads[-1].words.lengths),
        samples=samples,
        rows=rows,
        teacher=_teacher_row(
            teacher,
            main,
            words if is_paired else _resampled(alone, "word", samples=samples),
            characters if is_paired else _resampled(alone, "character", samples=samples),
            baselines=sweep.baselines,
            is_paired=is_paired,
        )
        if teacher
        else None,
        budgets=budgets,
        step_budgets=step_budgets,
        missing=tuple(run.name for run in runs if run.name not in results),
    )


def _row(
    group: str,
    results: Sequence[RunResult],
    *,
    words: Sequence[Rates],
    characters: Sequence[Rates],
    main: str,
    others: Sequence[str],
    reductions: Mapping[str, Estimate | None],
    gpu_seconds: float | None,
    dev_wer_at: tuple[Validated | None, ...],
    dev_wer_at_steps: tuple[float | None, ...],
    spikes: Sequence[Spikes],
) -> GroupRow:
    first = results[0]
    heads = tuple(
        HeadRow(
            name=head.name,
            weight_count=head.weight_count,
            wer=wer.estimate,
            cer=cer.estimate,
            spike_offset=_of_spikes(spikes, head.name, "mean_offset_frames"),
            spikes_in_frame=_of_spikes(spikes, head.name, "share_same_frame", scale=100.0),
        )
        for head, wer, cer in zip(first.scores[main].heads, words, characters, strict=True)
    )
    return GroupRow(
        group=group,
        seeds=tuple(result.seed for result in results),
        wer=heads[-1].wer,
        wer_of_seeds=tuple(_final(result, main).words.rate for result in results),
        cer=heads[-1].cer,
        other_wer={
            split: _mean([_final(result, split).words.rate for result in results])
            for split in others
        },
        reductions=reductions,
        heads=heads,
        steps=_mean([result.trained.steps for result in results]),
        seconds=_mean([result.trained.seconds for result in results]),
        gpu_seconds=gpu_seconds,
        dev_wer_at=dev_wer_at,
        dev_wer_at_steps=dev_wer_at_steps,
        device=", ".join(dict.fromkeys(result.trained.device for result in results)),
        weights=first.trained.weights,
        objective=first.trained.objective,
    )


def _teacher_row(
    scores: Mapping[str, SplitScore],
    main: str,
    words: Mapping[str, Sequence[Rates]],
    characters: Mapping[str, Sequence[Rates]],
    *,
    baselines: Sequence[str],
    is_paired: bool,
) -> TeacherRow:
    return TeacherRow(
        wer=words[_TEACHER][-1].estimate,
        cer=characters[_TEACHER][-1].estimate,
        other_wer={
            split: score.heads[-1].words.rate for split, score in scores.items() if split != main
        },
        reductions={name: _reduction(_TEACHER, name, words) for name in baselines},
        is_paired=is_paired,
    )


def _final(result: RunResult, split: str) -> HeadScore:
    return result.scores[split].heads[-1]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _of_spikes(
    spikes: Sequence[Spikes], head: str, key: str, *, scale: float = 1.0
) -> float | None:
    """Mean over seeds; None unless every seed was measured."""
    values = [seed.get(head, {}).get(key) for seed in spikes]
    known = [scale * value for value in values if value is not None]
    return _mean(known) if len(known) == len(values) else None


def _check_same_set(results: Mapping[str, RunResult], split: str) -> None:
    (first, score), *others = [(name, result.scores[split]) for name, result in results.items()]
    for name, other in others:
        if (other.manifest, *_identity(other)) != (score.manifest, *_identity(score)):
            raise CorpusError(
                f"'{first}' and '{name}' were scored on different '{split}' sets",
                remedy="remove the results of the old set: the runs are then scored again",
            )


def _identity(score: SplitScore) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    final = score.heads[-1]
    return score.utterances, final.words.lengths, final.characters.lengths


def _resampled(
    systems: Mapping[str, Sequence[SplitScore]], unit: Unit, *, samples: int
) -> dict[str, tuple[Rates, ...]]:
    """The rates of each head of each system, whose seeds were all scored on one set."""

    def counts(head: HeadScore) -> UnitCounts:
        return head.words if unit == "word" else head.characters

    (first, *_), *_ = systems.values()
    lengths = np.array(counts(first.heads[-1]).lengths, dtype=np.float64)
    errors = {
        name: np.array([[counts(head).errors for head in score.heads] for score in scores])
        for name, scores in systems.items()
    }
    by_head = {name: table.swapaxes(0, 1) for name, table in errors.items()}
    return rates_of_heads(by_head, lengths, samples=samples)


def _reduction(group: str, other: str, rates: Mapping[str, Sequence[Rates]]) -> Estimate | None:
    if other == group or other not in rates:
        return None
    return rates[group][-1].reduction(rates[other][-1])


def _course_in_time(result: RunResult, ms_a_step: float | None) -> _Course:
    """In GPU seconds where a step's time is known, else in the run's own."""
    if ms_a_step is None:
        return _course(result, "seconds", result.trained.seconds)
    return _course(result, "step", result.trained.steps, ms_a_step / 1000.0)


def _course(result: RunResult, key: str, total: float, scale: float = 1.0) -> _Course:
    return _Course(
        total=scale * total,
        validated=tuple(
            Validated(wer=row["dev_wer"]["final"], seconds=scale * row[key])
            for row in result.curve
            if key in row and "dev_wer" in row
        ),
    )


def _budgets(courses: _Courses) -> tuple[float, ...]:
    least = min(max(course.total for course in seeds) for seeds in courses.values())
    return tuple(share * least for share in BUDGET_SHARES)


def _wer_at(courses: Sequence[_Course], budget: float) -> Validated | None:
    """The last until then; None unless every seed has one."""
    until = [[one for one in course.validated if one.seconds <= budget] for course in courses]
    if not all(until):
        return None
    last = [seed[-1] for seed in until]
    return Validated(
        wer=_mean([one.wer for one in last]), seconds=_mean([one.seconds for one in last])
    )
