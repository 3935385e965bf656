from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from interkd.kernels.errors import StoreError
from interkd.pipeline.cache.codec import QUANTISERS, Log8Quantiser, get_quantiser

log_prob_arrays = st_numpy.arrays(
    np.float32,
    st.integers(0, 50),
    elements=st.floats(-120.0, 0.0, width=32)
    | st.just(-np.inf)
    | st.floats(-(2.0**-10), 0.0, width=32),
)


@given(log_probs=log_prob_arrays)
def test_log8_takes_the_nearest_code(log_probs: np.ndarray) -> None:
    quantiser = Log8Quantiser()
    codes = quantiser.quantise(log_probs)
    assert codes.dtype == np.uint8
    decoded = quantiser.dequantise(codes)
    assert decoded.dtype == np.float32
    clipped = np.maximum(log_probs, -16.0).astype(np.float64)
    nearest = np.abs(clipped[:, None] - quantiser.table.astype(np.float64)).min(axis=1)
    np.testing.assert_allclose(np.abs(clipped - decoded), nearest, rtol=0, atol=1e-6)


@given(log_probs=log_prob_arrays)
def test_float16_is_within_its_bound(log_probs: np.ndarray) -> None:
    quantiser = get_quantiser("float16")
    decoded = quantiser.dequantise(quantiser.quantise(log_probs)).astype(np.float64)
    clipped = np.maximum(log_probs, -65504.0).astype(np.float64)
    assert (np.abs(decoded - clipped) <= np.maximum(2.0**-25, -clipped * 2.0**-11)).all()
    assert np.isfinite(decoded).all()


@given(log_probs=log_prob_arrays, name=st.sampled_from(sorted(QUANTISERS)))
def test_torch_gives_the_codes_of_numpy(log_probs: np.ndarray, name: str) -> None:
    quantiser = get_quantiser(name)
    from_torch = quantiser.quantise(torch.from_numpy(log_probs))
    np.testing.assert_array_equal(from_torch.numpy(), quantiser.quantise(log_probs))


def test_the_device_gives_the_codes_of_numpy(device: torch.device) -> None:
    quantiser = Log8Quantiser()
    near_thresholds = np.concatenate(
        [np.nextafter(-quantiser.thresholds, np.float32(d)) for d in (-99, 0, 99)]
        + [-quantiser.thresholds, quantiser.table]
    ).astype(np.float32)
    near_thresholds = np.minimum(near_thresholds, np.float32(0))
    codes = quantiser.quantise(torch.from_numpy(near_thresholds).to(device))
    np.testing.assert_array_equal(codes.cpu().numpy(), quantiser.quantise(near_thresholds))


def test_every_code_survives_a_second_round() -> None:
    for name, codes in (
        ("log8", np.arange(256, dtype=np.uint8)),
        ("float16", -np.arange(0x7C00, dtype="<u2").view("<f2")),
    ):
        quantiser = get_quantiser(name)
        again = quantiser.quantise(quantiser.dequantise(codes))
        np.testing.assert_array_equal(again, codes)


def test_stated_errors_of_log8() -> None:
    quantiser = Log8Quantiser()
    probs = np.linspace(1e-7, 1.0, 200_001)
    log_probs = np.log(probs).astype(np.float32)
    decoded = quantiser.dequantise(quantiser.quantise(log_probs)).astype(np.float64)
    assert np.abs(np.exp(decoded) - probs).max() < 0.006
    for prob, bound in ((0.9, 0.0034), (0.37, 0.015), (1e-3, 0.054)):
        near = np.abs(probs - prob) < 1e-3 * prob
        assert np.abs(decoded - log_probs)[near].max() < bound
    assert quantiser.dequantise(np.zeros(1, np.uint8))[0] == 0.0
    assert not np.signbit(quantiser.dequantise(np.zeros(1, np.uint8)))[0]
    assert quantiser.table[255] == -16.0


@pytest.mark.parametrize("name", sorted(QUANTISERS))
@pytest.mark.parametrize("value", [np.nan, 0.5, np.inf])
def test_logits_and_nan_are_refused(name: str, value: float) -> None:
    values = np.array([-1.0, value, -2.0], dtype=np.float32)
    with pytest.raises(StoreError, match=r"expected at most 0, got"):
        get_quantiser(name).quantise(values)
    with pytest.raises(StoreError, match=r"expected at most 0, got"):
        get_quantiser(name).quantise(torch.from_numpy(values))


def test_rounding_above_zero_is_probability_one() -> None:
    for name in QUANTISERS:
        quantiser = get_quantiser(name)
        codes = quantiser.quantise(np.array([2e-7], dtype=np.float32))
        assert quantiser.dequantise(codes)[0] == 0.0


def test_unknown_quantiser_names_the_nearest() -> None:
    with pytest.raises(StoreError, match="did you mean 'float16'"):
        get_quantiser("float61")
