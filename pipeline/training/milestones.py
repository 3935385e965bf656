"""A run's milestones: dev is scored, a checkpoint written, the best and the last one pointed at."""

from __future__ import annotations

import time
from typing import Any

from interkd.pipeline.config import as_plain
from interkd.pipeline.corpus.audio import AudioCache
from interkd.pipeline.corpus.manifest import Manifest
from interkd.pipeline.progress import Reporter
from interkd.pipeline.scoring.evaluate import evaluate
from interkd.pipeline.students.model import Student
from interkd.pipeline.training.averaging import average_weights
from interkd.pipeline.training.config import TrainConfig
from interkd.pipeline.training.keeper import CheckpointKeeper
from interkd.pipeline.training.log import RunLog
from interkd.pipeline.training.objective import Objective
from interkd.pipeline.training.plateau import is_on_plateau
from interkd.pipeline.training.position import Position
from interkd.pipeline.training.ranks import Ranks

AVERAGE = "average"


class Milestones:
    """Scores dev and writes checkpoints.

    Of several processes all call each method; the first one scores and writes, the others wait.

    Args:
        config: Settings.
        model: On its device.
        objective: The loss, for the record.
        dev: What is scored.
        audio: Holds its samples.
        keeper: Writes the checkpoints.
        position: Where the run stands; changed in place.
        log: Gets the results.
        plateau: CTC loss of the tokens' frequencies (`plateau_loss`).
        ranks: The processes that train together.
        reporter: Hears of the results.
    """

    def __init__(
        self,
        *,
        config: TrainConfig,
        model: Student,
        objective: Objective,
        dev: Manifest,
        audio: AudioCache,
        keeper: CheckpointKeeper,
        position: Position,
        log: RunLog,
        plateau: float,
        ranks: Ranks,
        reporter: Reporter,
    ) -> None:
        self.config = config
        self.model = model
        self.objective = objective
        self.dev = dev
        self.audio = audio
        self.keeper = keeper
        self.position = position
        self.log = log
        self.plateau = plateau
        self.ranks = ranks
        self.reporter = reporter
        self.saved_at = time.monotonic()

    @property
    def checkpoint_due(self) -> bool:
        """Whether the last checkpoint is old enough for another one."""
        return time.monotonic() - self.saved_at > 60 * self.config.checkpoint_minutes

    def validate(self, name: str) -> None:
        """Scores dev with every head and writes the checkpoint of that name."""
        self.ranks.average_statistics(self.model)
        if self.ranks.is_first:
            self._score_and_save(name)
        self.ranks.wait()
        self.saved_at = time.monotonic()

    def save_last(self) -> None:
        """Writes a checkpoint of this very step and points `last` at it."""
        self.ranks.average_statistics(self.model)
        name = f"step-{self.position.step:08d}"
        if self.ranks.is_first:
            self._save(name, {})
            self.keeper.keep_as_last(name, self.position)
        # The others must not leave before it stands: torchrun ends all when one has ended.
        self.ranks.wait()
        self.saved_at = time.monotonic()

    def average(self) -> None:
        """Averages the last epochs' weights and scores them as one more candidate for best."""
        if self.ranks.is_first:
            standing = self.keeper.weights_to_average(self.position)
            if standing:  # else the time limit came before a whole epoch
                average_weights(self.model, standing)
                self.reporter.message(f"average of {len(standing)} epochs")
                self._score_and_save(AVERAGE)
        self.ranks.wait()

    def _score_and_save(self, name: str) -> None:
        position = self.position
        results = evaluate(
            self.model,
            self.keeper.tokenizer,
            self.dev,
            device=self.keeper.device,
            max_seconds=self.config.data.batch_seconds,
            audio_cache=self.audio,
        )
        wer = {head.name: head.word_total.rate for head in results.heads}
        cer = {head.name: head.character_total.rate for head in results.heads}
        row = self.log.epoch(
            {
                "step": position.step,
                "epochs_done": position.epoch,
                "seconds": round(position.seconds, 2),
                "processes": self.ranks.world_size,
                "dev_wer": wer,
                "dev_cer": cer,
            }
        )
        figures = ", ".join(f"{head} {rate:.2f}" for head, rate in wer.items())
        self.reporter.message(
            f"epoch {position.epoch}, step {position.step}, {position.seconds:.0f} s: "
            f"dev WER % {figures}"
        )
        loss = row.get("train_ctc", {}).get("final", 0.0)
        if is_on_plateau(step=position.step, loss=loss, plateau=self.plateau, dev_wer=wer["final"]):
            self.reporter.message(
                f"warning: the final head is on CTC's first plateau: its loss was {loss:.3g} of "
                f"late, the tokens' frequencies alone give {self.plateau:.3g}; a lower rate, less "
                "dropout, CTC of weight 1 on intermediate heads or a teacher help"
            )
        better = position.best_wer is None or wer["final"] < position.best_wer
        if better:
            position.best_wer, position.best = wer["final"], name
        self._save(name, {"dev_wer": wer, "dev_cer": cer})
        if better:
            self.keeper.folder.point("best", name, {"dev_wer": wer})
        if name != AVERAGE:  # nothing can be resumed from averaged weights
            self.keeper.keep_as_last(name, position)

    def _save(self, name: str, metrics: dict[str, Any]) -> None:
        facts = {
            "objective": as_plain(self.config.objective),
            "trained_with": str(self.objective),
            **metrics,
        }
        self.keeper.save(name, self.position, facts)
