"""A finished run's result as JSON: how it was trained and every utterance's errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from interkd.kernels.errors import ConfigError
from interkd.pipeline.files import write_compact_json
from interkd.pipeline.sweep.runs import (
    Run,
    completed,
    differences,
    settings_digest,
    stored_settings,
)
from interkd.pipeline.sweep.scores import SplitScore, scores_from_json, scores_to_json
from interkd.pipeline.training.run_folder import SETTINGS_FILE

RESULT_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Trained:
    """How a run was trained.

    Attributes:
        steps: Optimiser steps.
        epochs: Whole epochs.
        seconds: Training time over all starts, validation excluded.
        best: Name of the checkpoint that was scored: the best on dev.
        weights: Weights of the student, intermediate heads included.
        device: The device's name.
        objective: The objective in one line.
        corpus: Digests of the training and the dev manifest.
        tokens: Digest of the tokens.
        store: Digest of the teacher cache, where there was one.
    """

    steps: int
    epochs: int
    seconds: float
    best: str
    weights: int
    device: str
    objective: str
    corpus: tuple[str, ...]
    tokens: str
    store: str | None


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """All that the report needs of a run.

    Attributes:
        name: The run.
        group: Its name without the seed.
        seed: Its seed.
        settings: Its settings without the folder.
        trained: How it went.
        curve: The epochs' rows of the run's log.
        scores: What each head made of each split.
    """

    name: str
    group: str
    seed: int
    settings: Mapping[str, Any]
    trained: Trained
    curve: tuple[Mapping[str, Any], ...]
    scores: Mapping[str, SplitScore]


def write_result(path: Path, result: RunResult) -> None:
    """Writes a result atomically: where it stands, the run is done."""
    value = {
        "format": RESULT_FORMAT,
        "interkd": version("interkd"),
        "name": result.name,
        "group": result.group,
        "seed": result.seed,
        "settings_digest": settings_digest(result.settings),
        "settings": result.settings,
        "trained": asdict(result.trained),
        "scores": scores_to_json(result.scores),
        "curve": [_rounded(row) for row in result.curve],
    }
    write_compact_json(path, value)


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def read_result(path: Path) -> RunResult:
    """Reads a result.

    Raises:
        ConfigError: If it cannot be read, is damaged or of another format.
    """
    remedy = "remove it: the run is then scored again from its checkpoint"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}", got=error.strerror) from error
    except ValueError as error:  # JSON and UTF-8 alike
        raise ConfigError(f"{path} is not a run's result", got=str(error), remedy=remedy) from error
    if not isinstance(value, dict) or value.get("format") != RESULT_FORMAT:
        found = value.get("format") if isinstance(value, dict) else type(value).__name__
        raise ConfigError(f"{path}: result format", expected=RESULT_FORMAT, got=repr(found))
    try:
        return _from_json(value)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is damaged", got=repr(error), remedy=remedy) from error


def _from_json(value: Mapping[str, Any]) -> RunResult:
    trained = value["trained"]
    return RunResult(
        name=value["name"],
        group=value["group"],
        seed=value["seed"],
        settings=dict(value["settings"]),
        trained=Trained(**{**trained, "corpus": tuple(trained["corpus"])}),
        curve=tuple(value["curve"]),
        scores=scores_from_json(value["scores"]),
    )


def finished_result(run: Run, manifests: Mapping[str, str | None]) -> RunResult | None:
    """The result of a run, or None if it has none yet.

    A result that lacks a split counts as none while the run's folder stands: the worker scores its
    checkpoint again, without training.

    Args:
        run: The run.
        manifests: Digest of each split's manifest as it is now; None where that is not known.

    Raises:
        ConfigError: If the result cannot be read, or is of other settings or manifests, or lacks
            a split and the folder is gone: such a result must neither count for this run nor be
            overwritten.
    """
    if not run.result.exists():
        return None
    result = read_result(run.result)
    if settings_digest(completed(result.settings)) != run.digest:
        changes = differences(completed(result.settings), stored_settings(run.config))
        raise ConfigError(
            f"run '{run.name}' has a result with other settings",
            got=", ".join(changes[:3]) + (f" and {len(changes) - 3} more" if changes[3:] else ""),
            remedy=f"remove {run.result} and {run.config.out}, or rename the run",
        )
    for split, digest in manifests.items():
        score = result.scores.get(split)
        if score is not None and digest is not None and score.manifest != digest:
            raise ConfigError(
                f"run '{run.name}' has a result of another '{split}' manifest",
                expected=digest,
                got=score.manifest,
                remedy=f"remove {run.result}: the run is then scored again from its checkpoint",
            )
    missing = " and ".join(split for split in manifests if split not in result.scores)
    if missing and not (run.config.out / SETTINGS_FILE).exists():
        raise ConfigError(
            f"run '{run.name}' has a result without scores of {missing}",
            got=f"no checkpoint to score in {run.config.out}",
            remedy=f"take {missing} out of score, or remove {run.result} to train again",
        )
    return None if missing else result
