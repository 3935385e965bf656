"""Frame formulas against counting windows one by one."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interkd.kernels.errors import ConfigError
from interkd.pipeline.frames import FrameFormula

STEP = st.tuples(st.integers(1, 30), st.integers(1, 12), st.integers(0, 9))


@given(samples=st.integers(0, 2000), steps=st.lists(STEP, min_size=1, max_size=3))
def test_count_is_the_number_of_windows(samples: int, steps: list[tuple[int, int, int]]) -> None:
    n = samples
    for kernel, stride, padding in steps:
        n = len(range(0, n + 2 * padding - kernel + 1, stride))
    assert FrameFormula(tuple(steps)).count(samples) == n


def test_ceil_division_is_one_step() -> None:
    formula = FrameFormula(((1, 320, 0),))
    assert all(formula.count(n) == math.ceil(n / 320) for n in range(5000))
    assert formula.shift_samples == 320


@given(steps=st.lists(STEP, min_size=1, max_size=8))
def test_text_form_round_trips(steps: list[tuple[int, int, int]]) -> None:
    formula = FrameFormula(tuple(steps))
    assert FrameFormula.parse(str(formula)) == formula


@pytest.mark.parametrize("text", ["", "1,2", "1,0,0", "a,b,c", "1,2,3/", "0,1,0"])
def test_malformed_text_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        FrameFormula.parse(text)
