"""How fast a training run was, from what it left: what a plan of further ones rests on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interkd.kernels.errors import ConfigError, CorpusError
from interkd.pipeline.config import read_yaml
from interkd.pipeline.corpus.manifest import Manifest, read_manifest
from interkd.pipeline.training.run_folder import LOG_FILE, SETTINGS_FILE


@dataclass(frozen=True, kw_only=True)
class RunSpeed:
    """How fast a training run was.

    Attributes:
        audio_per_second: Seconds of audio a second of training, of each of its processes.
        hours: Of audio that it heard.
        seconds: Of training, of all its processes.
        epochs: That it was set to make.
        is_cached: Whether it learnt from a teacher cache.
    """

    audio_per_second: float
    hours: float
    seconds: float
    epochs: int
    is_cached: bool


def read_run_speed(run: Path, manifest: Manifest | None = None) -> RunSpeed:
    """How fast a run of `interkd train-student` was, from its settings and its log.

    Its seconds are those between the first and the last batch of each epoch: waiting for audio is
    in them, validation is not. A last epoch that was cut short counts by its steps.

    Args:
        run: The run's folder.
        manifest: Taken as the run's corpus where it is the one, so that it need not be found.

    Raises:
        ConfigError: If settings, log or corpus are missing or damaged, the corpus has changed
            since, or no epoch was finished and validated.
    """
    path = run / LOG_FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"no training log in {run}",
            expected=LOG_FILE,
            got=getattr(error, "strerror", None) or str(error),
            remedy="student_run is the folder of a run of 'interkd train-student'",
        ) from error
    settings = read_yaml(run / SETTINGS_FILE)
    try:
        corpus = Path(settings["data"]["train_manifest"])
        digest, epochs = str(settings["corpus"][0]), int(settings["epochs"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{run / SETTINGS_FILE}", expected="settings of a training run", got=f"no {error}"
        ) from error
    if manifest is None or manifest.digest != digest:
        manifest = read_corpus(
            corpus, remedy="stand where the run was started, or give its speed as student_speed"
        )
    if manifest.digest != digest:
        raise ConfigError(
            f"{corpus} has changed since {run} was trained on it",
            remedy="give its speed as student_speed",
        )
    done, seconds = _epochs_and_seconds(path, lines)
    audio_seconds = done * manifest.total_seconds
    return RunSpeed(
        audio_per_second=audio_seconds / seconds,
        hours=audio_seconds / 3600,
        seconds=seconds,
        epochs=epochs,
        is_cached=settings.get("store") is not None,
    )


def _epochs_and_seconds(path: Path, lines: list[str]) -> tuple[float, float]:
    """Epochs and processes' seconds of training up to the last validation in a log."""
    steps: list[tuple[int, int]] = []  # each step's number and the epoch that it is in, from 0
    last: tuple[int, int, float] | None = None
    spent = 0.0  # seconds of all processes, whose number may change when a run is resumed
    for line in lines:
        try:
            row: dict[str, Any] = json.loads(line)
            if "epochs_done" not in row:
                steps.append((int(row["step"]), int(row["epoch"])))
            elif row["epochs_done"] >= 1 and row["seconds"] > 0:
                since = float(row["seconds"]) - (0.0 if last is None else last[2])
                last = int(row["step"]), int(row["epochs_done"]), float(row["seconds"])
                spent += since * int(row.get("processes", 1))
        except (json.JSONDecodeError, KeyError, TypeError, ValueError):
            continue  # the line that a kill cut short
    if last is None:
        raise ConfigError(
            f"{path} cannot tell the run's speed",
            expected="an epoch that was finished and validated",
            got="none",
        )
    step, whole_epochs, _ = last
    whole_steps = max((number for number, epoch in steps if epoch < whole_epochs), default=step)
    return whole_epochs * max(1.0, step / whole_steps), spent


def read_corpus(path: Path, *, remedy: str | None = None) -> Manifest:
    """The manifest of a setting.

    Raises:
        ConfigError: If it cannot be read.
    """
    try:
        return read_manifest(path)
    except CorpusError as error:
        raise ConfigError(
            error.what, expected=error.expected, got=error.got, remedy=remedy or error.remedy
        ) from error
