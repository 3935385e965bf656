"""Frame selection, plain: one utterance and one frame after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from interkd.kernels.selection import FrameSelection
from interkd.kernels.sparse import SparsePosteriors


def select_frames(teacher: SparsePosteriors, selection: FrameSelection | str) -> Tensor:
    """Frames that a selection takes, bool `(N,)`, as `kernels.selection.select_frames`."""
    if isinstance(selection, str):
        selection = FrameSelection.parse(selection)
    frame_offsets = teacher.frame_offsets.tolist()
    entry_offsets = teacher.entry_offsets.tolist()
    tokens = teacher.tokens.tolist()
    selected = []
    for b in range(teacher.batch_size):
        spiking = []
        for n in range(frame_offsets[b], frame_offsets[b + 1]):
            entries = range(entry_offsets[n], entry_offsets[n + 1])
            spiking.append(len(entries) > 0 and tokens[entries[0]] != teacher.blank_index)
        for t in range(len(spiking)):
            window = spiking[max(0, t - selection.radius) : t + selection.radius + 1]
            selected.append(selection.kind == "all" or any(window))
    return torch.tensor(selected, dtype=torch.bool, device=teacher.tokens.device)
