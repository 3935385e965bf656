"""Frame posteriors to the codes that a store keeps: probabilities, uniform in their angle.

A probability p is kept as the nearest of L levels of the angle arcsin(sqrt p), an entry's
probability being its share of the mass that the blank and the entries before it leave. The angle
is the coordinate in which the Fisher metric of a binary choice is constant: a step of it costs the
same Kullback-Leibler divergence everywhere, about 2 (angle error)^2 nats.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from interkd.kernels.errors import StoreError
from interkd.kernels.stick_breaking import StickBreaking, stick_breaking_topk
from interkd.pipeline.cache.format import Array
from interkd.pipeline.config import nearest

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class AngleQuantiser:
    """L levels of probability, uniform in arcsin(sqrt p); a fifth of a step from 0 and 1.

    With a = pi / 2 / (L - 0.6), code c stands for sin^2(a (c + 0.2)) and is taken by the
    probabilities whose angle is nearest. The error of the root of a probability is at most half a
    step, a / 2: 0.025 with 5 bits, 0.0124 with 6, 0.0062 with 7, 2.4e-5 with 15.

    Attributes:
        bits: Of a code, without its continuation bit.
    """

    bits: int

    @property
    def name(self) -> str:
        """The name that the fingerprint keeps."""
        return f"angle{self.bits}"

    @property
    def levels(self) -> int:
        """L."""
        return 1 << self.bits

    @property
    def code_dtype(self) -> np.dtype[Any]:
        """Dtype of a code plus its continuation bit, which is worth L; little-endian."""
        return np.dtype("u1" if self.bits <= 7 else "<u2")

    @cached_property
    def values(self) -> Float64Array:
        """Probability of each code, rising, float64 `(L,)`."""
        return _sin2((np.arange(self.levels) + 0.2) / (self.levels - 0.6))

    @cached_property
    def thresholds(self) -> Float64Array:
        """A probability takes the code that is the number of thresholds below it, `(L - 1,)`."""
        return _sin2((np.arange(self.levels - 1) + 0.7) / (self.levels - 0.6))

    @cached_property
    def _tables(self) -> dict[torch.device, tuple[Tensor, Tensor, Tensor]]:
        return {}

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Thresholds, log values and log rests on a device."""
        if device not in self._tables:
            columns = (self.thresholds, np.log(self.values), np.log1p(-self.values))
            one, two, three = (torch.from_numpy(column).to(device) for column in columns)
            self._tables[device] = one, two, three
        return self._tables[device]

    def quantise(self, probs: Tensor) -> Tensor:
        """Codes of probabilities, float64 of any shape, int64; NaN takes the last."""
        return torch.bucketize(probs, self._on(probs.device)[0])

    def ordered(self, blank: Tensor, first: Tensor, first_is_best: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of blank and first token that leave the most probable of them the most probable.

        Rounding may turn a near tie; one step of the blank's code turns it back, or, where the
        blank has no lower code, one of the first token's.

        Args:
            blank: Codes of the blank, int64 `(N,)`.
            first: Codes of the first token's fraction, int64 `(N,)`.
            first_is_best: Whether the first token is more probable than the blank, `(N,)`.
        """
        _, log_values, log_rests = self._on(blank.device)
        for _ in range(2):
            is_first = log_rests[blank] + log_values[first] > log_values[blank]
            step = is_first.long() - first_is_best.long()
            blank = (blank + step).clamp(0, self.levels - 1)
        is_first = log_rests[blank] + log_values[first] > log_values[blank]
        return blank, first + (first_is_best & ~is_first).long()


def _sin2(quarter_turns: npt.NDArray[Any]) -> Float64Array:
    sines: Float64Array = np.sin(np.pi / 2 * quarter_turns)
    return sines * sines


QUANTISERS = {q.name: q for q in map(AngleQuantiser, (5, 6, 7, 15))}


def get_quantiser(name: str) -> AngleQuantiser:
    """The quantiser of that name.

    Raises:
        StoreError: For a name that is not known, naming the nearest one.
    """
    if name not in QUANTISERS:
        raise StoreError(
            "quantiser",
            expected=" | ".join(QUANTISERS),
            got=repr(name),
            remedy=nearest(name, QUANTISERS),
        )
    return QUANTISERS[name]


@dataclass(frozen=True, kw_only=True)
class EncodedFrames:
    """Frames as codes, still side by side. N frames, K the most non-blank tokens of one.

    Attributes:
        blank: Codes of the blank with continuation bits, `(N,)`.
        counts: Non-blank tokens kept, `(N,)`.
        tokens: int32 `(N, K)`.
        fractions: Codes with continuation bits, `(N, K)`.
        best: Most probable token, int32 `(N,)`.
    """

    blank: Tensor
    counts: Tensor
    tokens: Tensor
    fractions: Tensor
    best: Tensor

    def columns(self) -> Iterator[Tensor]:
        """All of them, in the order of their definition."""
        yield from (self.blank, self.counts, self.tokens, self.fractions, self.best)


def encode_frames(
    log_probs: Tensor, *, top_k: int, mass: float, quantiser: AngleQuantiser, blank_index: int
) -> EncodedFrames:
    """The codes of a teacher's frames, made on the device they are on without waiting for it.

    Args:
        log_probs: Natural logarithms of a distribution per frame, floating `(N, V)`.
        top_k: Most tokens of a frame with the blank, at least 2.
        mass: Probability that they reach together where `top_k` allows.
        quantiser: Of blank and fractions.
        blank_index: Index of the blank.

    Raises:
        ShapeError: As `stick_breaking_topk`.
        ConfigError: As `stick_breaking_topk`.
    """
    kept = stick_breaking_topk(log_probs, max_tokens=top_k, mass=mass, blank_index=blank_index)
    return codes_of(kept, quantiser=quantiser, blank_index=blank_index)


def codes_of(kept: StickBreaking, *, quantiser: AngleQuantiser, blank_index: int) -> EncodedFrames:
    """The codes of fractions: continuation bits set, the best token still the best."""
    fractions = quantiser.quantise(kept.fractions)
    blank = quantiser.quantise(kept.blank)
    has_entries = kept.counts > 0
    ordered, first = quantiser.ordered(blank, fractions[:, 0], kept.best != blank_index)
    blank = torch.where(has_entries, ordered, blank)
    fractions[:, 0] = torch.where(has_entries, first, fractions[:, 0])
    ranks = torch.arange(1, fractions.shape[1] + 1, device=fractions.device)
    dtype = torch.uint8 if quantiser.bits <= 7 else torch.int32
    flag = quantiser.levels
    return EncodedFrames(
        blank=(blank + flag * has_entries).to(dtype),
        counts=kept.counts,
        tokens=kept.tokens,
        fractions=(fractions + flag * (ranks < kept.counts[:, None])).to(dtype),
        best=kept.best,
    )


def pack_codes(
    blank: Array, counts: Array, tokens: Array, fractions: Array
) -> tuple[Array, Array, Array]:
    """Frames side by side to a store's columns, kept entries frame after frame.

    Args:
        blank: As `EncodedFrames.blank`, on the host, `(N,)`.
        counts: `(N,)`.
        tokens: `(N, K)`.
        fractions: `(N, K)`.

    Returns:
        The columns `blank` `(N,)`, `token` and `fraction` `(E,)`, codes in the dtype of the store.
    """
    dtype = np.dtype("u1" if blank.dtype == np.uint8 else "<u2")
    kept = np.arange(tokens.shape[1]) < counts[:, None]
    return blank.astype(dtype), tokens[kept], fractions[kept].astype(dtype)
