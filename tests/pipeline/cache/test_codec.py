"""The quantiser's bounds, and frames as codes: exact argmax, a distribution whatever rounds it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interkd.kernels.errors import StoreError
from interkd.kernels.stick_breaking import expand_stick_breaking
from interkd.pipeline.cache.codec import QUANTISERS, encode_frames, get_quantiser, pack_codes
from tests.properties import examples

NAMES = sorted(QUANTISERS)


@pytest.mark.parametrize("name", NAMES)
def test_stated_error(name: str, device: torch.device) -> None:
    quantiser = QUANTISERS[name]
    near_ends = torch.logspace(-12, 0, 4001, dtype=torch.float64)
    probs = torch.cat([near_ends, 1 - near_ends, torch.linspace(0, 1, 4001, dtype=torch.float64)])
    codes = quantiser.quantise(probs.to(device)).cpu()
    values = torch.from_numpy(quantiser.values)[codes]
    angles = (probs.sqrt().asin() - values.sqrt().asin()).abs()
    step = np.pi / 2 / (quantiser.levels - 0.6)
    assert float(angles.max()) <= step / 2 + 1e-7
    assert float((probs.sqrt() - values.sqrt()).abs().max()) <= step / 2 + 1e-7


@pytest.mark.parametrize("name", NAMES)
def test_the_tables(name: str) -> None:
    quantiser = QUANTISERS[name]
    values, thresholds = quantiser.values, quantiser.thresholds
    assert (len(values), len(thresholds)) == (quantiser.levels, quantiser.levels - 1)
    assert (np.diff(values) > 0).all()
    assert ((values[:-1] < thresholds) & (thresholds < values[1:])).all()
    np.testing.assert_allclose(values + values[::-1], 1, atol=1e-12)
    again = quantiser.quantise(torch.from_numpy(values))
    assert again.tolist() == list(range(quantiser.levels))
    assert quantiser.levels * 2 <= np.iinfo(quantiser.code_dtype).max + 1


def test_angle5_to_the_digit() -> None:
    values = QUANTISERS["angle5"].values
    expected = [np.sin(np.pi / 2 * (c + 0.2) / 31.4) ** 2 for c in (0, 15, 31)]
    np.testing.assert_allclose(values[[0, 15, 31]], expected, rtol=1e-15)
    assert values[31] == pytest.approx(0.9998999, abs=1e-7)


def random_frames(seed: int, frames: int, vocab_size: int, sharpness: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(frames, vocab_size, generator=generator)
    return logits.log_softmax(-1)


@settings(max_examples=examples(60))
@given(
    seed=st.integers(0, 10_000),
    vocab_size=st.sampled_from([2, 3, 29, 300]),
    sharpness=st.sampled_from([0.0, 0.01, 0.3, 2.0, 8.0]),
    name=st.sampled_from(NAMES),
    top_k=st.sampled_from([2, 4, 16]),
    mass=st.sampled_from([0.3, 0.9, 0.99, 1.0]),
    blank_is_last=st.booleans(),
)
def test_frames_survive(
    device: torch.device,
    seed: int,
    vocab_size: int,
    sharpness: float,
    name: str,
    top_k: int,
    mass: float,
    blank_is_last: bool,
) -> None:
    log_probs = random_frames(seed, 50, vocab_size, sharpness)
    quantiser = get_quantiser(name)
    blank_index = vocab_size - 1 if blank_is_last else 0
    encoded = encode_frames(
        log_probs.to(device),
        top_k=top_k,
        mass=mass,
        quantiser=quantiser,
        blank_index=blank_index,
    )
    blank, counts, tokens, fractions, best = (c.cpu().numpy() for c in encoded.columns())
    blank, kept_tokens, codes = pack_codes(blank, counts, tokens, fractions)
    assert blank.dtype == codes.dtype == quantiser.code_dtype
    offsets, all_tokens, stored = expand_stick_breaking(
        blank,
        kept_tokens,
        codes,
        quantiser.values,
        blank_index=blank_index,
    )
    assert (np.diff(offsets) == counts + 1).all()
    assert (all_tokens[offsets[:-1]] == log_probs.argmax(-1).numpy()).all()
    assert (best == log_probs.argmax(-1).numpy()).all()
    kept = np.add.reduceat(np.exp(stored.astype(np.float64)), offsets[:-1])
    assert (kept < 1 + 1e-6).all()  # the tail is never negative


def test_a_near_tie_keeps_its_order(device: torch.device) -> None:
    """Both orders of every near tie on a fine grid, some of them off by a code when rounded."""
    share = torch.linspace(0.02, 0.5, 997, dtype=torch.float64)
    for sign in (1e-6, -1e-6):
        probs = torch.stack([share + sign, share - sign, 1 - 2 * share], dim=1).float()
        probs = probs[probs[:, 2] < probs[:, :2].amin(1)]
        encoded = encode_frames(
            probs.log().to(device),
            top_k=3,
            mass=0.999,
            quantiser=get_quantiser("angle5"),
            blank_index=0,
        )
        *columns, _ = (column.cpu().numpy() for column in encoded.columns())
        blank, kept, codes = pack_codes(*columns)
        offsets, found, _ = expand_stick_breaking(
            blank, kept, codes, get_quantiser("angle5").values
        )
        assert (found[offsets[:-1]] == (0 if sign > 0 else 1)).all()


def test_rounding_costs_little_divergence() -> None:
    """About 2 (angle error)^2 nats: at most 2 (step / 2)^2 = 1.25e-3, half more near 0 and 1."""
    quantiser = get_quantiser("angle5")
    probs = torch.linspace(1e-4, 1 - 1e-4, 10_001, dtype=torch.float64)
    stored = torch.from_numpy(quantiser.values)[quantiser.quantise(probs)]
    divergence = probs * (probs / stored).log() + (1 - probs) * ((1 - probs) / (1 - stored)).log()
    middle = (probs > 0.02) & (probs < 0.98)
    assert float(divergence[middle].max()) < 1.3e-3
    assert float(divergence.max()) < 1.9e-3
    assert float(divergence.mean()) < 5e-4


def test_unknown_quantiser_names_the_nearest() -> None:
    with pytest.raises(StoreError, match="did you mean 'angle5'"):
        get_quantiser("angel5")
