"""Runs a sweep: looks at everything first, then trains and scores what has no result yet."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from interkd.kernels.errors import ConfigError
from interkd.pipeline.corpus.manifest import read_manifest
from interkd.pipeline.progress import Reporter
from interkd.pipeline.sweep.config import SweepConfig
from interkd.pipeline.sweep.processes import Processes, SweepOutcome, caught
from interkd.pipeline.sweep.report_inputs import keep_teacher_scores, teacher_scores
from interkd.pipeline.sweep.results import finished_result
from interkd.pipeline.sweep.runs import expand, ms_a_step, require_run, select


def run_sweep(
    sweep: SweepConfig,
    *,
    jobs: int | None = None,
    only: Sequence[str] = (),
    devices: Sequence[str] = (),
    minutes: float | None = None,
    reporter: Reporter | None = None,
) -> SweepOutcome:
    """Trains and scores every run that has no result yet.

    Args:
        sweep: Settings.
        jobs: Runs at once, instead of the sweep's or, where that is more, one a device.
        only: Patterns of run names; all runs without one.
        devices: Given to the runs in turn, instead of their own.
        minutes: Then every run is asked to stop; each writes a checkpoint first.
        reporter: Hears what begins and ends.

    Returns:
        What is done, failed and left.

    Raises:
        InterkdError: Before anything starts: for wrong settings, unreadable manifests, stores that
            are not there, and results that are damaged or of other settings.
    """
    chosen = select(expand(sweep), only)
    teacher = teacher_scores(sweep)  # the report at the end wants them
    for run in chosen:
        ms_a_step(sweep, run)
    score = {scored.split: scored.manifest for scored in sweep.score}
    manifests = {split: read_manifest(path).digest for split, path in score.items()}
    processes = Processes(
        score=score,
        manifests=manifests,
        jobs=max(sweep.jobs, len(devices)) if jobs is None else jobs,
        devices=devices,
        deadline=None if minutes is None else time.monotonic() + 60 * minutes,
        reporter=reporter or Reporter(),
    )
    _make_folders(sweep.out, sweep.results_folder)
    todo = []
    for run in chosen:
        if finished_result(run, manifests) is None:
            require_run(run)
            todo.append(run)
        else:
            processes.outcome.done.append(run)
    keep_teacher_scores(sweep, teacher)
    if processes.outcome.done:
        processes.reporter.message(
            f"{len(processes.outcome.done)} of {len(chosen)} runs done already"
        )
    with caught(processes.ask_to_stop):
        return processes.go(todo)


def _make_folders(*folders: Path) -> None:
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot write to {folder}", got=error.strerror) from error
