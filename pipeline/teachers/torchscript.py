"""`torchscript:FILE`: waveforms and lengths in, log-probabilities and frame lengths out."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import torch
from torch import Tensor

from interkd.kernels.errors import TeacherError
from interkd.pipeline.frames import FrameFormula
from interkd.pipeline.teachers.protocol import TeacherInfo
from interkd.pipeline.teachers.weights import hash_weights

PROBE_SECONDS = 1.0


class TorchScriptTeacher:
    """A TorchScript file with `tokens.txt` beside it, one token a line, the blank first.

    The frame formula is measured: the samples at which the frame count steps give shift and
    offset. Every batch is then checked against it.
    """

    def __init__(
        self, file: str, *, device: torch.device, precision: torch.dtype, sample_rate: int = 16000
    ) -> None:
        path = Path(file)
        tokens_path = path.with_name("tokens.txt")
        if not path.is_file():
            raise TeacherError(f"no TorchScript file {path}")
        if not tokens_path.is_file():
            raise TeacherError(
                f"no tokens.txt beside {path}", remedy="one token a line, the blank first"
            )
        try:
            with warnings.catch_warnings():
                # torch steers authors towards torch.export; files that exist are still TorchScript.
                warnings.filterwarnings("ignore", category=DeprecationWarning)
                self.model = torch.jit.load(  # type: ignore[no-untyped-call]
                    str(path), map_location=device
                ).eval()
        except (RuntimeError, ValueError) as error:
            raise TeacherError(
                f"{path} is not a TorchScript file", got=str(error).split("\n")[0]
            ) from error
        self.precision = precision
        weights = [*self.model.named_parameters(), *self.model.named_buffers()]
        # A frozen module holds its weights as constants of its code: then the file is the weights.
        weights_sha256 = (
            hash_weights(weights) if weights else hashlib.sha256(path.read_bytes()).hexdigest()
        )
        if any(weight.dtype == torch.float16 for _, weight in weights) and device.type == "cpu":
            self.model = self.model.float()
        self.info = TeacherInfo(
            name=f"torchscript:{path.name}",
            weights_sha256=weights_sha256,
            tokens=tuple(tokens_path.read_text(encoding="utf-8").rstrip("\n").split("\n")),
            blank_index=0,
            sample_rate=sample_rate,
            frame_formula=self._measure_formula(device, round(PROBE_SECONDS * sample_rate)),
        )

    def _measure_formula(self, device: torch.device, samples: int) -> FrameFormula:
        """`floor((n - kernel) / shift) + 1`, from where the frame count of `n` samples steps."""

        def frames(n: int) -> int:
            _, lengths = self.log_probs(
                torch.zeros(1, n, device=device), torch.tensor([n], device=device)
            )
            return int(lengths[0])

        def first_step(n: int) -> int:
            """The smallest number of samples above `n` with more frames than `n` samples have."""
            count, low, high = frames(n), n, 2 * n
            while high - low > 1:
                middle = (low + high) // 2
                if frames(middle) > count:
                    high = middle
                else:
                    low = middle
            return high

        first = first_step(samples)
        shift = first_step(first) - first
        if frames(samples) < 1 or shift >= samples:
            raise TeacherError(
                f"the teacher gives {frames(samples)} frames for {samples} samples of silence",
                expected="a frame at least every second",
            )
        kernel = first - (frames(first) - 1) * shift
        padding = max(0, -(-(1 - kernel) // 2))  # a kernel below 1 means frames of padding
        return FrameFormula(((kernel + 2 * padding, shift, padding),))

    def log_probs(self, waveforms: Tensor, sample_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See `Teacher.log_probs`."""
        try:
            with torch.autocast(
                waveforms.device.type,
                dtype=torch.bfloat16,
                enabled=self.precision == torch.bfloat16,
            ):
                log_probs, frame_lengths = self.model(waveforms, sample_lengths)
        except (RuntimeError, TypeError, ValueError) as error:
            raise TeacherError(
                "the TorchScript teacher failed on (waveforms, lengths)",
                got=str(error).strip().split("\n")[-1],
            ) from error
        return log_probs, frame_lengths
