"""The sums that the size benchmark takes over kept tokens, against whole distributions."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks" / "cache"


@pytest.fixture(scope="module")
def modules() -> Iterator[tuple[ModuleType, ModuleType]]:
    sys.path.insert(0, str(FOLDER))
    try:
        yield import_module("store_rows"), import_module("store_quality")
    finally:
        sys.path.remove(str(FOLDER))


def gradient(probs: torch.Tensor, logits: torch.Tensor, *, is_kl: bool) -> torch.Tensor:
    z = logits.clone().requires_grad_()
    q = z.softmax(-1)
    loss = -(probs * q.log()).sum() if is_kl else (probs - q).square().sum() / 2
    return torch.autograd.grad(loss, z)[0]


@pytest.mark.parametrize("name", ["mass 0.9 angle5", "version 1 mass 0.99 log7", "12 draws"])
def test_frame_quality(modules: tuple[ModuleType, ModuleType], name: str) -> None:
    rows, quality = modules
    row = next(row for row in rows.all_rows() if row.name == name)
    generator = torch.Generator().manual_seed(1)
    log_probs = (3 * torch.randn(20, 9, generator=generator)).log_softmax(-1)
    logits = quality.student_logits(log_probs, 0)
    store = row.encode(log_probs)
    got = quality.DenseFrames(log_probs, logits).compare(store)
    for frame, p in enumerate(log_probs.double().softmax(-1)):
        z = logits[frame].double()
        span = slice(store.offsets[frame], store.offsets[frame + 1])
        kept = torch.from_numpy(store.tokens[span])
        values = torch.from_numpy(store.probs[span])
        tail = torch.ones(9, dtype=torch.bool).index_fill(0, kept, False)
        if not tail.any():
            values = values / values.sum()
        rest = float((1 - values.sum()).clamp(min=0)) if tail.any() else 0.0
        even = torch.zeros(9, dtype=torch.float64)
        even[kept] = values
        even[tail] = rest / max(1, int(tail.sum()))
        true_rest = float(p[tail].sum())
        bucket = float((p[kept] * (p[kept] / values).log()).sum())
        spread = bucket
        if true_rest > 0:
            floor = max(rest, quality.LEAST_REST)
            bucket += true_rest * np.log(true_rest / floor)
            spread += float((p[tail] * (p[tail] * int(tail.sum()) / floor).log()).sum())
        assert got.kl_bucket[frame] == pytest.approx(bucket, abs=1e-9)
        assert got.kl_uniform[frame] == pytest.approx(spread, abs=1e-9)
        assert got.squared[frame] == pytest.approx(float((p - even).square().sum()), abs=1e-9)

        # The bucket's gradient is that of a tail spread as the student spreads its own.
        q = z.softmax(-1)
        as_student = even.clone()
        as_student[tail] = rest * q[tail] / q[tail].sum()
        for kind, target in (("kl", as_student), ("l2", even)):
            sparse = gradient(target, z, is_kl=kind == "kl")
            dense = gradient(p, z, is_kl=kind == "kl")
            dot, norm = getattr(got, f"{kind}_dot"), getattr(got, f"{kind}_norm")
            assert dot[frame] == pytest.approx(float(sparse @ dense), abs=1e-9)
            assert norm[frame] == pytest.approx(float(sparse @ sparse), abs=1e-9)
