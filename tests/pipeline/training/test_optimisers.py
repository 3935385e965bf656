"""Optimisers and the learning-rate schedule against their written formulas."""

from __future__ import annotations

import math

import pytest
import torch

from interkd.pipeline.training.config import OptimiserConfig
from interkd.pipeline.training.optimisers import NovoGrad, learning_rate, make_optimiser


def test_novograd_is_algorithm_1() -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(3, 4))
    optimiser = NovoGrad([weight], lr=0.1, betas=(0.95, 0.98), eps=1e-8, weight_decay=0.01)
    expected = weight.detach().double().clone()
    norm, momentum = None, torch.zeros(3, 4, dtype=torch.float64)
    for _ in range(5):
        gradient = torch.randn(3, 4)
        weight.grad = gradient.clone()
        optimiser.step()
        squared = gradient.double().square().sum()
        norm = squared if norm is None else 0.98 * norm + 0.02 * squared
        momentum = 0.95 * momentum + (gradient.double() / (norm.sqrt() + 1e-8) + 0.01 * expected)
        expected = expected - 0.1 * momentum
    torch.testing.assert_close(weight.detach().double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "novograd"])
def test_every_optimiser_descends_and_spares_biases_from_decay(name: str) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 8)
    config = OptimiserConfig(name=name, learning_rate=0.02, weight_decay=0.1)
    optimiser = make_optimiser(model, config)
    decays = {
        tuple(weight.shape): group["weight_decay"]
        for group in optimiser.param_groups
        for weight in group["params"]
    }
    assert decays == {(8, 8): 0.1, (8,): 0.0}
    inputs, wanted = torch.randn(32, 8), torch.randn(32, 8)
    losses = []
    for _ in range(60):
        loss = (model(inputs) - wanted).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_learning_rate_rises_then_falls() -> None:
    config = OptimiserConfig(learning_rate=2.0, warmup_steps=10, schedule="cosine")
    assert learning_rate(config, 0, 0.0) == pytest.approx(0.2)
    assert learning_rate(config, 9, 0.0) == pytest.approx(2.0)
    assert learning_rate(config, 500, 0.5) == pytest.approx(1.0)
    assert learning_rate(config, 500, 0.25) == pytest.approx(1 + math.cos(math.pi / 4))
    assert learning_rate(config, 1000, 1.0) == pytest.approx(0.0)
    linear = OptimiserConfig(learning_rate=2.0, warmup_steps=0, schedule="linear")
    assert learning_rate(linear, 0, 0.75) == pytest.approx(0.5)
    constant = OptimiserConfig(learning_rate=2.0, warmup_steps=1, schedule="constant")
    assert learning_rate(constant, 99, 0.9) == 2.0
