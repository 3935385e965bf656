"""Where each run of a sweep stands, from its result, its lock and its log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from interkd.pipeline.locks import hold
from interkd.pipeline.logs import last_line
from interkd.pipeline.sweep.config import SweepConfig
from interkd.pipeline.sweep.results import finished_result
from interkd.pipeline.sweep.runs import Run, expand, select
from interkd.pipeline.training.run_folder import SETTINGS_FILE

FAILED = "-- failed"  # how the log of a run that failed ends


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Where a run stands: `done`, `running`, `failed`, `started` or `waiting`."""

    run: Run
    state: str


def states(sweep: SweepConfig, only: Sequence[str] = ()) -> list[RunState]:
    """The state of every run, or of those whose name fits one of the patterns.

    Raises:
        ConfigError: If the settings are wrong, a pattern fits none, or a result is damaged or of
            other settings.
    """
    chosen = select(expand(sweep), only)
    return [RunState(run=run, state=_state(run, sweep)) for run in chosen]


def _state(run: Run, sweep: SweepConfig) -> str:
    if finished_result(run, dict.fromkeys((scored.split for scored in sweep.score), None)):
        return "done"
    if run.lock.exists():
        with hold(run.lock) as free:
            if not free:
                return "running"
    if last_line(run.log).startswith(FAILED):
        return "failed"
    return "started" if (run.config.out / SETTINGS_FILE).exists() else "waiting"
