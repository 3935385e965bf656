from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interkd.kernels.errors import ShapeError
from interkd.pipeline.scoring.decode import greedy_decode


def one_hot(paths: list[list[int]], vocab_size: int, device: torch.device) -> torch.Tensor:
    frames = max((len(path) for path in paths), default=0)
    scores = torch.zeros(len(paths), frames, vocab_size, device=device)
    for row, path in enumerate(paths):
        for frame, token in enumerate(path):
            scores[row, frame, token] = 1.0
    return scores


def plain_decode(path: list[int], frames: int, blank_index: int) -> list[int]:
    tokens, previous = [], None
    for token in path[:frames]:
        if token != previous and token != blank_index:
            tokens.append(token)
        previous = token
    return tokens


@given(data=st.data())
def test_agrees_with_a_plain_loop(data: st.DataObject, device: torch.device) -> None:
    vocab_size = data.draw(st.integers(2, 5))
    blank_index = data.draw(st.integers(0, vocab_size - 1))
    frames = data.draw(st.integers(1, 12))
    token = st.integers(0, vocab_size - 1)
    path = st.lists(token, min_size=frames, max_size=frames)
    paths = data.draw(st.lists(path, min_size=1, max_size=4))
    lengths = [data.draw(st.integers(0, frames)) for _ in paths]
    decoded = greedy_decode(
        one_hot(paths, vocab_size, device),
        torch.tensor(lengths, device=device),
        blank_index=blank_index,
    )
    assert decoded == [
        plain_decode(path, length, blank_index) for path, length in zip(paths, lengths, strict=True)
    ]


def test_blank_between_repeats_keeps_both(device: torch.device) -> None:
    scores = one_hot([[0, 2, 2, 0, 2, 1, 1]], 3, device)
    assert greedy_decode(scores, torch.tensor([7]), blank_index=0) == [[2, 2, 1]]


def test_padding_is_never_read(device: torch.device) -> None:
    scores = one_hot([[1, 2, 1], [1, 1, 2]], 3, device)
    scores[1, 1:] = float("nan")
    assert greedy_decode(scores, torch.tensor([3, 1]), blank_index=0) == [[1, 2, 1], [1]]


def test_no_frames_at_all(device: torch.device) -> None:
    scores = torch.zeros(2, 0, 3, device=device)
    assert greedy_decode(scores, torch.tensor([0, 0]), blank_index=0) == [[], []]


@pytest.mark.parametrize(
    ("shape", "lengths", "blank_index"),
    [((3, 4), [3], 0), ((2, 3, 4), [3], 0), ((1, 3, 4), [3], 4), ((1, 3, 4), [3], -1)],
)
def test_refuses_what_does_not_fit(
    shape: tuple[int, ...], lengths: list[int], blank_index: int
) -> None:
    with pytest.raises(ShapeError):
        greedy_decode(torch.zeros(shape), torch.tensor(lengths), blank_index=blank_index)
