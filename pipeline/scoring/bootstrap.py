"""Bootstrap intervals of error rates, and the paired test of two systems."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from interkd.kernels.errors import ConfigError, CorpusError, ShapeError

Floats = npt.NDArray[np.float64]

_DRAWS_PER_BLOCK = 1 << 20  # bounds memory to some 20 MiB whatever the number of utterances


@dataclass(frozen=True, kw_only=True)
class PairedResult:
    """How far two systems lie apart on the same utterances.

    Attributes:
        difference: Rate of A less rate of B, in percent points; negative where A is better.
        low: Lower end of the difference's interval.
        high: Upper end.
        p_value: Two-sided; the share of resamples in which the sign is not that of the difference,
            doubled. At least `2 / (samples + 1)`, for a bootstrap cannot show less.
    """

    difference: float
    low: float
    high: float
    p_value: float


def bootstrap_interval(
    errors: npt.ArrayLike,
    lengths: npt.ArrayLike,
    *,
    samples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
    groups: Sequence[str] | None = None,
) -> tuple[float, float]:
    """Percentile interval of an error rate, resampling utterances or groups of them.

    Args:
        errors: Errors of each utterance `(n,)`.
        lengths: Reference length of each utterance `(n,)`.
        samples: Number of resamples.
        seed: Seed of the resampling.
        level: Coverage, between 0 and 1.
        groups: The group, such as the speaker, of each utterance. Then whole groups are drawn:
            utterances of one speaker are not independent, and intervals come out wider.

    Returns:
        Lower and upper end, in percent. A single utterance or group has an interval of width 0.

    Raises:
        ShapeError: If the columns differ in length.
        CorpusError: If the references are empty.
        ConfigError: If `samples` or `level` is out of range.

    Source: Bisani & Ney 2004, "Bootstrap estimates for confidence intervals in ASR performance
    evaluation".
    """
    columns = _columns([errors, lengths], groups)
    _check(samples, level)
    rates = np.concatenate(
        [_rates(block[0], block[1]) for block in _resamples(columns, samples, seed)]
    )
    return _interval(rates, level)


def paired_bootstrap(
    errors_a: npt.ArrayLike,
    errors_b: npt.ArrayLike,
    lengths: npt.ArrayLike,
    *,
    samples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
    groups: Sequence[str] | None = None,
) -> PairedResult:
    """Whether two systems differ, each resample drawing the same utterances for both.

    Args:
        errors_a: Errors of system A in each utterance `(n,)`.
        errors_b: Errors of system B in the same utterances `(n,)`.
        lengths: Reference length of each utterance `(n,)`.
        samples: Number of resamples.
        seed: Seed of the resampling.
        level: Coverage of the interval.
        groups: As in `bootstrap_interval`.

    Returns:
        The difference, its interval and the p-value.

    Raises:
        ShapeError: If the columns differ in length.
        CorpusError: If the references are empty.
        ConfigError: If `samples` or `level` is out of range.

    Source: Bisani & Ney 2004, section 4.
    """
    columns = _columns([errors_a, errors_b, lengths], groups)
    _check(samples, level)
    differences = np.concatenate(
        [_rates(block[0] - block[1], block[2]) for block in _resamples(columns, samples, seed)]
    )
    not_above, not_below = np.sum(differences <= 0), np.sum(differences >= 0)
    p_value = 2.0 * (1 + min(not_above, not_below)) / (1 + len(differences))
    sums = columns.sum(axis=1)
    low, high = _interval(differences, level)
    return PairedResult(
        difference=float(100.0 * (sums[0] - sums[1]) / sums[2]),
        low=low,
        high=high,
        p_value=min(1.0, float(p_value)),
    )


def _columns(values: list[npt.ArrayLike], groups: Sequence[str] | None) -> Floats:
    """The columns as float64 `(K, n)`, summed within groups; the last one holds the lengths."""
    arrays = [np.asarray(column, dtype=np.float64) for column in values]
    size = arrays[-1].size
    shapes = [array.shape for array in arrays]
    if any(shape != (size,) for shape in shapes):
        raise ShapeError("bootstrap columns", expected="one value an utterance in each", got=shapes)
    if arrays[-1].sum() == 0:
        raise CorpusError("a bootstrap over references without a single word")
    columns = np.stack(arrays)
    if groups is None:
        return columns
    if len(groups) != size:
        raise ShapeError("bootstrap groups", expected=f"{size}, one an utterance", got=len(groups))
    _, membership = np.unique(np.asarray(groups), return_inverse=True)
    return np.stack([np.bincount(membership, weights=column) for column in columns])


def _check(samples: int, level: float) -> None:
    if samples < 1:
        raise ConfigError("bootstrap samples", expected="at least 1", got=samples)
    if not 0.0 < level < 1.0:
        raise ConfigError("bootstrap level", expected="between 0 and 1", got=level)


def _resamples(columns: Floats, samples: int, seed: int) -> Iterator[Floats]:
    """Sums of each column over each resample, `(K, block)` at a time."""
    size = columns.shape[1]
    block = max(1, _DRAWS_PER_BLOCK // size)
    rng = np.random.default_rng(seed)
    for start in range(0, samples, block):
        draws = rng.integers(0, size, size=(min(block, samples - start), size), dtype=np.int32)
        yield np.stack([column[draws].sum(axis=1) for column in columns])


def _rates(errors: Floats, lengths: Floats) -> Floats:
    """Percent; a resample that drew only empty references has no rate and is left out."""
    drawn = lengths > 0
    return 100.0 * errors[drawn] / lengths[drawn]


def _interval(rates: Floats, level: float) -> tuple[float, float]:
    if rates.size == 0:
        raise CorpusError(
            "a bootstrap whose every resample is without a single word", remedy="draw more samples"
        )
    low, high = np.quantile(rates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
