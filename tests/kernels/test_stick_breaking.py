"""Stick-breaking: which tokens stay, their fractions, the way back, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from interkd.kernels import stick_breaking
from interkd.kernels.errors import BackendError, ConfigError, ShapeError
from interkd.kernels.reference import stick_breaking as reference
from interkd.kernels.stick_breaking import expand_stick_breaking, stick_breaking_topk


def assert_as_reference(log_probs: Tensor, device: torch.device, **options: Any) -> None:
    expected = reference.stick_breaking_topk(log_probs, **options)
    actual = stick_breaking_topk(log_probs.to(device), **options)
    assert actual.blank.dtype == actual.fractions.dtype == torch.float64
    for n, (blank, kept, best) in enumerate(expected):
        count = int(actual.counts[n])
        assert float(actual.blank[n]) == pytest.approx(blank, rel=1e-6, abs=1e-40)
        assert actual.tokens[n, :count].tolist() == [token for token, _ in kept]
        fractions = actual.fractions[n, :count].tolist()
        assert fractions == pytest.approx([fraction for _, fraction in kept], rel=2e-6)
        assert int(actual.best[n]) == best


@given(
    # Few distinct values, so that ties are the rule.
    rows=st.integers(2, 6).flatmap(
        lambda width: st.lists(
            st.lists(
                st.sampled_from([-torch.inf, -4.0, -2.0, -1.0, -0.5, -0.0, 0.0]),
                min_size=width,
                max_size=width,
            ).filter(lambda row: max(row) > -torch.inf),
            min_size=1,
            max_size=5,
        )
    ),
    max_tokens=st.integers(2, 8),
    mass=st.sampled_from([0.1371, 0.5113, 0.9991, 1.0]),
    data=st.data(),
)
def test_ties_and_zeros(
    device: torch.device, rows: list[list[float]], max_tokens: int, mass: float, data: st.DataObject
) -> None:
    log_probs = torch.tensor(rows)
    blank_index = data.draw(st.integers(0, log_probs.shape[1] - 1))
    assert_as_reference(
        log_probs, device, max_tokens=max_tokens, mass=mass, blank_index=blank_index
    )


@pytest.mark.parametrize("vocab_size", [2, 29, 1031])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_random_frames(device: torch.device, vocab_size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(vocab_size)
    log_probs = (4 * torch.randn(23, vocab_size)).log_softmax(1).to(dtype).float()
    for mass in (0.9, 0.999):
        assert_as_reference(log_probs, device, max_tokens=8, mass=mass, blank_index=1)


def test_the_mass_is_reached_with_the_fewest_tokens(device: torch.device) -> None:
    probs = torch.tensor([[0.05, 0.5, 0.3, 0.15], [0.97, 0.01, 0.01, 0.01]], device=device)
    kept = stick_breaking_topk(probs.log(), max_tokens=4, mass=0.79)
    assert kept.counts.tolist() == [2, 0]
    assert kept.tokens[0, :2].tolist() == [1, 2]
    assert kept.fractions[0, :2].tolist() == pytest.approx([0.5 / 0.95, 0.3 / 0.45])
    assert kept.best.tolist() == [1, 0]


def test_the_best_token_is_kept_whatever_the_mass(device: torch.device) -> None:
    probs = torch.tensor([[0.45, 0.55, 0.0]], device=device)
    kept = stick_breaking_topk(probs.log(), max_tokens=3, mass=0.4)
    assert (kept.counts.tolist(), kept.tokens[0, 0].item()) == ([1], 1)


def test_a_sure_frame_keeps_what_is_left_exactly(device: torch.device) -> None:
    """1 - b has no digits left in float32; the sum of the others has all of them."""
    logits = torch.tensor([[20.0, 0.0, -1.0, -2.0]], dtype=torch.float64)
    expected = logits.softmax(-1)[0, 1:]
    kept = stick_breaking_topk(logits.float().log_softmax(-1).to(device), max_tokens=4, mass=1.0)
    left = expected.flip(0).cumsum(0).flip(0)
    torch.testing.assert_close(kept.fractions[0].cpu(), expected / left, rtol=1e-6, atol=0)


def test_blocks_do_not_matter(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    log_probs = torch.randn(37, 11, device=device).log_softmax(1)
    whole = stick_breaking_topk(log_probs, max_tokens=4, mass=0.9)
    monkeypatch.setattr(stick_breaking, "_ELEMENTS_AT_ONCE", 50)
    blocks = stick_breaking_topk(log_probs, max_tokens=4, mass=0.9)
    assert torch.equal(whole.counts, blocks.counts)
    assert torch.equal(whole.fractions, blocks.fractions)
    assert stick_breaking_topk(log_probs[:0], max_tokens=4, mass=0.9).tokens.shape == (0, 3)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"max_tokens": 1}, ConfigError),
        ({"mass": 0.0}, ConfigError),
        ({"mass": 1.1}, ConfigError),
        ({"mass": float("nan")}, ConfigError),
        ({"blank_index": 3}, ShapeError),
        ({"blank_index": -1}, ShapeError),
        ({"log_probs": torch.zeros(2, 3, dtype=torch.int64)}, ShapeError),
        ({"log_probs": torch.zeros(3)}, ShapeError),
        ({"log_probs": torch.zeros(3, 1)}, ShapeError),
    ],
)
def test_refusals(change: dict[str, Any], error: type[Exception]) -> None:
    arguments = {"log_probs": torch.zeros(2, 3), "max_tokens": 2, "mass": 0.9, **change}
    with pytest.raises(error):
        stick_breaking_topk(arguments.pop("log_probs"), **arguments)


LEVELS = 8
VALUES = (np.arange(LEVELS) + 0.5) / LEVELS


@given(
    frames=st.lists(
        st.tuples(
            st.integers(0, LEVELS - 1),
            st.lists(st.tuples(st.integers(1, 9), st.integers(0, LEVELS - 1)), max_size=4),
        ),
        max_size=12,
    ),
    wide=st.booleans(),
)
def test_expansion(frames: list[tuple[int, list[tuple[int, int]]]], wide: bool) -> None:
    dtype: Any = np.uint16 if wide else np.uint8
    blank, tokens, fractions = [], [], []
    for code, entries in frames:
        blank.append(code + LEVELS * bool(entries))
        for rank, (token, fraction) in enumerate(entries, start=1):
            tokens.append(token)
            fractions.append(fraction + LEVELS * (rank < len(entries)))
    columns: list[Any] = [np.array(column, dtype) for column in (blank, tokens, fractions)]
    fast = expand_stick_breaking(columns[0], columns[1], columns[2], VALUES)
    plain = expand_stick_breaking(columns[0], columns[1], columns[2], VALUES, backend="reference")
    for i in range(3):
        assert fast[i].dtype == plain[i].dtype
        np.testing.assert_array_equal(fast[i], plain[i])
    offsets, out_tokens, log_probs = fast
    for n, (code, entries) in enumerate(frames):
        span = slice(int(offsets[n]), int(offsets[n + 1]))
        expected, left = [(0, VALUES[code])], 1 - VALUES[code]
        for token, fraction in entries:
            expected.append((token, left * VALUES[fraction]))
            left *= 1 - VALUES[fraction]
        found = list(zip(out_tokens[span].tolist(), np.exp(log_probs[span]), strict=True))
        assert sorted(t for t, _ in found) == sorted(t for t, _ in expected)
        np.testing.assert_allclose(
            sorted(p for _, p in found), sorted(p for _, p in expected), rtol=1e-5
        )
        assert sum(p for _, p in expected) + left == pytest.approx(1)
        assert found[0][1] == max(p for t, p in found[:2])


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize(
    ("blank", "fractions"),
    [([8 + 1], []), ([1], [2]), ([8 + 1], [2, 3]), ([8 + 1], [8 + 2]), ([], [1])],
)
def test_bits_that_do_not_fit(backend: str, blank: list[int], fractions: list[int]) -> None:
    columns = np.array(blank, np.uint8), np.array(fractions, np.uint8)
    with pytest.raises(ShapeError, match="continuation bits"):
        expand_stick_breaking(columns[0], columns[1], columns[1], VALUES, backend=backend)


def test_an_unknown_backend() -> None:
    empty = np.zeros(0, np.uint8)
    with pytest.raises(BackendError, match="cuda"):
        expand_stick_breaking(empty, empty, empty, VALUES, backend="cuda")
