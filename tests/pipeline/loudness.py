"""A teacher without weights, which worker processes import: copy it where they look for it."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import torch
from torch import Tensor

from interkd.pipeline.frames import FrameFormula
from interkd.pipeline.teachers.protocol import TeacherInfo

SPECIFICATION = "python:loudness_of_tests:make"


class Loudness:
    """Posteriors of nothing but the frame's samples: the same in every batch.

    `KILL_ONCE` in the environment names a file; the process dies before it is there. `SLOW` is the
    seconds that a batch takes longer.
    """

    info = TeacherInfo(
        name="loudness",
        weights_sha256="cd" * 32,
        tokens=("<blk>", *"abcdefg"),
        blank_index=0,
        sample_rate=16000,
        frame_formula=FrameFormula.parse("1,640,0"),
    )

    def log_probs(self, waveforms: Tensor, sample_lengths: Tensor) -> tuple[Tensor, Tensor]:
        marker = os.environ.get("KILL_ONCE")
        if marker and not Path(marker).exists():
            Path(marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(float(os.environ.get("SLOW", "0")))
        frames = -(-waveforms.shape[1] // 640)
        padded = torch.nn.functional.pad(waveforms, (0, 640 * frames - waveforms.shape[1]))
        logits = 40 * padded.reshape(-1, frames, 640)[..., :8]
        return logits.log_softmax(-1), -(-sample_lengths // 640)


def make(*, device: object, precision: object) -> Loudness:
    return Loudness()


def copy_to(folder: Path) -> None:
    """Makes the teacher a module of the folder, which the process then has on its path."""
    shutil.copy(__file__, folder / "loudness_of_tests.py")
