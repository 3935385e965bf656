"""Batches: every utterance once, within the limit, and the same at every start."""

from __future__ import annotations

import warnings
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interkd.kernels.errors import ConfigError
from interkd.pipeline.corpus.batches import BatchSampler, digest_of, length_sorted_batches
from interkd.pipeline.corpus.manifest import Utterance

RATE = 1000


def utterances_of(samples: list[int]) -> list[Utterance]:
    return [
        Utterance(
            utt_id=f"u{index}",
            audio_path=Path("/a.wav"),
            samples=count,
            sample_rate=RATE,
            text="A",
            audio_hash="0",
            source_rate=RATE,
        )
        for index, count in enumerate(samples)
    ]


def a_sampler(samples: list[int], **settings: Any) -> BatchSampler:
    defaults: dict[str, Any] = {"max_seconds": 20.0, "buckets": 4, "seed": 3}
    return BatchSampler(utterances_of(samples), **(defaults | settings))


LENGTHS = st.lists(st.integers(1, 20 * RATE), min_size=4, max_size=80)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 9), st.integers(0, 5), st.booleans())
def test_every_utterance_once_and_the_same_at_every_start(
    samples: list[int], buckets: int, epoch: int, fixed_shapes: bool
) -> None:
    sampler = a_sampler(samples, buckets=buckets, fixed_shapes=fixed_shapes)
    sampler.batches(epoch + 1)  # leaves no trace
    batches = sampler.batches(epoch)
    assert sorted(chain(*batches)) == list(range(len(samples)))
    for batch in batches:
        assert sampler.padded_samples[batch].max() * len(batch) <= 20 * RATE
    again = a_sampler(samples, buckets=buckets, fixed_shapes=fixed_shapes).batches(epoch)
    assert again == batches
    assert digest_of(again) == digest_of(batches)


def test_digests_differ_where_batches_do() -> None:
    several = ([[0, 1], [2]], [[0], [1, 2]], [[2], [0, 1]], [[0, 1, 2]], [[1, 0], [2]])
    assert len({digest_of(batches) for batches in several}) == len(several)


@settings(max_examples=50, deadline=None)
@given(LENGTHS, st.integers(1, 4))
def test_steps_have_equally_many_batches(samples: list[int], batches_a_step: int) -> None:
    batches = a_sampler(samples, batches_a_step=batches_a_step).batches(0)
    assert len(batches) % batches_a_step == 0
    heard = sorted(chain(*batches))
    assert sorted(set(heard)) == list(range(len(samples)))
    if len(heard) > len(samples):  # only where nothing is left to halve
        assert all(len(batch) == 1 for batch in batches)


def test_batches_of_a_step_are_of_similar_lengths() -> None:
    samples = np.random.default_rng(0).integers(100, 10_000, 400).tolist()
    batches = a_sampler(samples, buckets=20, batches_a_step=2).batches(0)
    longest = np.array([max(samples[i] for i in batch) for batch in batches]).reshape(-1, 2)
    assert np.abs(longest[:, 0] - longest[:, 1]).mean() < 0.1 * longest.mean()


def test_orders_differ_by_seed_and_by_epoch() -> None:
    samples = np.random.default_rng(0).integers(500, 5000, 60).tolist()
    orders = {
        digest_of(a_sampler(samples, seed=seed).batches(epoch))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


def test_buckets_waste_little_padding() -> None:
    samples = np.random.default_rng(0).integers(1000, 20_000, 4000).tolist()

    def padded(buckets: int) -> Any:
        batches = a_sampler(samples, max_seconds=200, buckets=buckets).batches(0)
        return sum(max(samples[i] for i in batch) * len(batch) for batch in batches) / sum(samples)

    assert padded(20) < 1.08 < padded(1)


@pytest.mark.parametrize("fixed_shapes", [False, True])
def test_a_bucket_leaves_over_to_the_next_one(fixed_shapes: bool) -> None:
    lengths = np.random.default_rng(0).integers(1_000, 16_000, 1000).tolist()
    sampler = a_sampler(lengths, max_seconds=32, buckets=20, fixed_shapes=fixed_shapes)
    padded = [len(batch) * sampler.padded_samples[batch].max() for batch in sampler.batches(0)]
    short = [total for total in padded if total < 32 * RATE - 16_000]  # one more would have fitted
    assert len(short) <= 1 + 2 * (not fixed_shapes)


def test_long_utterances_are_batches_by_themselves() -> None:
    with pytest.warns(UserWarning, match=r"2 utterances .* 20,.*'u2', has 40\.0 s"):
        sampler = a_sampler([1000, 30_000, 40_000, 1000])
    assert sorted(sorted(batch) for batch in sampler.batches(0)) == [[0, 3], [1], [2]]


@pytest.mark.parametrize(
    "change",
    [
        {"max_seconds": 0.0},
        {"buckets": 0},
        {"seed": -1},
        {"batches_a_step": 0},
        {"batches_a_step": 4},
        {"groups_at_once": 0},
    ],
)
def test_settings_that_cannot_be(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(reversed(change))):
        a_sampler([1000, 1000], **change)


@settings(deadline=None)
@given(st.lists(st.integers(1, 30 * RATE), max_size=60))
def test_length_sorted_batches(samples: list[int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batches = length_sorted_batches(utterances_of(samples), 20.0)
    order = list(chain(*batches))
    assert order == sorted(range(len(samples)), key=lambda i: samples[i])
    for batch in batches:
        assert len(batch) == 1 or samples[batch[-1]] * len(batch) <= 20 * RATE


@settings(max_examples=40, deadline=None)
@given(
    samples=st.lists(st.integers(1, 20_000), min_size=4, max_size=60),
    group_count=st.integers(1, 9),
    at_once=st.integers(1, 4),
    batches_a_step=st.integers(1, 3),
)
def test_an_epoch_goes_through_the_groups_once(
    samples: list[int], group_count: int, at_once: int, batches_a_step: int
) -> None:
    groups = [i * group_count // len(samples) for i in range(len(samples))]
    batches = a_sampler(
        samples, groups=groups, groups_at_once=at_once, batches_a_step=batches_a_step
    ).batches(0)
    assert set(chain(*batches)) == set(range(len(samples)))
    windows: list[set[int]] = []
    for first in range(0, len(batches), batches_a_step):
        now = {groups[i] for i in chain(*batches[first : first + batches_a_step])}
        if windows and len(windows[-1] | now) <= at_once:
            windows[-1] |= now
        else:
            windows.append(now)
    assert sum(len(window) for window in windows) == len({*groups})  # none is come back to


def test_fixed_shapes_recur_and_long_utterances_stay_alone() -> None:
    generator = np.random.default_rng(0)
    samples = [*generator.integers(1_000, 16_000, 500).tolist(), 1000 * 40]
    with pytest.warns(UserWarning, match="longer than max_seconds"):
        sampler = a_sampler(samples, max_seconds=32, buckets=6, fixed_shapes=True)
    seen = []
    for epoch in range(3):
        batches = sampler.batches(epoch)
        assert sorted(i for batch in batches for i in batch) == list(range(501))
        assert [500] in batches
        padded = sampler.padded_samples
        seen.append({(len(batch), int(padded[batch].max())) for batch in batches})
        for batch in batches:
            assert len(batch) == 1 or len(batch) * padded[batch].max() <= 32 * RATE
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0]) <= 8  # six buckets, what the last leaves over, the long one
    assert sampler.padded_samples[:500].max() <= 16_000
