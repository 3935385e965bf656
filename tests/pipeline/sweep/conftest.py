"""A small sweep over the made-up language, and results that nobody trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from interkd.pipeline.config import as_plain
from interkd.pipeline.sweep.results import RunResult, Trained, write_result
from interkd.pipeline.sweep.runs import Run, stored_settings
from interkd.pipeline.sweep.scores import HeadScore, SplitScore, UnitCounts
from tests.students import conformer, training

WriteSweep = Callable[..., Path]


@pytest.fixture
def write_sweep(tone_corpus: Any, tmp_path: Path) -> WriteSweep:
    """Writes base.yaml and sweep.yaml of two recipes and two seeds; returns the latter."""

    def write(base: dict[str, Any] | None = None, /, **changes: Any) -> Path:
        config = training(tone_corpus, Path("ignored"), student=conformer(16), epochs=2)
        settings = {**as_plain(config), **(base or {})}
        (tmp_path / "base.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        values: dict[str, Any] = {
            "base": "base.yaml",
            "out": str(tmp_path / "runs"),
            "results": str(tmp_path / "results"),
            "score": {"dev": str(tone_corpus.dev), "test": str(tone_corpus.train)},
            "jobs": 2,
            "baselines": ["ctc"],
            "runs": [
                {"name": "ctc", "set": {"objective.recipe": "ctc"}},
                {"name": "inter-ctc"},
            ],
            "grid": {"seed": [1, 2]},
            **changes,
        }
        path = tmp_path / "sweep.yaml"
        kept = {key: value for key, value in values.items() if value is not None}
        path.write_text(yaml.safe_dump(kept, sort_keys=False), encoding="utf-8")
        return path

    return write


def _made_up(run: Run, *, rate: float, splits: tuple[str, ...] = ("dev", "test")) -> RunResult:
    """A result of about that error rate in 40 utterances, more errors in the lower head."""
    generator = np.random.default_rng(run.config.seed)
    lengths = np.random.default_rng(0).integers(3, 20, size=40)

    def counts(share: float, factor: int) -> UnitCounts:
        errors = generator.binomial(lengths * factor, share)
        return UnitCounts(
            errors=tuple(int(error) for error in errors),
            lengths=tuple(int(length * factor) for length in lengths),
        )

    heads = tuple(
        HeadScore(
            name=name,
            weight_count=weights,
            words=counts(rate * worse, 1),
            characters=counts(rate * worse / 3, 5),
        )
        for name, weights, worse in (("layer1", 9_000, 1.5), ("final", 21_000, 1.0))
    )
    score = SplitScore(manifest="m", utterances="u", heads=heads)
    return RunResult(
        name=run.name,
        group=run.group,
        seed=run.config.seed,
        settings=stored_settings(run.config),
        trained=Trained(
            steps=12,
            epochs=2,
            seconds=30.0,
            best="epoch-0002",
            weights=21_500,
            device="cpu",
            objective=f"recipe {run.entry}",
            corpus=("a", "b"),
            tokens="t",
            store=None,
        ),
        curve=({"step": 6, "epochs_done": 1, "dev_wer": {"layer1": 90.0, "final": 80.123456}},),
        scores=dict.fromkeys(splits, score),
    )


@pytest.fixture
def made_up() -> Callable[..., RunResult]:
    return _made_up


@pytest.fixture
def write_made_up() -> Callable[..., None]:
    """Writes a made-up result where the sweep looks for it."""

    def write(run: Run, *, rate: float, **changes: Any) -> None:
        write_result(run.result, replace(_made_up(run, rate=rate), **changes))

    return write
