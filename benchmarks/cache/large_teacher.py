"""A teacher of the usual size, for timing alone: wav2vec2-large, 315 M weights, drawn at random.

--teacher python:large_teacher:make        with benchmarks/cache on PYTHONPATH
"""

from __future__ import annotations

import torch
from torch import Tensor

from interkd.pipeline.audio_library import torchaudio
from interkd.pipeline.frames import FrameFormula
from interkd.pipeline.teachers.protocol import TeacherInfo

TOKENS = ("<blk>", *(chr(ord("a") + i) for i in range(26)), "'", "\u2581", "?", "!", ".")
SHARPNESS = 30.0  # random logits this far apart are as peaked as a trained teacher's


class LargeTeacher:
    """Meaningless posteriors at the price of real ones."""

    def __init__(self, device: torch.device, precision: torch.dtype) -> None:
        torch.manual_seed(0)
        model = torchaudio.models.wav2vec2_large(aux_num_out=len(TOKENS))
        self.model = model.to(device).eval()
        self.precision = precision
        self.info = TeacherInfo(
            name="random wav2vec2-large",
            weights_sha256="0" * 64,
            tokens=TOKENS,
            blank_index=0,
            sample_rate=16_000,
            frame_formula=FrameFormula(
                ((10, 5, 0), *((3, 2, 0),) * 4, (2, 2, 0), (2, 2, 0))  # the convolutions' windows
            ),
        )

    def log_probs(self, waveforms: Tensor, sample_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See `Teacher.log_probs`."""
        half = self.precision != torch.float32
        with torch.autocast(waveforms.device.type, dtype=self.precision, enabled=half):
            logits, frame_lengths = self.model(waveforms, sample_lengths)
        return (SHARPNESS * logits.float()).log_softmax(-1), frame_lengths


def make(*, device: torch.device, precision: torch.dtype) -> LargeTeacher:
    """The factory of `python:large_teacher:make`."""
    return LargeTeacher(device, precision)
