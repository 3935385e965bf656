"""Frame selection: which frames of the teacher a student is asked to match."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from interkd.kernels.errors import ConfigError
from interkd.kernels.sparse import SparsePosteriors

_FORM = re.compile(r"(all|non-blank|symmetric)(?:\(\s*(\d+)\s*\))?")


@dataclass(frozen=True, kw_only=True)
class FrameSelection:
    """A rule that selects frames by what the teacher says there.

    `all` takes every frame. `non-blank` takes those whose most probable kept token is not the
    blank. `symmetric` takes the non-blank frames and `radius` frames to either side of them in
    time, within the utterance; radius 0 is `non-blank`.

    Attributes:
        kind: `all`, `non-blank` or `symmetric`.
        radius: Frames to either side, 0 unless the kind is `symmetric`.

    Raises:
        ConfigError: For an unknown kind, or a radius that is negative or has no meaning.

    Source: blank elimination and symmetric selection, arXiv 2506.01503.
    """

    kind: str = "all"
    radius: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("all", "non-blank", "symmetric"):
            raise ConfigError(
                "unknown frame selection",
                expected="all | non-blank | symmetric",
                got=repr(self.kind),
            )
        if self.radius < 0 or (self.radius and self.kind != "symmetric"):
            raise ConfigError(
                f"radius of the frame selection '{self.kind}'",
                expected="0 or more frames" if self.kind == "symmetric" else "0",
                got=self.radius,
            )

    @classmethod
    def parse(cls, text: str) -> FrameSelection:
        """Reads `all`, `non-blank` or `symmetric(2)`.

        Raises:
            ConfigError: For any other text.
        """
        match = _FORM.fullmatch(text.strip())
        if match is None or (match[1] == "symmetric") != (match[2] is not None):
            raise ConfigError(
                "frame selection", expected="all | non-blank | symmetric(N)", got=repr(text)
            )
        return cls(kind=match[1], radius=int(match[2] or 0))

    def __str__(self) -> str:
        return f"symmetric({self.radius})" if self.kind == "symmetric" else self.kind


def select_frames(teacher: SparsePosteriors, selection: FrameSelection | str) -> Tensor:
    """The teacher's frames that a selection takes.

    The most probable token of a frame is its first entry, as `SparsePosteriors` has it. A frame
    that keeps none counts as blank. N frames in all, utterance after utterance.

    Args:
        teacher: Cached posteriors.
        selection: A `FrameSelection` or its text.

    Returns:
        bool `(N,)` on the teacher's device.

    Raises:
        ConfigError: If the text names no selection.

    Source: arXiv 2506.01503; see `FrameSelection`.
    """
    if isinstance(selection, str):
        selection = FrameSelection.parse(selection)
    frames = len(teacher.entry_offsets) - 1
    device = teacher.tokens.device
    if selection.kind == "all":
        return torch.ones(frames, dtype=torch.bool, device=device)
    spiking = _most_probable(teacher) != teacher.blank_index
    if selection.radius == 0:
        return spiking
    utterance = teacher.utterance_of_frame()
    start, end = teacher.frame_offsets[utterance], teacher.frame_offsets[utterance + 1]
    frame = torch.arange(frames, device=device)
    # spikes_before[n] spikes stand before frame n, so a window holds one where the count rises.
    spikes_before = torch.nn.functional.pad(spiking.cumsum(0), (1, 0))
    first = torch.maximum(frame - selection.radius, start)
    last = torch.minimum(frame + selection.radius + 1, end)
    return spikes_before[last] > spikes_before[first]


def _most_probable(teacher: SparsePosteriors) -> Tensor:
    """Each frame's first entry, int64 `(N,)`; the blank where none is kept."""
    with_spare = torch.nn.functional.pad(teacher.tokens.long(), (0, 1), value=teacher.blank_index)
    is_empty = teacher.entry_offsets.diff() == 0
    return with_spare[teacher.entry_offsets[:-1]].masked_fill(is_empty, teacher.blank_index)
