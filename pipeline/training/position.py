"""Where a run stands and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass
class Position:
    """Where a run stands; everything in it goes into each checkpoint.

    Attributes:
        epoch: Epochs finished.
        batch: Steps of the current epoch that are done.
        order: Digest of the current epoch's batches.
        step: Optimiser steps taken.
        seconds: Training time so far, over all starts, validation excluded.
        best_wer: Lowest WER of the final head on dev, in percent.
        best: Name of the checkpoint that reached it.
    """

    epoch: int = 0
    batch: int = 0
    order: str | None = None
    step: int = 0
    seconds: float = 0.0
    best_wer: float | None = None
    best: str | None = None


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a run ended.

    Attributes:
        run: Its folder.
        finished: False if a stop signal ended it: `resume` goes on.
        steps: Optimiser steps taken.
        seconds: Training time over all starts, validation excluded.
        best_wer: Lowest WER of the final head on dev, in percent.
        weights: Weights of the student, intermediate heads included.
    """

    run: Path
    finished: bool
    steps: int
    seconds: float
    best_wer: float | None
    weights: int
