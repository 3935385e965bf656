"""The processes of a sweep: so many at once, each one run, stopped and collected."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from interkd.kernels.errors import ConfigError
from interkd.pipeline.devices import resolve_device
from interkd.pipeline.locks import LOOKS, hold
from interkd.pipeline.logs import last_line
from interkd.pipeline.progress import Reporter
from interkd.pipeline.sweep.results import finished_result
from interkd.pipeline.sweep.runs import Run
from interkd.pipeline.sweep.states import FAILED
from interkd.pipeline.sweep.worker import (
    EXIT_BUSY,
    EXIT_DONE,
    EXIT_STOPPED,
    Job,
    write_job,
)

_POLL = 0.2  # seconds
_CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A run that failed, its exit code and the last line of its log."""

    run: Run
    code: int
    reason: str


@dataclass(kw_only=True)
class SweepOutcome:
    """How a sweep ended.

    Attributes:
        done: Runs with a result, those of former sweeps included.
        failed: Runs whose process failed.
        unfinished: Runs that were stopped, or not begun.
        elsewhere: Runs that another process holds.
        stopped: Whether a signal or the time limit ended it.
    """

    done: list[Run] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    unfinished: list[Run] = field(default_factory=list)
    elsewhere: list[Run] = field(default_factory=list)
    stopped: bool = False

    @property
    def exit_code(self) -> int:
        """0: all done; 3: stopped, or runs are going on elsewhere; 1: some failed."""
        if self.stopped and self.unfinished:
            return 3
        if self.failed:
            return 1
        return 3 if self.unfinished or self.elsewhere else 0


@dataclass(kw_only=True)
class _Child:
    run: Run
    process: subprocess.Popen[bytes]
    log: BinaryIO
    device: str
    asked_to_stop: bool = False


class Processes:
    """Starts, watches and stops the processes."""

    def __init__(
        self,
        *,
        score: Mapping[str, Path],
        manifests: Mapping[str, str],
        jobs: int,
        devices: Sequence[str],
        deadline: float | None,
        reporter: Reporter,
    ) -> None:
        if jobs < 1:
            raise ConfigError("jobs", expected="at least 1", got=jobs)
        for name in devices:
            resolve_device(name)
        self.score = score
        self.manifests = manifests
        self.jobs = jobs
        self.devices = devices
        self.deadline = deadline
        self.reporter = reporter
        self.outcome = SweepOutcome()
        self.children: list[_Child] = []
        self.requests = 0

    def ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        """On a signal: the first stops the runs, a later one kills them."""
        self.requests += 1

    def go(self, todo: list[Run]) -> SweepOutcome:
        """Works until all is done, or stopped."""
        waiting = list(todo)
        try:
            while waiting or self.children:
                self._look_for_stop()
                if self.outcome.stopped:
                    self.outcome.unfinished += waiting
                    waiting = []
                while waiting and len(self.children) < self.jobs:
                    self._start(waiting.pop(0))
                self._collect()
                if self.children:
                    time.sleep(_POLL)
        finally:  # an error in this process must not leave the runs to themselves
            for child in self.children:
                self._signal(child, signal.SIGKILL)
        return self.outcome

    def _look_for_stop(self) -> None:
        outcome = self.outcome
        late = self.deadline is not None and time.monotonic() >= self.deadline
        if (late or self.requests) and not outcome.stopped:
            outcome.stopped = True
            why = "signal" if self.requests else "time is up"
            self.reporter.message(f"{why}: {len(self.children)} runs write a checkpoint and stop")
        for child in self.children:
            if self.requests > 1:
                self._signal(child, signal.SIGKILL)
            elif outcome.stopped and not child.asked_to_stop:
                self._signal(child, getattr(signal, child.run.config.stop_signal))
            child.asked_to_stop = outcome.stopped

    def _signal(self, child: _Child, number: signal.Signals) -> None:
        child.asked_to_stop = True
        if child.process.poll() is None:
            child.process.send_signal(number)

    def _start(self, run: Run) -> None:
        with hold(run.lock, tries=LOOKS) as free:
            if not free:
                self.reporter.message(f"{run.name}: another process has it")
                self.outcome.elsewhere.append(run)
                return
        if self.devices:
            busy = Counter(child.device for child in self.children)
            device = min(self.devices, key=lambda name: busy[name])
            run = replace(run, config=replace(run.config, device=device))
        write_job(Job(run=run, score=self.score))
        log = run.log.open("ab")
        log.write(f"{time.strftime('-- %Y-%m-%d %H:%M:%S')} on {run.config.device}\n".encode())
        log.flush()
        process = subprocess.Popen(
            [sys.executable, "-m", "interkd.pipeline.sweep.worker", str(run.job)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**_thread_limits(self.jobs), **os.environ},
            start_new_session=True,  # ctrl-C reaches this process alone, which passes it on
        )
        self.children.append(_Child(run=run, process=process, log=log, device=run.config.device))
        self.reporter.message(f"{run.name}: started on {run.config.device}, log {run.log}")

    def _collect(self) -> None:
        for child in list(self.children):
            code = child.process.poll()
            if code is not None:
                self.children.remove(child)
                self._ended(child, code)
                child.log.close()

    def _ended(self, child: _Child, code: int) -> None:
        run, outcome = child.run, self.outcome
        own = getattr(signal, run.config.stop_signal)
        stop_codes = (EXIT_STOPPED, -own, -signal.SIGKILL, -signal.SIGTERM)  # scancel's goes to all
        reason = last_line(run.log)
        if code == EXIT_DONE:
            try:
                result = finished_result(run, self.manifests)
            except ConfigError as error:
                result, reason = None, str(error)
            if result is not None:
                outcome.done.append(run)
                wer = {split: s.heads[-1].words.rate for split, s in result.scores.items()}
                figures = ", ".join(f"{split} {rate:.2f}" for split, rate in wer.items())
                self.reporter.message(
                    f"{run.name}: done in {result.trained.seconds:.0f} s, WER % {figures}"
                )
                return
        elif code == EXIT_BUSY:
            outcome.elsewhere.append(run)
            return
        elif code == EXIT_STOPPED or (child.asked_to_stop and code in stop_codes):
            outcome.stopped = True  # also where somebody else signalled the run
            outcome.unfinished.append(run)
            self.reporter.message(f"{run.name}: stopped")
            return
        child.log.write(f"{FAILED} with exit code {code}\n".encode())
        outcome.failed.append(Failure(run=run, code=code, reason=reason))
        self.reporter.message(f"{run.name}: failed with exit code {code}, log {run.log}: {reason}")


@contextmanager
def caught(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Has the handler called on ctrl-C and its like; does nothing outside the main thread."""
    former = {}
    try:
        for number in _CAUGHT:
            former[number] = signal.signal(number, handler)
    except ValueError:
        pass
    try:
        yield
    finally:
        for number, previous in former.items():
            signal.signal(number, previous)


def _thread_limits(jobs: int) -> dict[str, str]:
    """An equal share of the processor for each run, where the user has set nothing."""
    if jobs == 1:
        return {}
    threads = str(max(1, len(os.sched_getaffinity(0)) // jobs))
    return {"OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads}
