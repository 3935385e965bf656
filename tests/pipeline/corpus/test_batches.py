"""Batches: every utterance once, within the limit, and resumed exactly."""

from __future__ import annotations

import json
import warnings
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interkd.kernels.errors import CheckpointError, ConfigError
from interkd.pipeline.corpus.batches import BatchSampler, length_sorted_batches
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
    defaults: dict[str, Any] = {"max_seconds": 20.0, "buckets": 4, "seed": 3, "shuffle": True}
    return BatchSampler(utterances_of(samples), **(defaults | settings))


LENGTHS = st.lists(st.integers(1, 20 * RATE), min_size=4, max_size=80)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 9), st.integers(0, 5), st.booleans(), st.integers(0, 50))
def test_every_utterance_once_and_resumed_exactly(
    samples: list[int], buckets: int, epoch: int, shuffle: bool, stop: int
) -> None:
    sampler = a_sampler(samples, buckets=buckets, shuffle=shuffle)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(sampler) == len(batches)
    assert sorted(chain(*batches)) == list(range(len(samples)))
    for batch in batches:
        assert max(samples[i] for i in batch) * len(batch) <= 20 * RATE

    stop = min(stop, len(batches))
    running = a_sampler(samples, buckets=buckets, shuffle=shuffle)
    running.set_epoch(epoch)
    iterator = iter(running)
    head = [next(iterator) for _ in range(stop)]
    state = json.loads(json.dumps(running.state_dict()))
    resumed = a_sampler(samples, buckets=buckets, shuffle=shuffle)
    resumed.load_state_dict(state)
    resumed.set_epoch(epoch)
    assert head + list(resumed) == batches
    assert list(resumed) == batches  # the next pass is whole again


@settings(max_examples=50, deadline=None)
@given(LENGTHS, st.integers(1, 4))
def test_ranks_share_an_epoch(samples: list[int], world_size: int) -> None:
    ranks = [list(a_sampler(samples, rank=r, world_size=world_size)) for r in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    heard = sorted(index for batches in ranks for batch in batches for index in batch)
    assert sorted(set(heard)) == list(range(len(samples)))
    if len(heard) > len(samples):  # only where nothing is left to halve
        assert all(len(batch) == 1 for batches in ranks for batch in batches)


def test_one_state_resumes_every_rank() -> None:
    samples = np.random.default_rng(0).integers(500, 5000, 60).tolist()
    first = a_sampler(samples, rank=0, world_size=2)
    iterator = iter(first)
    next(iterator)
    second = a_sampler(samples, rank=1, world_size=2)
    expected = list(second)[1:]
    second.load_state_dict(first.state_dict())
    assert list(second) == expected


def test_ranks_work_on_similar_lengths() -> None:
    samples = np.random.default_rng(0).integers(100, 10_000, 400).tolist()
    ranks = [list(a_sampler(samples, buckets=20, rank=r, world_size=2)) for r in range(2)]
    longest = np.array([[max(samples[i] for i in batch) for batch in rank] for rank in ranks])
    assert np.abs(longest[0] - longest[1]).mean() < 0.1 * longest.mean()


def test_orders_differ_by_seed_and_by_epoch() -> None:
    samples = np.random.default_rng(0).integers(500, 5000, 60).tolist()
    orders = set()
    for seed in range(3):
        sampler = a_sampler(samples, seed=seed)
        for epoch in range(3):
            sampler.set_epoch(epoch)
            orders.add(str(list(sampler)))
    assert len(orders) == 9


def test_another_epoch_discards_the_restored_position() -> None:
    sampler = a_sampler([1000] * 100)
    next(iter(sampler))
    other = a_sampler([1000] * 100)
    other.load_state_dict(sampler.state_dict())
    other.set_epoch(1)
    assert len(list(other)) == len(other)


def test_buckets_waste_little_padding() -> None:
    samples = np.random.default_rng(0).integers(1000, 20_000, 4000).tolist()

    def padded(buckets: int) -> Any:
        batches = list(a_sampler(samples, max_seconds=200, buckets=buckets))
        return sum(max(samples[i] for i in batch) * len(batch) for batch in batches) / sum(samples)

    assert padded(20) < 1.08 < padded(1)


@pytest.mark.parametrize("fixed_shapes", [False, True])
def test_a_bucket_leaves_over_to_the_next_one(fixed_shapes: bool) -> None:
    lengths = np.random.default_rng(0).integers(1_000, 16_000, 1000).tolist()
    sampler = a_sampler(lengths, max_seconds=32, buckets=20, fixed_shapes=fixed_shapes)
    padded = [len(batch) * sampler.padded_samples[batch].max() for batch in sampler]
    short = [total for total in padded if total < 32 * RATE - 16_000]  # one more would have fitted
    assert len(short) <= 1 + 2 * (not fixed_shapes)


def test_long_utterances_are_batches_by_themselves() -> None:
    with pytest.warns(UserWarning, match=r"2 utterances .* 20,.*'u2', has 40\.0 s"):
        sampler = a_sampler([1000, 30_000, 40_000, 1000])
    assert sorted(sorted(batch) for batch in sampler) == [[0, 3], [1], [2]]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"seed": 4}, "seed"),
        ({"buckets": 2}, "buckets"),
        ({"max_seconds": 30.0}, "max_seconds"),
        ({"shuffle": False}, "shuffle"),
        ({"world_size": 2}, "world_size"),
    ],
)
def test_other_settings_do_not_resume(change: dict[str, Any], name: str) -> None:
    samples = [1000, 2000, 3000, 4000, 5000]
    state = a_sampler(samples).state_dict()
    with pytest.raises(CheckpointError, match=f"'{name}' differs"):
        a_sampler(samples, **change).load_state_dict(state)
    with pytest.raises(CheckpointError, match="'utterances' differs"):
        a_sampler([*samples[:-1], 5001]).load_state_dict(state)


@pytest.mark.parametrize(
    "change",
    [
        {"max_seconds": 0.0},
        {"buckets": 0},
        {"seed": -1},
        {"rank": 1},
        {"rank": 0, "world_size": 4},
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
    world_size=st.integers(1, 3),
)
def test_an_epoch_goes_through_the_groups_once(
    samples: list[int], group_count: int, at_once: int, world_size: int
) -> None:
    groups = [i * group_count // len(samples) for i in range(len(samples))]
    ranks = [
        a_sampler(
            samples,
            groups=groups,
            groups_at_once=at_once,
            rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]
    steps = list(zip(*ranks, strict=True))
    heard = [i for step in steps for batch in step for i in batch]
    assert set(heard) == set(range(len(samples)))
    windows: list[set[int]] = []
    for step in steps:
        now = {groups[i] for batch in step for i in batch}
        if windows and len(windows[-1] | now) <= at_once:
            windows[-1] |= now
        else:
            windows.append(now)
    assert sum(len(window) for window in windows) == len({*groups})  # none is come back to


def test_fixed_shapes_recur_and_long_utterances_stay_alone() -> None:
    generator = np.random.default_rng(0)
    samples = [*generator.integers(1_000, 16_000, 500).tolist(), 1000 * 40]
    with pytest.warns(UserWarning, match="longer than max_seconds"):
        sampler = BatchSampler(
            utterances_of(samples),
            max_seconds=32,
            buckets=6,
            seed=1,
            shuffle=True,
            fixed_shapes=True,
        )
    seen = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert sorted(i for batch in batches for i in batch) == list(range(501))
        assert [500] in batches
        padded = sampler.padded_samples
        seen.append({(len(batch), int(padded[batch].max())) for batch in batches})
        for batch in batches:
            assert len(batch) == 1 or len(batch) * padded[batch].max() <= 32 * RATE
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0]) <= 8  # six buckets, what the last leaves over, the long one
    assert sampler.padded_samples[:500].max() <= 16_000
