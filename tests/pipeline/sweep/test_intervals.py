"""The bootstrap over utterances and seeds against every possible draw."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest

from interkd.kernels.errors import ConfigError, CorpusError, ShapeError
from interkd.pipeline.scoring.bootstrap import bootstrap_interval, paired_bootstrap
from interkd.pipeline.sweep.intervals import (
    interval,
    rates_of_heads,
    relative_reduction,
    resampled_rates,
)

Floats = npt.NDArray[np.float64]

LENGTHS = np.array([4.0, 7.0, 2.0])
A = np.array([[1.0, 5.0, 0.0], [3.0, 2.0, 2.0]])
B = np.array([[2.0, 6.0, 1.0], [4.0, 4.0, 2.0], [1.0, 7.0, 2.0]])


def rate(errors: Floats, utterances: tuple[int, ...], seeds: tuple[int, ...]) -> float:
    """As one says it: the mean over drawn seeds of errors by words."""
    words = sum(LENGTHS[u] for u in utterances)
    return float(np.mean([100 * sum(errors[s][u] for u in utterances) / words for s in seeds]))


def every_draw(size: int, draws: int) -> list[tuple[int, ...]]:
    return list(itertools.product(range(size), repeat=draws))


def assert_same_distribution(sampled: Floats, exact: list[float]) -> None:
    """Mean, spread and the whole distribution function, within sampling error."""
    assert sampled.mean() == pytest.approx(np.mean(exact), abs=0.15)
    assert sampled.std() == pytest.approx(np.std(exact), rel=0.03)
    for quantile in (0.025, 0.1, 0.3, 0.5, 0.8, 0.975):
        edge = np.quantile(exact, quantile) + 1e-6
        assert np.mean(sampled <= edge) == pytest.approx(np.mean(np.array(exact) <= edge), abs=0.01)


def test_rates_are_those_of_every_draw() -> None:
    rates = resampled_rates({"a": A, "b": B}, LENGTHS, samples=100_000)
    for name, errors in (("a", A), ("b", B)):
        exact = [
            rate(errors, utterances, seeds)
            for utterances in every_draw(3, 3)
            for seeds in every_draw(len(errors), len(errors) - 1)
        ]
        assert_same_distribution(rates[name], exact)


def test_reduction_pairs_utterances_and_not_seeds() -> None:
    rates = resampled_rates({"a": A, "b": B}, LENGTHS, samples=100_000)
    reduction = relative_reduction(rates["a"], rates["b"])
    exact = [
        100 * (1 - rate(A, utterances, seeds_a) / rate(B, utterances, seeds_b))
        for utterances in every_draw(3, 3)
        for seeds_a in every_draw(2, 1)
        for seeds_b in every_draw(3, 2)
    ]
    assert_same_distribution(reduction, exact)


def test_a_single_seed_is_the_plain_bootstrap() -> None:
    generator = np.random.default_rng(1)
    lengths = generator.integers(1, 20, size=200)
    first, second = (generator.binomial(lengths, share)[None] for share in (0.2, 0.3))
    rates = resampled_rates({"a": first, "b": second}, lengths, samples=20_000)
    assert interval(rates["a"]) == pytest.approx(
        bootstrap_interval(first[0], lengths, samples=20_000), abs=0.15
    )
    paired = paired_bootstrap(first[0], second[0], lengths, samples=20_000)
    difference = interval(rates["a"] - rates["b"])
    assert difference == pytest.approx((paired.low, paired.high), abs=0.15)


def test_seeds_widen_the_interval() -> None:
    lengths = np.full(300, 10)
    alike = np.full((3, 300), 2)
    apart = alike + np.array([[-1], [0], [1]])
    rates = resampled_rates({"alike": alike, "apart": apart}, lengths)
    assert interval(rates["alike"]) == pytest.approx((20, 20))
    low, high = interval(rates["apart"])
    assert (low, high) == pytest.approx((10, 30))
    of_the_mean = np.std([10, 20, 30], ddof=1) / np.sqrt(3)  # what a t-test takes
    assert rates["apart"].std() == pytest.approx(of_the_mean, rel=0.02)


def test_draws_depend_on_the_name_and_not_on_blocks_or_company() -> None:
    lengths = np.ones(3_000)
    table = np.random.default_rng(0).integers(0, 2, size=(2, 3_000))
    alone = resampled_rates({"a": table}, lengths, samples=1_500)["a"]
    together = resampled_rates({"b": table[:1], "a": table}, lengths, samples=1_500)
    np.testing.assert_array_equal(alone, together["a"])
    assert len(np.unique(alone)) > 200


def test_heads_share_their_draws() -> None:
    heads = np.stack([A, A + 1, A])
    rates = resampled_rates({"a": heads, "b": B}, LENGTHS, samples=1_000)
    alone = resampled_rates({"a": A}, LENGTHS, samples=1_000)["a"]
    assert rates["a"].shape == (3, 1_000)
    np.testing.assert_array_equal(rates["a"][0], alone)
    np.testing.assert_array_equal(rates["a"][2], alone)
    assert (rates["a"][1] > alone).all()
    first, second, _ = rates_of_heads({"a": heads}, LENGTHS, samples=1_000)["a"]
    assert first.value == pytest.approx(rate(A, (0, 1, 2), (0, 1)))
    assert (first.estimate.low, first.estimate.high) == interval(alone)
    less = first.reduction(second)
    assert less is not None
    assert (less.low, less.high) == interval(relative_reduction(alone, rates["a"][1]))


def test_empty_references_and_perfect_baselines_are_left_out() -> None:
    rates = resampled_rates({"a": [[1.0, 0.0]], "b": [[0.0, 0.0]]}, [2.0, 0.0], samples=1_000)
    assert np.isnan(rates["a"]).mean() == pytest.approx(0.25, abs=0.05)
    assert interval(rates["a"]) == (50.0, 50.0)
    with pytest.raises(CorpusError, match="no resample has a rate"):
        interval(relative_reduction(rates["a"], rates["b"]))


def test_bad_arguments() -> None:
    with pytest.raises(ShapeError, match=r"errors of a; expected \(seeds, 2\), got \(2,\)"):
        resampled_rates({"a": [1.0, 2.0]}, [1.0, 2.0])
    with pytest.raises(CorpusError, match="without a single word"):
        resampled_rates({"a": [[1.0]]}, [0.0])
    with pytest.raises(ConfigError, match="samples; expected at least 1"):
        resampled_rates({"a": [[1.0]]}, [1.0], samples=0)
    with pytest.raises(ConfigError, match="level"):
        interval(np.ones(3), level=1.0)
