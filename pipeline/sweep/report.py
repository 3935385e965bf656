"""A sweep's results as figures: each group of seeds with its interval, compared with baselines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from interkd.kernels.errors import ConfigError, CorpusError
from interkd.pipeline.sweep.config import SweepConfig
from interkd.pipeline.sweep.intervals import Estimate, Rates, rates_of_scores
from interkd.pipeline.sweep.report_inputs import Spikes, read_spikes, teacher_scores
from interkd.pipeline.sweep.results import RunResult, finished_result
from interkd.pipeline.sweep.rows import GroupRow, HeadRow, SweepReport, TeacherRow, Validated
from interkd.pipeline.sweep.runs import Run, expand, ms_a_step
from interkd.pipeline.sweep.scores import HeadScore, SplitScore

SAMPLES = 10_000
BUDGET_SHARES = (0.25, 0.5, 1.0)  # of the training time, or steps, of the group done first
_TEACHER = "(teacher)"  # among the groups: no run can have this name


@dataclass(frozen=True, kw_only=True)
class _Course:
    """How long a run trained, in seconds or steps, and when it had which WER on the dev set."""

    total: float
    validated: tuple[tuple[float, float], ...]  # when, WER


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
    words = rates_of_scores(systems, "word", samples=samples)
    characters = rates_of_scores(systems, "character", samples=samples)
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
            dev_wer_at=tuple(
                None if last is None else Validated(wer=last[1], seconds=last[0])
                for last in _last_until(courses[group], budgets)
            ),
            dev_wer_at_steps=tuple(
                None if last is None else last[1]
                for last in _last_until(in_steps[group], step_budgets)
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
            words if is_paired else rates_of_scores(alone, "word", samples=samples),
            characters if is_paired else rates_of_scores(alone, "character", samples=samples),
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
            (scale * row[key], row["dev_wer"]["final"])
            for row in result.curve
            if key in row and "dev_wer" in row
        ),
    )


def _budgets(courses: _Courses) -> tuple[float, ...]:
    least = min(max(course.total for course in seeds) for seeds in courses.values())
    return tuple(share * least for share in BUDGET_SHARES)


def _last_until(
    courses: Sequence[_Course], budgets: Sequence[float]
) -> Iterator[tuple[float, float] | None]:
    """Of each budget when the last validation until then was, and its WER: means over seeds.

    None unless every seed has one.
    """
    for budget in budgets:
        until = [[one for one in course.validated if one[0] <= budget] for course in courses]
        last = [seed[-1] for seed in until if seed]
        is_whole = len(last) == len(courses)
        yield (_mean([at for at, _ in last]), _mean([wer for _, wer in last])) if is_whole else None
