"""Adaptive top-k: vectorised against plain, ties, the blank's place, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interkd.kernels import topk
from interkd.kernels.errors import ConfigError, ShapeError
from interkd.kernels.reference import topk as reference
from interkd.kernels.topk import adaptive_topk


@given(
    # Few distinct values, so that ties are the rule.
    rows=st.integers(1, 6).flatmap(
        lambda width: st.lists(
            st.lists(
                st.sampled_from([-torch.inf, -4.0, -2.0, -1.0, -0.5, -0.0, 0.0]),
                min_size=width,
                max_size=width,
            ),
            min_size=1,
            max_size=5,
        )
    ),
    max_tokens=st.integers(1, 8),
    mass=st.sampled_from([0.1, 0.5, 0.999, 1.0]),
    data=st.data(),
)
def test_vectorised_is_the_reference(
    device: torch.device, rows: list[list[float]], max_tokens: int, mass: float, data: st.DataObject
) -> None:
    log_probs = torch.tensor(rows)
    options: dict[str, Any] = {
        "max_tokens": max_tokens,
        "mass": mass,
        "blank_index": data.draw(st.integers(0, log_probs.shape[1] - 1)),
    }
    expected = reference.adaptive_topk(log_probs, **options)
    actual = adaptive_topk(log_probs.to(device), **options)
    for column, expected_column in zip(actual, expected, strict=True):
        assert column.dtype == expected_column.dtype
        assert torch.equal(column.cpu(), expected_column)


@pytest.mark.parametrize("vocab_size", [2, 29, 1031])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_random_frames(device: torch.device, vocab_size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(vocab_size)
    log_probs = (4 * torch.randn(23, vocab_size)).log_softmax(1).to(dtype)
    for mass in (0.9, 0.999):
        expected = reference.adaptive_topk(log_probs, max_tokens=8, mass=mass, blank_index=1)
        actual = adaptive_topk(log_probs.to(device), max_tokens=8, mass=mass, blank_index=1)
        for column, expected_column in zip(actual, expected, strict=True):
            assert torch.equal(column.cpu(), expected_column)


def test_the_mass_is_reached_with_the_fewest_tokens(device: torch.device) -> None:
    probs = torch.tensor([[0.05, 0.5, 0.3, 0.15], [0.97, 0.01, 0.01, 0.01]], device=device)
    counts, tokens, log_probs = adaptive_topk(probs.log(), max_tokens=4, mass=0.79)
    assert counts.tolist() == [3, 1]
    assert tokens.tolist() == [1, 0, 2, 0]  # the most probable first, the others rising
    torch.testing.assert_close(log_probs.exp().cpu(), torch.tensor([0.5, 0.05, 0.3, 0.97]))


def test_the_blank_takes_the_last_place(device: torch.device) -> None:
    probs = torch.tensor([[0.05, 0.5, 0.3, 0.15]], device=device)
    assert adaptive_topk(probs.log(), max_tokens=2, mass=0.79)[1].tolist() == [1, 0]
    assert adaptive_topk(probs.log(), max_tokens=1, mass=0.79)[1].tolist() == [0]


def test_blocks_of_frames_change_nothing(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    log_probs = torch.randn(13, 7, device=device).log_softmax(1)
    whole = adaptive_topk(log_probs, max_tokens=4, mass=0.9)
    monkeypatch.setattr(topk, "_ELEMENTS_AT_ONCE", 21)
    blocks = adaptive_topk(log_probs, max_tokens=4, mass=0.9)
    assert all(torch.equal(a, b) for a, b in zip(whole, blocks, strict=True))


def test_no_frames(device: torch.device) -> None:
    counts, tokens, log_probs = adaptive_topk(
        torch.zeros(0, 5, device=device), max_tokens=4, mass=0.9
    )
    assert (len(counts), len(tokens), len(log_probs)) == (0, 0, 0)
    assert (counts.dtype, tokens.dtype) == (torch.int64, torch.int32)


def test_misfits_are_refused() -> None:
    log_probs = torch.zeros(2, 3)
    refused: list[tuple[type[Exception], str, torch.Tensor, dict[str, Any]]] = [
        (ShapeError, "log_probs", torch.zeros(3), {}),
        (ShapeError, "log_probs", torch.zeros(2, 3, dtype=torch.int64), {}),
        (ShapeError, "NaN", torch.full((2, 3), torch.nan), {}),
        (ShapeError, "blank_index", log_probs, {"blank_index": 3}),
        (ConfigError, "max_tokens", log_probs, {"max_tokens": 0}),
        (ConfigError, "mass", log_probs, {"mass": 0.0}),
        (ConfigError, "mass", log_probs, {"mass": 1.5}),
    ]
    for error, message, values, change in refused:
        with pytest.raises(error, match=message):
            adaptive_topk(values, **{"max_tokens": 2, "mass": 0.9, **change})
