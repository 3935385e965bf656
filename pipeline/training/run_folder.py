"""A run's folder: held by one process, its settings written at first and compared at a resume."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from interkd.kernels.errors import CheckpointError, ConfigError
from interkd.pipeline.config import as_plain, build
from interkd.pipeline.files import made_folder, write_text
from interkd.pipeline.locks import hold
from interkd.pipeline.progress import SILENT, Message
from interkd.pipeline.training.config import TrainConfig

SETTINGS_FILE = "config.yaml"
LOG_FILE = "log.jsonl"
FAILED_LOG_FILE = "failed.jsonl"
LOCK_FILE = ".lock"
OWN_NAMES = ("checkpoints", "tensorboard", LOG_FILE, "best.json", "last.json")
# What changes where or how fast a run goes, but not what comes out.
_WITHOUT_EFFECT = re.compile(
    r"out|device|checkpoint_minutes|stop_signal"
    # The memory for the store decides from how many of its parts batches are drawn.
    r"|data\.(.*threads.*|audio_memory_gb|device_memory_gb|prefetch.*)"
)


def has_effect(setting: str) -> bool:
    """Whether a setting, by its full name, decides what comes out of a run."""
    return _WITHOUT_EFFECT.fullmatch(setting) is None


def run_settings(
    config: TrainConfig, *, corpus: list[str], tokens: str, store: str | None
) -> dict[str, Any]:
    """What decides a run's course: its settings and the digests of corpus, tokens and store."""
    return {**as_plain(config), "corpus": corpus, "tokens": tokens, "store_digest": store}


@contextmanager
def held_run(
    run: Path, settings: dict[str, Any], *, resume: bool, message: Message = SILENT
) -> Iterator[None]:
    """Keeps other processes off a run that begins, or goes on; a new one's settings are written.

    Args:
        run: Its folder.
        settings: What `run_settings` says.
        resume: Whether it goes on.
        message: Told where the disk has no locks.

    Raises:
        CheckpointError: If another process trains it; if a run, or anything else, stands where a
            new one is to be, or none where one is to go on.
        ConfigError: If the folder cannot be written, or the settings are not the run's.
    """
    with ExitStack() as held:
        if resume:
            require_same_run(run, settings)
            _hold(run, held, message)
        else:
            _require_free(run)
            with made_folder(run):
                _hold(run, held, message)
                _require_free(run)  # as another process may have begun and ended one meanwhile
                _write(run / SETTINGS_FILE, settings)
        yield


def _hold(run: Path, held: ExitStack, message: Message) -> None:
    if not held.enter_context(hold(run / LOCK_FILE, message=message)):
        raise CheckpointError(f"another process trains {run}")


def _write(path: Path, settings: dict[str, Any]) -> None:
    try:
        write_text(path, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
    except OSError as error:
        raise ConfigError(f"cannot write to {path.parent}", got=error.strerror) from error


def _require_free(run: Path) -> None:
    foreign = [name for name in OWN_NAMES if (run / name).exists()]
    if foreign and not (run / SETTINGS_FILE).exists():
        raise CheckpointError(
            f"{run} holds {' and '.join(foreign)} that no run of interkd wrote",
            remedy="choose a folder of the run's own",
        )
    if (run / SETTINGS_FILE).exists():
        raise CheckpointError(
            f"{run} holds a run already",
            remedy="--resume goes on with it; another --out starts anew",
        )


def withdraw_run(run: Path) -> None:
    """Takes back what a run wrote before its first checkpoint, and its folder if that is all.

    The log of the steps it made stays, as `failed.jsonl`: it may show why they led nowhere.
    """
    log = run / LOG_FILE
    if log.exists() and log.stat().st_size:
        log.replace(run / FAILED_LOG_FILE)
    for name in ("tensorboard", "checkpoints"):
        shutil.rmtree(run / name, ignore_errors=True)
    for name in (LOG_FILE, SETTINGS_FILE, LOCK_FILE):
        (run / name).unlink(missing_ok=True)
    if not any(run.iterdir()):
        run.rmdir()


def require_same_run(run: Path, settings: dict[str, Any]) -> None:
    """Refuses to resume a run with other settings, another corpus or other tokens.

    Settings without effect and the time limit may change between two starts.

    Raises:
        CheckpointError: If no run stands there.
        ConfigError: Naming the first setting that differs, with both values.
    """
    path = run / SETTINGS_FILE
    if not path.exists():
        raise CheckpointError(f"no run to resume at {run}")
    try:
        then = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is damaged", got=error) from error
    _require_same(settings, _completed(then), "")


def _completed(then: Any) -> Any:
    """With the settings that later versions added, at their defaults."""
    if not isinstance(then, dict):
        return then
    names = {field.name for field in fields(TrainConfig)}
    try:
        own = build(TrainConfig, {"out": ".", **{k: v for k, v in then.items() if k in names}})
    except ConfigError:
        return then
    return {**then, **as_plain(own)}


def _require_same(now: Any, then: Any, where: str) -> None:
    if isinstance(now, dict) and isinstance(then, dict):
        for key in [*now, *(key for key in then if key not in now)]:
            _require_same(now.get(key), then.get(key), f"{where}.{key}".strip("."))
    elif now != then and has_effect(where) and where != "max_minutes":
        raise ConfigError(
            f"the run was started with another '{where}'",
            expected=then,
            got=now,
            remedy="resume with the settings it was started with, or start a run of its own",
        )
