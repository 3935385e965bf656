"""Teachers written frame by frame: `{token: probability}`, and what a kernel takes of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from interkd.kernels.sparse import SparsePosteriors

Frame = dict[int, float]
Utterances = Sequence[Sequence[Frame]]


def sparse(
    utterances: Utterances,
    vocab_size: int,
    device: torch.device | str = "cpu",
    blank_index: int = 0,
) -> SparsePosteriors:
    """Utterances of frames, the entries in the order in which a frame names them."""
    flat = [frame for utterance in utterances for frame in utterance]

    def offsets(counts: list[int]) -> Tensor:
        return torch.tensor([0, *itertools.accumulate(counts)])

    return SparsePosteriors(
        frame_offsets=offsets([len(utterance) for utterance in utterances]),
        entry_offsets=offsets([len(frame) for frame in flat]),
        tokens=torch.tensor([v for frame in flat for v in frame], dtype=torch.int32),
        log_probs=torch.tensor([p for frame in flat for p in frame.values()]).log(),
        vocab_size=vocab_size,
        blank_index=blank_index,
    ).to(torch.device(device))


def random_utterances(
    lengths: Sequence[int], vocab_size: int, most: int, *, std: float = 3.0, falling: bool = False
) -> Utterances:
    """Peaky frames with 0 to `most` entries: the most probable, falling, or any, in no order."""

    def frame() -> Frame:
        probs = (std * torch.randn(vocab_size)).softmax(0)
        count = int(torch.randint(0, min(most, vocab_size) + 1, ()))
        order = probs.argsort(descending=True) if falling else torch.randperm(vocab_size)
        return {int(v): float(probs[v]) for v in order[:count]}

    return [[frame() for _ in range(length)] for length in lengths]


def valueless(device: torch.device) -> SparsePosteriors:
    """Two utterances of 17 frames, 7 tokens: under FakeTensorMode, shapes that hold no values."""
    return SparsePosteriors(
        frame_offsets=torch.zeros(3, dtype=torch.int64, device=device),
        entry_offsets=torch.zeros(18, dtype=torch.int64, device=device),
        tokens=torch.zeros(50, dtype=torch.int32, device=device),
        log_probs=torch.zeros(50, device=device),
        vocab_size=7,
    )
