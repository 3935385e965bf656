"""`interkd:CHECKPOINT`: a model trained by `interkd train-teacher` (or any student)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from interkd.pipeline.students.checkpoint import load_student
from interkd.pipeline.teachers.protocol import TeacherInfo
from interkd.pipeline.teachers.weights import hash_weights


class InterkdTeacher:
    """The final head of an interkd checkpoint."""

    def __init__(self, checkpoint: str, *, device: torch.device, precision: torch.dtype) -> None:
        loaded = load_student(Path(checkpoint), device=device)
        self.model = loaded.model
        self.precision = precision
        self.info = TeacherInfo(
            name=f"interkd:{checkpoint}",
            weights_sha256=hash_weights(self.model.state_dict().items()),
            tokens=loaded.tokenizer.tokens,
            blank_index=loaded.tokenizer.blank_index,
            sample_rate=self.model.features.sample_rate,
            frame_formula=self.model.frame_formula,
        )

    def log_probs(self, waveforms: Tensor, sample_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See `Teacher.log_probs`."""
        with torch.autocast(
            waveforms.device.type,
            dtype=torch.bfloat16,
            enabled=self.precision == torch.bfloat16,
        ):
            output = self.model(waveforms, sample_lengths)
        return output.logits[-1].float().log_softmax(-1), output.frame_lengths
