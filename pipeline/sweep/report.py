"""A sweep's results as figures: each group of seeds with its interval, compared with baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from interkd.kernels.errors import ConfigError, CorpusError
from interkd.pipeline.sweep.config import SweepConfig
from interkd.pipeline.sweep.intervals import (
    Floats,
    interval,
    relative_reduction,
    resampled_rates,
)
from interkd.pipeline.sweep.results import HeadScore, RunResult, SplitScore, finished_result
from interkd.pipeline.sweep.runs import Run, expand

REPORT_FORMAT = 1
SAMPLES = 10_000


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure in percent with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class HeadRow:
    """One head of a group: mean over its seeds."""

    name: str
    weight_count: int
    wer: float
    cer: float


@dataclass(frozen=True, kw_only=True)
class GroupRow:
    """One row of the table: the runs that differ in the seed alone.

    Attributes:
        group: Its name.
        seeds: Those with a result.
        wer: Of the final head on the main split, mean over seeds.
        wer_of_seeds: Each seed's.
        cer: Mean over seeds.
        other_wer: WER on the other splits.
        reductions: Relative reduction of the WER against each baseline; None for a baseline itself
            and where a baseline has no result.
        heads: Every head on the main split, the final one last.
        steps: Mean over seeds.
        seconds: Training time, mean over seeds.
        device: Where they were trained.
        weights: Of the whole student.
        objective: In one line.
    """

    group: str
    seeds: tuple[int, ...]
    wer: Estimate
    wer_of_seeds: tuple[float, ...]
    cer: float
    other_wer: Mapping[str, float]
    reductions: Mapping[str, Estimate | None]
    heads: tuple[HeadRow, ...]
    steps: float
    seconds: float
    device: str
    weights: int
    objective: str


@dataclass(frozen=True, kw_only=True)
class SweepReport:
    """All rows, in the sweep's order, and what has no result yet.

    Attributes:
        split: The main split: `test`, or the last one where none has that name.
        utterances: How many it has.
        samples: Resamples behind each interval.
        rows: One a group.
        missing: Runs without a result.
    """

    split: str
    utterances: int
    samples: int
    rows: tuple[GroupRow, ...]
    missing: tuple[str, ...]


def report_sweep(sweep: SweepConfig, *, samples: int = SAMPLES) -> SweepReport:
    """Reads the results that are there and compares them.

    Args:
        sweep: Settings.
        samples: Resamples behind each interval.

    Raises:
        ConfigError: If there is no result, or one is damaged or of other settings.
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
    main = "test" if "test" in splits else splits[-1]
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.name in results:
            groups.setdefault(run.group, []).append(run)
    lengths = _common_lengths(results, main)
    errors = {
        group: np.array([_final(results[run.name], main).words.errors for run in members])
        for group, members in groups.items()
    }
    rates = resampled_rates(errors, lengths, samples=samples)
    wer = {
        group: float(100 * table.sum(1).mean() / lengths.sum()) for group, table in errors.items()
    }
    rows = []
    for group, members in groups.items():
        baselines = {name: name + members[0].grid_part for name in sweep.baselines}
        rows.append(
            _row(
                group,
                [results[run.name] for run in members],
                main=main,
                others=[split for split in splits if split != main],
                wer=_estimate(wer[group], rates[group]),
                reductions={
                    name: _reduction(group, other, wer, rates) for name, other in baselines.items()
                },
            )
        )
    return SweepReport(
        split=main,
        utterances=len(lengths),
        samples=samples,
        rows=tuple(rows),
        missing=tuple(run.name for run in runs if run.name not in results),
    )


def _row(
    group: str,
    results: Sequence[RunResult],
    *,
    main: str,
    others: Sequence[str],
    wer: Estimate,
    reductions: Mapping[str, Estimate | None],
) -> GroupRow:
    first = results[0]
    heads = [
        HeadRow(
            name=head.name,
            weight_count=head.weight_count,
            wer=_mean([result.scores[main].heads[index].words.rate for result in results]),
            cer=_mean([result.scores[main].heads[index].characters.rate for result in results]),
        )
        for index, head in enumerate(first.scores[main].heads)
    ]
    return GroupRow(
        group=group,
        seeds=tuple(result.seed for result in results),
        wer=wer,
        wer_of_seeds=tuple(_final(result, main).words.rate for result in results),
        cer=heads[-1].cer,
        other_wer={
            split: _mean([_final(result, split).words.rate for result in results])
            for split in others
        },
        reductions=reductions,
        heads=tuple(heads),
        steps=_mean([result.trained.steps for result in results]),
        seconds=_mean([result.trained.seconds for result in results]),
        device=", ".join(dict.fromkeys(result.trained.device for result in results)),
        weights=first.trained.weights,
        objective=first.trained.objective,
    )


def _final(result: RunResult, split: str) -> HeadScore:
    return result.scores[split].heads[-1]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _common_lengths(results: Mapping[str, RunResult], split: str) -> Floats:
    """Words of each utterance's reference, the same in all results."""
    (first, score), *others = [(name, result.scores[split]) for name, result in results.items()]
    for name, other in others:
        if _identity(other) != _identity(score):
            raise CorpusError(
                f"'{first}' and '{name}' were scored on different '{split}' sets",
                remedy="remove the results of the old set: the runs are then scored again",
            )
    return np.array(score.heads[-1].words.lengths, dtype=np.float64)


def _identity(score: SplitScore) -> tuple[str, tuple[int, ...]]:
    return score.utterances, score.heads[-1].words.lengths


def _estimate(value: float, samples: Floats) -> Estimate:
    low, high = interval(samples)
    return Estimate(value=value, low=low, high=high)


def _reduction(
    group: str, other: str, wer: Mapping[str, float], rates: Mapping[str, Floats]
) -> Estimate | None:
    if other == group or other not in wer or wer[other] == 0:
        return None
    value = 100.0 * (1.0 - wer[group] / wer[other])
    return _estimate(value, relative_reduction(rates[group], rates[other]))
