"""The run's log: one JSON line a step and an epoch, and the same curves for tensorboard."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from interkd.pipeline.files import write_text


class RunLog:
    """Buffers the steps' figures on the device and writes them together.

    Reading a loss from the GPU waits for it; reading it once in a while does not slow training.

    Args:
        run: The run's folder; the log is `log.jsonl` in it. None writes nothing: of several
            processes one keeps the log, all look at the loss.
        head_names: Heads, the final one last.
        step: Steps after this one are dropped: they will be made again.
        epochs: Likewise the results of later epochs.
    """

    def __init__(
        self, run: Path | None, head_names: Sequence[str], *, step: int, epochs: int
    ) -> None:
        self.head_names = head_names
        self.recent = _Means(head_names)
        self.pending: list[tuple[dict[str, Any], Tensor]] = []
        self.file: TextIO | None = None
        self.board: SummaryWriter | None = None
        if run is not None:
            self._open(run, step, epochs)

    def _open(self, run: Path, step: int, epochs: int) -> None:
        self.path = run / "log.jsonl"
        kept = []
        if self.path.exists() and step > 0:
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:  # the line that a kill cut short
                    continue
                if row["step"] <= step and row.get("epochs_done", 0) <= epochs:
                    kept.append(line)
                    if "epochs_done" in row:
                        self.recent = _Means(self.head_names)
                    else:
                        self.recent.add(row)
        write_text(self.path, "".join(line + "\n" for line in kept))
        self.file = self.path.open("a", encoding="utf-8")
        self.board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def step(self, row: dict[str, Any], figures: Tensor) -> None:
        """Keeps a step: figures are loss, gradient norm, dropped, CTC and divergence a head."""
        self.pending.append((row, figures))

    def flush(self) -> tuple[float, float] | None:
        """Writes the pending steps and returns the last one's loss and gradient norm."""
        if not self.pending:
            return None
        table = torch.stack([figures for _, figures in self.pending]).tolist()
        if self.file is not None and self.board is not None:
            self._write(table, self.file, self.board)
        self.pending.clear()
        return float(table[-1][0]), float(table[-1][1])

    def _write(self, table: list[list[float]], file: TextIO, board: SummaryWriter) -> None:
        heads = len(self.head_names)
        for (row, _), values in zip(self.pending, table, strict=True):
            loss, gradient_norm, dropped, *terms = values
            figures = {
                "loss": loss,
                "gradient_norm": gradient_norm,
                "impossible": int(dropped),
                "ctc": dict(zip(self.head_names, terms[:heads], strict=True)),
                "distill": dict(zip(self.head_names, terms[heads:], strict=True)),
            }
            self.recent.add(figures)
            file.write(json.dumps({**row, **figures}) + "\n")
            board.add_scalar("train/loss", loss, row["step"])
            board.add_scalar("train/learning_rate", row["learning_rate"], row["step"])
            board.add_scalar("train/gradient_norm", gradient_norm, row["step"])
        file.flush()

    def epoch(self, row: dict[str, Any]) -> dict[str, Any]:
        """Writes an epoch's results, and of the steps since the last ones the mean losses a head.

        A CTC loss that sinks on while dev does not says that the student learns by heart.

        Returns:
            The row as written; as given where nothing is written.
        """
        self.flush()
        if self.file is None or self.board is None:
            return row
        row = {**row, **self.recent.figures()}
        self.recent = _Means(self.head_names)
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        for head, wer in row.get("dev_wer", {}).items():
            self.board.add_scalar(f"dev_wer/{head}", wer, row["step"])
        return row

    def close(self) -> None:
        """Writes what is pending and closes the files."""
        self.flush()
        if self.file is not None and self.board is not None:
            self.file.close()
            self.board.close()


class _Means:
    """Mean losses a head of the steps since the last epoch's row."""

    def __init__(self, head_names: Sequence[str]) -> None:
        self.head_names = head_names
        self.steps = 0
        self.sums = {term: dict.fromkeys(head_names, 0.0) for term in ("ctc", "distill")}

    def add(self, figures: dict[str, Any]) -> None:
        """Counts a step."""
        self.steps += 1
        for term, sums in self.sums.items():
            for head in self.head_names:
                sums[head] += figures[term][head]

    def figures(self) -> dict[str, dict[str, float]]:
        """The means; nothing where there was no step."""
        if not self.steps:
            return {}
        return {
            f"train_{term}": {head: round(value / self.steps, 4) for head, value in heads.items()}
            for term, heads in self.sums.items()
        }
