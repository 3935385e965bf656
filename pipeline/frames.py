"""Frame counts as exact formulas: how many frames a model makes of so many samples."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from interkd.kernels.errors import ConfigError

TOLERATED_FRAMES = 2
"""By how many frames student and teacher may differ at an utterance's end.

Two models of one frame shift round the last, partial frame differently; one that does not pad its
windows (wav2vec 2.0: 400 samples, a frame every 320) makes one or two frames fewer.
"""


@dataclass(frozen=True)
class FrameFormula:
    """A chain of strided windows, each `n -> floor((n + 2 * padding - kernel) / stride) + 1`.

    `ceil(n / 320)` is the single step `(1, 320, 0)`; a log-mel front end with 25 ms windows,
    10 ms hops and half a window of zeros at both ends is `(400, 160, 200)` at 16 kHz.

    Attributes:
        steps: `(kernel, stride, padding)` of each stage, the first one in samples.
    """

    steps: tuple[tuple[int, int, int], ...]

    @classmethod
    def parse(cls, text: str) -> FrameFormula:
        """The formula that `str` writes, such as `1,320,0` or `400,160,200/3,2,1`.

        Raises:
            ConfigError: For a step without three whole numbers, or a kernel or stride below 1 or a
                padding below 0.
        """
        steps = []
        for step in text.split("/"):
            values = step.split(",")
            if len(values) != 3 or not all(v.isascii() and v.isdecimal() for v in values):
                raise ConfigError(
                    f"frame formula '{text}'",
                    expected="kernel,stride,padding of each stage, joined by '/'",
                    got=repr(step),
                )
            kernel, stride, padding = (int(value) for value in values)
            if kernel < 1 or stride < 1:
                raise ConfigError(
                    f"frame formula '{text}'", expected="kernel and stride above 0", got=repr(step)
                )
            steps.append((kernel, stride, padding))
        return cls(tuple(steps))

    def count(self, samples: int) -> int:
        """Frames of an utterance of `samples` samples; never below 0."""
        n = samples
        for kernel, stride, padding in self.steps:
            n = max(0, (n + 2 * padding - kernel) // stride + 1)
        return n

    @property
    def shift_samples(self) -> int:
        """Samples from one frame to the next."""
        return prod(stride for _, stride, _ in self.steps)

    def then(self, *steps: tuple[int, int, int]) -> FrameFormula:
        """This formula followed by further stages."""
        return FrameFormula((*self.steps, *steps))

    def __str__(self) -> str:
        """The steps as `kernel,stride,padding` joined by `/`, the form the command line takes."""
        return "/".join(",".join(str(value) for value in step) for step in self.steps)
