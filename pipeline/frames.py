"""Frame counts as exact formulas: how many frames a model makes of so many samples."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class FrameFormula:
    """A chain of strided windows, each `n -> floor((n + 2 * padding - kernel) / stride) + 1`.

    `ceil(n / 320)` is the single step `(1, 320, 0)`; a log-mel front end with 25 ms windows,
    10 ms hops and half a window of zeros at both ends is `(400, 160, 200)` at 16 kHz.

    Attributes:
        steps: `(kernel, stride, padding)` of each stage, the first one in samples.
    """

    steps: tuple[tuple[int, int, int], ...]

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
