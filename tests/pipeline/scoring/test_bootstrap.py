from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from interkd.kernels.errors import ConfigError, CorpusError, ShapeError
from interkd.pipeline.scoring import bootstrap
from interkd.pipeline.scoring.bootstrap import bootstrap_interval, paired_bootstrap

Ints = npt.NDArray[np.int64]


def counts(utterances: int, rate: float, seed: int = 0) -> tuple[Ints, Ints]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, 30, utterances)
    return rng.binomial(lengths, rate), lengths


def test_interval_is_that_of_the_ratio_estimator() -> None:
    errors, lengths = counts(800, 0.12)
    rate = errors.sum() / lengths.sum()
    residuals = errors - rate * lengths
    deviation = math.sqrt(len(lengths) * residuals.var()) / lengths.sum()
    low, high = bootstrap_interval(errors, lengths)
    assert low == pytest.approx(100 * (rate - 1.96 * deviation), abs=0.05 * 100 * deviation * 1.96)
    assert high == pytest.approx(100 * (rate + 1.96 * deviation), abs=0.05 * 100 * deviation * 1.96)


def test_levels_nest_and_seeds_repeat() -> None:
    errors, lengths = counts(100, 0.2)
    wide = bootstrap_interval(errors, lengths, level=0.99, samples=2000)
    narrow = bootstrap_interval(errors, lengths, level=0.5, samples=2000)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    assert narrow == bootstrap_interval(errors, lengths, level=0.5, samples=2000)
    assert narrow != bootstrap_interval(errors, lengths, level=0.5, samples=2000, seed=1)


def test_small_blocks_draw_as_many_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    errors, lengths = counts(50, 0.2)
    whole = bootstrap_interval(errors, lengths, samples=1001)
    monkeypatch.setattr(bootstrap, "_DRAWS_PER_BLOCK", 350)
    blocks = list(bootstrap._resamples(np.stack([errors, lengths]).astype(float), 1001, 0))
    assert sum(block.shape[1] for block in blocks) == 1001
    assert max(block.shape[1] for block in blocks) == 7
    assert bootstrap_interval(errors, lengths, samples=1001) == pytest.approx(whole, abs=0.5)


def test_one_utterance_has_no_width() -> None:
    assert bootstrap_interval([2], [8], samples=50) == (25.0, 25.0)


def test_groups_draw_whole_speakers() -> None:
    errors = np.array([0] * 50 + [10] * 50)
    lengths = np.full(100, 10)
    by_utterance = bootstrap_interval(errors, lengths)
    by_speaker = bootstrap_interval(errors, lengths, groups=["a"] * 50 + ["b"] * 50)
    assert by_speaker == (0.0, 100.0)
    assert by_utterance[0] == pytest.approx(40, abs=2)
    assert by_utterance[1] == pytest.approx(60, abs=2)


def test_groups_of_one_utterance_change_nothing() -> None:
    errors, lengths = counts(40, 0.3)
    names = [f"{index:02d}" for index in range(40)]
    assert bootstrap_interval(errors, lengths, groups=names) == bootstrap_interval(errors, lengths)


def test_empty_references_count_their_insertions() -> None:
    low, high = bootstrap_interval([1, 0, 0, 3], [5, 5, 5, 0], samples=500)
    assert 0.0 <= low < 100 * 4 / 15 < high
    assert math.isfinite(high)


def test_the_same_system_is_not_different() -> None:
    errors, lengths = counts(200, 0.2)
    result = paired_bootstrap(errors, errors, lengths, samples=1000)
    assert (result.difference, result.low, result.high, result.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_a_clear_difference_is_significant() -> None:
    errors, lengths = counts(300, 0.3)
    better = np.maximum(errors - 1, 0)
    result = paired_bootstrap(errors, better, lengths)
    assert result.difference == pytest.approx(100 * (errors - better).sum() / lengths.sum())
    assert 0 < result.low < result.difference < result.high
    assert result.p_value == pytest.approx(2 / 10_001)
    swapped = paired_bootstrap(better, errors, lengths)
    assert swapped.difference == -result.difference
    assert (swapped.low, swapped.high) == pytest.approx((-result.high, -result.low))


def test_p_follows_the_normal_approximation() -> None:
    rng = np.random.default_rng(3)
    errors, lengths = counts(600, 0.2, seed=3)
    other = np.clip(errors + rng.integers(-1, 2, 600) + (rng.random(600) < 0.05), 0, None)
    difference = errors - other
    rate = difference.sum() / lengths.sum()
    deviation = math.sqrt(600 * (difference - rate * lengths).var()) / lengths.sum()
    expected = math.erfc(abs(rate) / deviation / math.sqrt(2))
    assert 0.005 < expected < 0.6
    assert paired_bootstrap(errors, other, lengths).p_value == pytest.approx(expected, abs=0.02)


def test_p_is_uniform_where_nothing_differs() -> None:
    rng = np.random.default_rng(5)
    lengths = np.full(80, 20)
    p_values = [
        paired_bootstrap(
            rng.binomial(lengths, 0.2), rng.binomial(lengths, 0.2), lengths, samples=400
        ).p_value
        for _ in range(200)
    ]
    assert np.mean(np.array(p_values) < 0.05) < 0.11
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.08)


def test_refusals() -> None:
    with pytest.raises(ShapeError, match="one value an utterance"):
        bootstrap_interval([1, 2], [3])
    with pytest.raises(ShapeError, match="groups"):
        bootstrap_interval([1, 2], [3, 3], groups=["a"])
    with pytest.raises(CorpusError, match="without a single word"):
        bootstrap_interval([1, 2], [0, 0])
    with pytest.raises(ConfigError, match="samples"):
        bootstrap_interval([1], [2], samples=0)
    with pytest.raises(ConfigError, match="level"):
        bootstrap_interval([1], [2], level=95)
    with pytest.raises(ShapeError):
        paired_bootstrap([1, 2], [1], [3, 3])
