"""Quantisers of log-probabilities: float32 to the codes a store keeps, and back.

`log8`: one byte. With x = -log p, code c stands for x = 16 (c / 255)^3: probability 1 is exact,
codes lie 1e-6 apart there and 0.19 apart at p = 1e-7, below which every probability is stored as
exp(-16). A value takes the nearest code, so its error is at most half the gap between the two
codes around it: 0.0034 at p = 0.9, 0.015 at p = 0.37, 0.054 at p = 1e-3; the error of the
probability itself never passes 0.006.

`float16`: two bytes, round to nearest even. The error is at most max(2^-25, x 2^-11); what is
below -65504 is stored as -65504.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from interkd.kernels.errors import StoreError
from interkd.pipeline.cache.format import Array
from interkd.pipeline.config import nearest

LOG8_RANGE = 16.0
# float32 log_softmax leaves a few ulp above 0; logits passed by mistake are far above it.
MAX_LOG_PROB = 1e-3

Float32Array = npt.NDArray[np.float32]


class Quantiser(Protocol):
    """A pair of maps between float32 log-probabilities and codes of `code_dtype`."""

    @property
    def name(self) -> str:
        """The name that the fingerprint keeps."""
        ...

    @property
    def code_dtype(self) -> np.dtype[Any]:
        """Dtype of a code, little-endian."""
        ...

    @overload
    def quantise(self, log_probs: Tensor) -> Tensor: ...
    @overload
    def quantise(self, log_probs: Float32Array) -> Array: ...
    def quantise(self, log_probs: Float32Array | Tensor) -> Array | Tensor:
        """Codes of natural log-probabilities, float32 of any shape, on the device they are on.

        numpy and torch give the same codes, bit for bit, on every device.

        Raises:
            StoreError: For NaN, or values above 0 by more than rounding.
        """
        ...

    def dequantise(self, codes: Array) -> Float32Array:
        """Natural log-probabilities of codes, float32, finite and at most 0."""
        ...


def _check_range(log_probs: Float32Array | Tensor) -> None:
    if isinstance(log_probs, Tensor):
        largest = float(log_probs.max()) if log_probs.numel() else 0.0
    else:
        largest = float(log_probs.max()) if log_probs.size else 0.0
    if not largest <= MAX_LOG_PROB:  # NaN compares false
        raise StoreError(
            "log-probabilities to store",
            expected="at most 0",
            got=largest,
            remedy="the teacher must return log_softmax of finite logits",
        )


def _log8_table() -> Float32Array:
    companded = LOG8_RANGE * (np.arange(256, dtype=np.float64) / 255) ** 3
    return (0.0 - companded).astype(np.float32)


def _log8_thresholds() -> Float32Array:
    companded = LOG8_RANGE * (np.arange(256, dtype=np.float64) / 255) ** 3
    return ((companded[:-1] + companded[1:]) / 2).astype(np.float32)


@dataclass(frozen=True)
class Log8Quantiser:
    """Eight bits a log-probability, cubic companding of -log p on [0, 16]."""

    name: str = "log8"
    code_dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype("u1"))
    table: Float32Array = field(default_factory=_log8_table, repr=False)
    thresholds: Float32Array = field(default_factory=_log8_thresholds, repr=False)

    @overload
    def quantise(self, log_probs: Tensor) -> Tensor: ...
    @overload
    def quantise(self, log_probs: Float32Array) -> Array: ...
    def quantise(self, log_probs: Float32Array | Tensor) -> Array | Tensor:
        """The code of each value: how many thresholds (midpoints of codes) lie below -log p."""
        _check_range(log_probs)
        if isinstance(log_probs, Tensor):
            thresholds = torch.from_numpy(self.thresholds).to(log_probs.device)
            # bucketize warns of strided inputs, and a column of a matrix is one
            surprisal = (-log_probs.float()).contiguous()
            return torch.bucketize(surprisal, thresholds).to(torch.uint8)
        surprisal_array = -np.asarray(log_probs, dtype=np.float32)
        return np.searchsorted(self.thresholds, surprisal_array).astype(np.uint8)

    def dequantise(self, codes: Array) -> Float32Array:
        """The table's value of each code."""
        return np.take(self.table, codes)


@dataclass(frozen=True)
class Float16Quantiser:
    """IEEE half precision, saturated so that probability 0 stays finite."""

    name: str = "float16"
    code_dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype("<f2"))

    @overload
    def quantise(self, log_probs: Tensor) -> Tensor: ...
    @overload
    def quantise(self, log_probs: Float32Array) -> Array: ...
    def quantise(self, log_probs: Float32Array | Tensor) -> Array | Tensor:
        """The nearest half-precision number, at most 0."""
        _check_range(log_probs)
        lowest = float(np.finfo(np.float16).min)
        if isinstance(log_probs, Tensor):
            return log_probs.float().clamp(lowest, 0.0).to(torch.float16)
        return np.clip(np.asarray(log_probs, np.float32), lowest, 0.0).astype(self.code_dtype)

    def dequantise(self, codes: Array) -> Float32Array:
        """The same number in single precision."""
        return codes.astype(np.float32)


QUANTISERS: dict[str, Quantiser] = {q.name: q for q in (Log8Quantiser(), Float16Quantiser())}


@overload
def quantise(log_probs: Tensor, name: str) -> Tensor: ...
@overload
def quantise(log_probs: Float32Array, name: str) -> Array: ...
def quantise(log_probs: Float32Array | Tensor, name: str) -> Array | Tensor:
    """Codes of log-probabilities by the quantiser of that name; see `Quantiser.quantise`.

    Raises:
        StoreError: For an unknown quantiser, NaN, or values above 0 by more than rounding.
    """
    return get_quantiser(name).quantise(log_probs)


def dequantise(codes: Array, name: str) -> Float32Array:
    """Log-probabilities of codes by the quantiser of that name, float32.

    Raises:
        StoreError: For an unknown quantiser.
    """
    return get_quantiser(name).dequantise(codes)


def get_quantiser(name: str) -> Quantiser:
    """The quantiser of that name.

    Raises:
        StoreError: For a name that is not known, naming the nearest one.
    """
    if name not in QUANTISERS:
        raise StoreError(
            "quantiser",
            expected=" | ".join(sorted(QUANTISERS)),
            got=repr(name),
            remedy=nearest(name, QUANTISERS),
        )
    return QUANTISERS[name]
