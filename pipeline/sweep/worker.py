"""One run in a process of its own: train or resume, score the best checkpoint, write the result.

`python -m interkd.pipeline.sweep.worker JOB.json`; its exit code is 0 when the result stands,
3 when the stop signal ended it, 4 when another process holds the run, 2 for an `InterkdError`.
"""

from __future__ import annotations

import gc
import json
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import yaml

from interkd.kernels.errors import CheckpointError, ConfigError, CorpusError, InterkdError
from interkd.pipeline.config import as_plain, build
from interkd.pipeline.corpus.audio import AudioCache
from interkd.pipeline.corpus.manifest import Manifest, read_manifest
from interkd.pipeline.devices import resolve_device
from interkd.pipeline.files import write_json
from interkd.pipeline.locks import LOOKS, hold
from interkd.pipeline.progress import LineReporter, Reporter
from interkd.pipeline.scoring.evaluate import evaluate
from interkd.pipeline.students.checkpoint import load_student, resolve_checkpoint
from interkd.pipeline.sweep.results import RunResult, Trained, finished_result, write_result
from interkd.pipeline.sweep.runs import Run, stored_settings
from interkd.pipeline.sweep.scores import SplitScore, split_score
from interkd.pipeline.training.config import TrainConfig
from interkd.pipeline.training.position import TrainResult
from interkd.pipeline.training.run_folder import LOG_FILE, SETTINGS_FILE
from interkd.pipeline.training.trainer import train

EXIT_DONE, EXIT_ERROR, EXIT_STOPPED, EXIT_BUSY = 0, 2, 3, 4


class Stopped(Exception):  # noqa: N818 (it is no error)
    """The stop signal came while nothing was being trained."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the process is told: the run, and the manifest of each split to score."""

    run: Run
    score: Mapping[str, Path]


def write_job(job: Job) -> None:
    """Writes the file from which a worker starts."""
    run = job.run
    write_json(
        run.job,
        {
            "name": run.name,
            "group": run.group,
            "entry": run.entry,
            "grid_part": run.grid_part,
            "result": str(run.result),
            "score": {split: str(path) for split, path in job.score.items()},
            "settings": as_plain(run.config),
        },
    )


def read_job(path: Path) -> Job:
    """Reads what `write_job` wrote.

    Raises:
        ConfigError: If it cannot be read.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        run = Run(
            name=value["name"],
            group=value["group"],
            entry=value["entry"],
            grid_part=value["grid_part"],
            config=build(TrainConfig, value["settings"]),
            result=Path(value["result"]),
        )
        return Job(run=run, score={split: Path(name) for split, name in value["score"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is not a sweep's job", got=repr(error)) from error


def work(job: Job) -> int:
    """Trains and scores a run; returns the exit code.

    Raises:
        InterkdError: If something does not fit.
        Stopped: If the stop signal came outside the training loop.
    """
    run = job.run
    with hold(run.lock, tries=LOOKS) as mine:
        if not mine:
            _say(f"another process holds {run.lock}")
            return EXIT_BUSY
        manifests = _manifests(job)
        digests = {split: manifest.digest for split, manifest in manifests.items()}
        if finished_result(run, digests) is not None:
            return EXIT_DONE  # another sweep was faster
        reporter = LogReporter()
        trained = train(
            run.config, resume=(run.config.out / SETTINGS_FILE).exists(), reporter=reporter
        )
        if not trained.finished:
            return EXIT_STOPPED
        gc.collect()  # the training's audio and teacher cache
        result = _result(run, trained, manifests, reporter)
        signal.signal(getattr(signal, run.config.stop_signal), signal.SIG_IGN)
        write_result(run.result, result)
    final = {split: score.heads[-1].words.rate for split, score in result.scores.items()}
    _say("done: " + ", ".join(f"{split} WER {rate:.2f} %" for split, rate in final.items()))
    return EXIT_DONE


def _manifests(job: Job) -> dict[str, Manifest]:
    """What is to be scored, looked at before hours of training."""
    manifests = {split: read_manifest(path) for split, path in job.score.items()}
    rate = job.run.config.student.features.sample_rate
    for manifest in manifests.values():
        if manifest.sample_rate != rate:
            raise ConfigError(
                f"sample rate of {manifest.path}", expected=rate, got=manifest.sample_rate
            )
        if not any(utterance.text.split() for utterance in manifest.utterances):
            raise CorpusError(f"{manifest.path} has not a single word to score against")
    return manifests


def _result(
    run: Run, trained: TrainResult, manifests: Mapping[str, Manifest], reporter: Reporter
) -> RunResult:
    config = run.config
    device = resolve_device(config.device)
    student = load_student(config.out, device=device)
    audio = AudioCache(int(config.data.audio_memory_gb * 2**30))
    scores: dict[str, SplitScore] = {}
    for split, manifest in manifests.items():
        results = evaluate(
            student.model,
            student.tokenizer,
            manifest,
            device=device,
            max_seconds=config.data.batch_seconds,
            audio_cache=audio,
            reporter=reporter,
        )
        scores[split] = split_score(results, manifest.digest)
    curve = _curve(config.out / LOG_FILE)
    inputs = _inputs(config.out / SETTINGS_FILE)
    return RunResult(
        name=run.name,
        group=run.group,
        seed=config.seed,
        settings=stored_settings(config),
        trained=Trained(
            steps=trained.steps,
            epochs=max((int(row["epochs_done"]) for row in curve), default=0),
            seconds=round(trained.seconds, 2),
            best=resolve_checkpoint(config.out).name,
            weights=trained.weights,
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            objective=str(student.facts.get("trained_with", "")),
            corpus=tuple(inputs["corpus"]),
            tokens=str(inputs["tokens"]),
            store=inputs["store_digest"],
        ),
        curve=tuple(curve),
        scores=scores,
    )


def _curve(log: Path) -> list[dict[str, Any]]:
    """The epochs' rows; one that a restart wrote again counts once."""
    rows: list[dict[str, Any]] = []
    for line in log.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if "epochs_done" in row and row not in rows:
            rows.append(row)
    return rows


def _inputs(settings: Path) -> dict[str, Any]:
    """The digests of what was trained on."""
    try:
        values = yaml.safe_load(settings.read_text(encoding="utf-8"))
        return {key: values[key] for key in ("corpus", "tokens", "store_digest")}
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise CheckpointError(f"{settings} is damaged", got=repr(error)) from error


class LogReporter(LineReporter):
    """Writes lines with the time of day."""

    def message(self, text: str) -> None:
        """A line."""
        super().message(text)
        _say(text)


def _say(text: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')}  {text}\n")
    sys.stdout.flush()


def main(arguments: list[str] | None = None) -> int:
    """Runs the job of the file named on the command line; returns the exit code."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped

    try:
        (path,) = sys.argv[1:] if arguments is None else arguments
        job = read_job(Path(path))
        # The training loop catches the signal itself; before and after it this does.
        signal.signal(getattr(signal, job.run.config.stop_signal), stop)
        return work(job)
    except Stopped:
        return EXIT_STOPPED
    except InterkdError as error:
        _say(f"error: {error}")
        return EXIT_ERROR


if __name__ == "__main__":
    sys.exit(main())
