"""What a sweep's report says: its rows, for tables, plots and JSON alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from interkd.pipeline.sweep.intervals import Estimate

REPORT_FORMAT = 2  # 1 had no intervals of CER and heads


@dataclass(frozen=True, kw_only=True)
class HeadRow:
    """One head of a group: means over its seeds.

    Attributes:
        name: Its name.
        weight_count: Weights needed to run the student up to it.
        wer: On the main split.
        cer: Likewise.
        spike_offset: Mean of student frame - teacher frame, in frames; None unless the results'
            `spikes.json` has it of every seed.
        spikes_in_frame: Share of equal tokens that spike in the teacher's frame, percent.
    """

    name: str
    weight_count: int
    wer: Estimate
    cer: Estimate
    spike_offset: float | None
    spikes_in_frame: float | None


@dataclass(frozen=True, kw_only=True)
class Validated:
    """A WER of the final head on the dev set and when it was taken: means over seeds."""

    wer: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class GroupRow:
    """One row of the table: the runs that differ in the seed alone.

    Attributes:
        group: Its name.
        seeds: Those with a result.
        wer: Of the final head on the main split, mean over seeds.
        wer_of_seeds: Each seed's.
        cer: Likewise.
        other_wer: WER on the other splits.
        reductions: Relative reduction of the WER against each baseline; None for a baseline itself
            and where a baseline has no result.
        heads: Every head on the main split, the final one last.
        steps: Mean over seeds.
        seconds: Training time, mean over seeds.
        gpu_seconds: Steps by the recipe's `ms_a_step`; None where the sweep has no such setting.
        dev_wer_at: The last one at each of the report's budgets; None where a seed has none yet.
        dev_wer_at_steps: The same at each of its budgets of steps.
        device: Where they were trained.
        weights: Of the whole student.
        objective: In one line.
    """

    group: str
    seeds: tuple[int, ...]
    wer: Estimate
    wer_of_seeds: tuple[float, ...]
    cer: Estimate
    other_wer: Mapping[str, float]
    reductions: Mapping[str, Estimate | None]
    heads: tuple[HeadRow, ...]
    steps: float
    seconds: float
    gpu_seconds: float | None
    dev_wer_at: tuple[Validated | None, ...]
    dev_wer_at_steps: tuple[float | None, ...]
    device: str
    weights: int
    objective: str


@dataclass(frozen=True, kw_only=True)
class TeacherRow:
    """The teacher beside its students.

    Attributes:
        wer: On the main split, the interval of utterances only.
        cer: Likewise.
        other_wer: WER on the other splits that the sweep has its scores of.
        reductions: As a group's; None throughout unless it is paired.
        is_paired: Whether utterances and references are the students'.
    """

    wer: Estimate
    cer: Estimate
    other_wer: Mapping[str, float]
    reductions: Mapping[str, Estimate | None]
    is_paired: bool


@dataclass(frozen=True, kw_only=True)
class SweepReport:
    """All rows, in the sweep's order, and what has no result yet.

    Attributes:
        split: The main split: `test`, or the last one where none has that name.
        utterances: How many it has.
        samples: Resamples behind each interval.
        rows: One a group.
        teacher: Where the sweep has its scores.
        budgets: Training times at which the groups are compared, in GPU seconds where the rows have
            them, else in the runs' own seconds.
        step_budgets: Numbers of steps at which they are compared.
        missing: Runs without a result.
    """

    split: str
    utterances: int
    samples: int
    rows: tuple[GroupRow, ...]
    teacher: TeacherRow | None
    budgets: tuple[float, ...]
    step_budgets: tuple[float, ...]
    missing: tuple[str, ...]
