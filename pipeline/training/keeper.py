"""Keeps a run's checkpoints: writes them, decides which stay, and takes up the last one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from interkd.pipeline.corpus.tokens import Tokenizer
from interkd.pipeline.students.checkpoint import WEIGHTS_FILE, load_weights, save_student
from interkd.pipeline.students.config import StudentConfig
from interkd.pipeline.students.model import Student
from interkd.pipeline.training.checkpoint import (
    CheckpointFolder,
    load_trainer_state,
    save_trainer_state,
)
from interkd.pipeline.training.position import Position


class CheckpointKeeper:
    """The best checkpoint, the last one, and those that are to be averaged.

    Args:
        run: The run's folder.
        model: On its device; written and restored in place.
        config: Its shape.
        tokenizer: Its tokenizer.
        optimiser: Written and restored in place.
        epochs_to_average: How many last epochs stay for averaging.
    """

    def __init__(
        self,
        run: Path,
        model: Student,
        config: StudentConfig,
        tokenizer: Tokenizer,
        optimiser: torch.optim.Optimizer,
        *,
        epochs_to_average: int,
    ) -> None:
        self.folder = CheckpointFolder(run)
        self.model = model
        self.config = config
        self.tokenizer = tokenizer
        self.optimiser = optimiser
        self.epochs_to_average = epochs_to_average

    @property
    def device(self) -> torch.device:
        """The model's."""
        return next(self.model.parameters()).device

    def restore(self) -> Position | None:
        """Takes up the last checkpoint; None where a run has none yet.

        Raises:
            CheckpointError: If it is damaged.
        """
        last = self.folder.pointed("last")
        if last is None:
            return None
        load_weights(self.model, self.folder.root / last / WEIGHTS_FILE)
        state = load_trainer_state(self.folder.root / last, self.optimiser, self.device)
        position = Position(**state["position"])
        if position.best is not None and position.best != self.folder.pointed("best"):
            # A kill came between the two pointers; the later best is made again.
            self.folder.point("best", position.best, {"dev_wer": {"final": position.best_wer}})
        return position

    def save(self, name: str, position: Position, facts: dict[str, Any]) -> None:
        """Writes a checkpoint of that name with everything that an exact continuation needs."""
        temporary = self.folder.begin(name)
        facts = {**facts, "step": position.step}
        save_student(temporary, self.model, self.config, self.tokenizer, facts)
        save_trainer_state(temporary, self.optimiser, self.device, {"position": vars(position)})
        self.folder.publish(temporary, name)

    def keep_as_last(self, name: str, position: Position) -> None:
        """Points `last` at a checkpoint and removes those that nothing needs any more."""
        self.folder.point("last", name, {"step": position.step})
        self.folder.prune({name, position.best or name, *self._epochs_to_average(position)})

    def weights_to_average(self, position: Position) -> list[Path]:
        """Weight files of the last epochs, those that stand."""
        files = [
            self.folder.root / name / WEIGHTS_FILE for name in self._epochs_to_average(position)
        ]
        return [file for file in files if file.exists()]

    def _epochs_to_average(self, position: Position) -> list[str]:
        first = max(1, position.epoch - self.epochs_to_average + 1)
        return [f"epoch-{epoch:04d}" for epoch in range(first, position.epoch + 1)]
