from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interkd.pipeline.cache.compare import (
    LEAST_REST,
    best_tokens,
    compare_frames,
    entropies,
    probabilities,
)
from interkd.pipeline.cache.inspect import decode_store, info
from interkd.pipeline.cache.layout import Expanded
from interkd.pipeline.cache.reader import TeacherStore
from tests.properties import examples

if TYPE_CHECKING:
    from tests.pipeline.cache.conftest import StoreMaker

VOCAB = 7
Frame = dict[int, float]


def expanded(frames: list[Frame]) -> Expanded:
    offsets = np.cumsum([0, *map(len, frames)])
    tokens = [token for frame in frames for token in frame]
    probs = [p for frame in frames for p in frame.values()]
    return Expanded(
        entry_offsets=offsets.astype(np.int64),
        tokens=np.array(tokens, dtype=np.int32),
        log_probs=np.log(probs).astype(np.float32) if probs else np.zeros(0, np.float32),
    )


@st.composite
def frames_of(draw: st.DrawFn, count: int) -> list[Frame]:
    frames = []
    for _ in range(count):
        tokens = [0, *draw(st.lists(st.integers(1, VOCAB - 1), unique=True, max_size=5))]
        weights = [draw(st.floats(1e-4, 1)) for _ in tokens]
        rest = draw(st.sampled_from([0.0, 1e-5, 0.2, 1.0]))
        total = sum(weights) + rest
        frames.append({t: w / total for t, w in zip(tokens, weights, strict=True)})
    return frames


def reference(left: Frame, right: Frame) -> tuple[float, float, float]:
    """KL both ways and the largest difference, class by class."""
    shared = sorted(set(left) & set(right))
    sides = []
    for frame in (left, right):
        values = [math.exp(np.float32(math.log(frame[token]))) for token in shared]
        values.append(max(1 - sum(values), LEAST_REST))
        sides.append([value / sum(values) for value in values])
    pairs = list(zip(*sides, strict=True))
    return (
        sum(p * math.log(p / q) for p, q in pairs),
        sum(q * math.log(q / p) for p, q in pairs),
        max(abs(p - q) for p, q in pairs),
    )


@settings(max_examples=examples(60))
@given(data=st.data(), count=st.integers(0, 4))
def test_divergences_are_those_of_the_shared_tokens_and_one_bucket(
    data: st.DataObject, count: int
) -> None:
    left, right = (data.draw(frames_of(count)) for _ in range(2))
    found = compare_frames(expanded(left), expanded(right), VOCAB)
    expected = [reference(one, other) for one, other in zip(left, right, strict=True)]
    columns = (found.distances.divergence, found.distances.reverse, found.distances.largest)
    for index, column in enumerate(columns):
        np.testing.assert_allclose(column, [row[index] for row in expected], rtol=1e-6, atol=1e-9)
        assert (column >= 0).all()
    pairs = zip(left, right, strict=True)
    assert found.same_tokens.tolist() == [set(one) == set(other) for one, other in pairs]


def test_frames_are_identical_to_the_last_bit_or_not() -> None:
    frames: list[Frame] = [{0: 0.9, 3: 0.05}, {2: 0.6, 0: 0.3}, {0: 0.5}]
    nearly = [frames[0], {2: 0.6000001, 0: 0.3}, {0: 0.5, 1: 0.01}]
    found = compare_frames(expanded(frames), expanded(nearly), VOCAB)
    assert found.identical.tolist() == [True, False, False]
    assert found.same_tokens.tolist() == [True, True, False]
    assert found.distances.divergence[0] == 0.0
    shuffled = expanded([frames[0], {0: 0.3, 2: 0.6}, frames[2]])
    assert compare_frames(expanded(frames), shuffled, VOCAB).identical.all()


def test_entropy_counts_the_rest_as_one_class() -> None:
    frames: list[Frame] = [{0: 0.5, 1: 0.25}, {0: 1.0}, {0: 0.25}]
    expected = [
        0.5 * math.log(2) + 0.5 * math.log(4),
        0.0,
        0.25 * math.log(4) - 0.75 * math.log(0.75),
    ]
    assert entropies(expanded(frames)).tolist() == pytest.approx(expected, abs=1e-7)


def test_probabilities_rounded_past_one_are_divided_by_their_sum() -> None:
    probs, rest = probabilities(expanded([{0: 0.95, 1: 0.1}, {0: 0.9}]))
    assert probs.tolist() == pytest.approx([0.95 / 1.05, 0.1 / 1.05, 0.9])
    assert rest.tolist() == pytest.approx([0.0, 0.1])


def test_the_best_token_is_the_first_whatever_was_rounded() -> None:
    rounded = expanded([{1: 0.473, 0: 0.004, 2: 0.517}, {0: 0.4, 2: 0.4}])
    assert best_tokens(rounded).tolist() == [1, 0]
    assert best_tokens(expanded([])).tolist() == []


def test_decoding_keeps_the_teachers_best_of_two_rounded_tokens(
    maker: StoreMaker, tmp_path: Path
) -> None:
    fingerprint = maker.fingerprint(4, mass=0.999)
    probs = np.array([[0.005, 0.4973, 0.49, 0.0077], [0.99, 0.005, 0.003, 0.002]])
    made = maker.encode("u", np.log(probs).astype(np.float32), fingerprint)
    path = maker.write(tmp_path / "store", [made], fingerprint)
    stored = TeacherStore.open(path).targets(["u"])
    assert stored.log_probs[:3].argmax() == 2  # rounding gave the second token more
    assert list(decode_store(path)) == [("u", [1])]
    assert info(path).blank_share == 0.5
