"""Bootstrap over utterances and seeds at once, the same utterances for every system."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from interkd.kernels.errors import ConfigError, CorpusError, ShapeError
from interkd.pipeline.scoring.error_rates import Unit
from interkd.pipeline.sweep.scores import HeadScore, SplitScore, UnitCounts

Floats = npt.NDArray[np.float64]

_DRAWS_PER_BLOCK = 1 << 21  # bounds memory to some 50 MiB whatever the number of utterances


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure in percent with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Rates:
    """An error rate in percent, over all utterances and seeds and in each resample `(samples,)`."""

    value: float
    samples: Floats

    @property
    def estimate(self) -> Estimate:
        """With the interval of the resamples."""
        return _estimate(self.value, self.samples)

    def reduction(self, baseline: Rates) -> Estimate | None:
        """Relative to a baseline of the same resamples; None where that made no errors."""
        if baseline.value == 0:
            return None
        value = 100.0 * (1.0 - self.value / baseline.value)
        return _estimate(value, relative_reduction(self.samples, baseline.samples))


def _estimate(value: float, samples: Floats) -> Estimate:
    low, high = interval(samples)
    return Estimate(value=value, low=low, high=high)


def rates_of_scores(
    systems: Mapping[str, Sequence[SplitScore]], unit: Unit, *, samples: int
) -> dict[str, tuple[Rates, ...]]:
    """The rates of each head of each system, whose seeds were all scored on one set."""

    def counts(head: HeadScore) -> UnitCounts:
        return head.words if unit == "word" else head.characters

    (first, *_), *_ = systems.values()
    lengths = np.array(counts(first.heads[-1]).lengths, dtype=np.float64)
    errors = {
        name: np.array([[counts(head).errors for head in score.heads] for score in scores])
        for name, scores in systems.items()
    }
    by_head = {name: table.swapaxes(0, 1) for name, table in errors.items()}
    return rates_of_heads(by_head, lengths, samples=samples)


def rates_of_heads(
    errors: Mapping[str, npt.NDArray[Any]], lengths: Floats, *, samples: int
) -> dict[str, tuple[Rates, ...]]:
    """Rates of each head of each system, all from one drawing of utterances and seeds.

    Args:
        errors: For each system, of each head and seed the errors in each utterance, `(H, S, n)`.
        lengths: Reference length of each utterance, `(n,)`.
        samples: Number of resamples.

    Raises:
        InterkdError: As `resampled_rates`.
    """
    drawn = resampled_rates(errors, lengths, samples=samples)
    return {
        name: tuple(
            Rates(value=float(100.0 * table.sum(1).mean() / lengths.sum()), samples=rates)
            for table, rates in zip(heads, drawn[name], strict=True)
        )
        for name, heads in errors.items()
    }


def resampled_rates(
    errors: Mapping[str, npt.ArrayLike],
    lengths: npt.ArrayLike,
    *,
    samples: int = 10_000,
    seed: int = 0,
) -> dict[str, Floats]:
    """Error rates of several systems in resamples of utterances and seeds.

    A resample draws n of the n utterances with replacement, the same for all systems, and of each
    system S - 1 of its S seeds (1 of 1), independently of the other systems. Its rate is the mean
    over the drawn seeds of errors by reference length over the drawn utterances. S draws would have
    a spread of sqrt((S - 1) / S) of the mean's own; S - 1 have its own (Rao, Wu & Yue 1992).

    Args:
        errors: For each system, the errors of each seed in each utterance, `(S, n)` or, of H heads
            that share the draws of seeds, `(H, S, n)`.
        lengths: Reference length of each utterance, `(n,)`.
        samples: Number of resamples.
        seed: Seed of the resampling. A system's draws depend on its name, not on the others.

    Returns:
        For each system the rates in percent, `(samples,)` or `(H, samples)`; NaN where only empty
        references were drawn.

    Raises:
        ShapeError: If the columns differ in length.
        CorpusError: If the references are empty.
        ConfigError: If `samples` is below 1.
    """
    weights = np.asarray(lengths, dtype=np.float64)
    tables = {name: np.asarray(table, dtype=np.float64) for name, table in errors.items()}
    for name, table in tables.items():
        if weights.ndim != 1 or table.ndim not in (2, 3) or table.shape[-1:] != weights.shape:
            raise ShapeError(
                f"errors of {name}", expected=f"(seeds, {weights.size})", got=table.shape
            )
    if weights.sum() == 0:
        raise CorpusError("a bootstrap over references without a single word")
    if samples < 1:
        raise ConfigError("bootstrap samples", expected="at least 1", got=samples)
    size = weights.size
    block = max(1, _DRAWS_PER_BLOCK // size)
    utterances = np.random.default_rng(seed)
    generators = {name: np.random.default_rng([seed, zlib.crc32(name.encode())]) for name in tables}
    rates = {name: np.empty((*table.shape[:-2], samples)) for name, table in tables.items()}
    for start in range(0, samples, block):
        count = min(block, samples - start)
        drawn = _counts(utterances, size, count, draws=size)
        total = drawn @ weights
        total[total == 0] = np.nan
        for name, table in tables.items():
            seeds = table.shape[-2]
            draws = max(1, seeds - 1)
            shares = _counts(generators[name], seeds, count, draws=draws) / draws
            sums = np.einsum("...sb,bs->...b", table @ drawn.T, shares)
            rates[name][..., start : start + count] = 100.0 * sums / total
    return rates


def _counts(generator: np.random.Generator, size: int, samples: int, *, draws: int) -> Floats:
    """How often each of `size` things is drawn, `(samples, size)`."""
    drawn = generator.integers(0, size, size=(samples, draws), dtype=np.int64)
    drawn += size * np.arange(samples)[:, None]
    flat = np.bincount(drawn.ravel(), minlength=samples * size)
    return flat.reshape(samples, size).astype(np.float64)


def relative_reduction(rates: Floats, baseline: Floats) -> Floats:
    """By how many percent each rate lies below the baseline's in the same resample.

    Where the baseline made no errors there is nothing to reduce: NaN.
    """
    return 100.0 * (1.0 - rates / np.where(baseline > 0, baseline, np.nan))


def interval(values: Floats, *, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval, NaN left out.

    Raises:
        ConfigError: If `level` is out of range.
        CorpusError: If no value is left.
    """
    if not 0.0 < level < 1.0:
        raise ConfigError("bootstrap level", expected="between 0 and 1", got=level)
    known = values[~np.isnan(values)]
    if known.size == 0:
        raise CorpusError("a bootstrap of which no resample has a rate")
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
