from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interkd.kernels.errors import StoreError
from interkd.pipeline.cache.writer import PartPlan, plan_parts

HASHES = ("00" * 16, "11" * 16, "22" * 16)


@given(
    seconds=st.lists(st.floats(0, 40), min_size=1, max_size=300),
    part_seconds=st.floats(1, 500),
)
def test_parts_are_contiguous_and_of_like_length(seconds: list[float], part_seconds: float) -> None:
    parts = plan_parts([f"u{i}" for i in range(len(seconds))], seconds, part_seconds)
    assert [i for part in parts for i in part] == list(range(len(seconds)))
    assert all(len(part) > 0 for part in parts)
    lengths = [sum(seconds[i] for i in part) for part in parts]
    assert max(lengths) <= 1.5 * part_seconds + max(seconds) + 1e-6


def test_an_hour_each() -> None:
    parts = plan_parts([str(i) for i in range(2500)], [10.0] * 2500, 3600.0)
    assert [len(part) for part in parts] == [357, 357, 357, 358, 357, 357, 357]


@pytest.mark.parametrize(
    ("seconds", "part_seconds", "words"),
    [
        ([], 3600.0, "at least one"),
        ([1.0, float("nan")], 3600.0, "'b'; expected 0 or more"),
        ([1.0, -1.0], 3600.0, "'b'; expected 0 or more"),
        ([1.0, 1.0], 0.0, "length of a part"),
    ],
)
def test_what_cannot_be_planned(seconds: list[float], part_seconds: float, words: str) -> None:
    with pytest.raises(StoreError, match=words):
        plan_parts(["a", "b"][: len(seconds)], seconds, part_seconds)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"utt_ids": ("a", "b")}, "as many audio hashes"),
        ({"utt_ids": ("a", "b", "a")}, "'a' stands twice"),
        ({"utt_ids": ("a", "b", "")}, "utterance id"),
        ({"utt_ids": ("a", "b", "c\nd")}, "utterance id"),
        ({"utt_ids": ("a", "b", "\ud800")}, "Unicode"),
        ({"audio_hashes": (*HASHES[:2], "zz")}, "audio hash"),
        ({"parts": (range(2), range(2, 2), range(2, 3))}, "none empty"),
        ({"parts": (range(2),)}, "cover 3 utterances"),
        ({"parts": (range(1, 3), range(1))}, "in order"),
        ({"parts": ()}, "got none"),
    ],
)
def test_a_plan_that_cannot_be(change: dict[str, Any], words: str) -> None:
    values: dict[str, Any] = {
        "utt_ids": ("a", "b", "c"),
        "audio_hashes": HASHES,
        "parts": (range(2), range(2, 3)),
    }
    with pytest.raises(StoreError, match=words):
        PartPlan(**{**values, **change})


def test_the_digest_tells_plans_apart() -> None:
    plan = PartPlan(utt_ids=("a", "b", "c"), audio_hashes=HASHES, parts=(range(2), range(2, 3)))
    others = [
        dataclasses.replace(plan, utt_ids=("a", "b", "d")),
        dataclasses.replace(plan, audio_hashes=HASHES[::-1]),
        dataclasses.replace(plan, parts=(range(1), range(1, 3))),
        dataclasses.replace(plan, parts=(range(3),)),
    ]
    assert len({p.digest for p in [plan, *others]}) == 5
