"""Scoring: a checkpoint over a manifest, every head decoded, counted and written down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from interkd.kernels.errors import BackendError, ConfigError, CorpusError
from interkd.pipeline.config import one_of
from interkd.pipeline.corpus.manifest import read_manifest
from interkd.pipeline.files import write_text
from interkd.pipeline.progress import Reporter
from interkd.pipeline.scoring.bootstrap import bootstrap_interval
from interkd.pipeline.scoring.error_rates import ErrorCounts
from interkd.pipeline.scoring.evaluate import evaluate
from interkd.pipeline.scoring.report import (
    REPORT_FILE,
    HeadResults,
    Interval,
    ScoreReport,
    write_report,
)
from interkd.pipeline.scoring.report_html import render_html
from interkd.pipeline.scoring.trn import format_trn
from interkd.pipeline.students.checkpoint import load_student

__all__ = ["HeadResults", "ScoreConfig", "ScoreReport", "evaluate", "score"]


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Settings of `score`.

    Attributes:
        checkpoint: A checkpoint folder, or a training run, whose best one is taken.
        manifest: What to recognise.
        out: Folder for the report; made if missing, an earlier report in it is replaced.
        device: `auto`, `cpu` or `cuda`; `auto` takes the GPU where there is one.
        batch_seconds: Most audio in a batch, padding included.
        bootstrap_samples: Resamples behind each interval.
        seed: Seed of the resampling.
        resample: `utterance`, or `speaker` for intervals that allow for speakers' differences.
    """

    checkpoint: Path
    manifest: Path
    out: Path
    device: str = "auto"
    batch_seconds: float = 120.0
    bootstrap_samples: int = 10_000
    seed: int = 0
    resample: str = "utterance"

    def __post_init__(self) -> None:
        one_of("device", self.device, ("auto", "cpu", "cuda"))
        one_of("resample", self.resample, ("utterance", "speaker"))
        if not self.batch_seconds > 0:
            raise ConfigError("batch_seconds", expected="above 0", got=self.batch_seconds)
        if self.bootstrap_samples < 1:
            raise ConfigError(
                "bootstrap_samples", expected="at least 1", got=self.bootstrap_samples
            )


def score(config: ScoreConfig, *, reporter: Reporter | None = None) -> ScoreReport:
    """Recognises a manifest with a checkpoint and writes the report.

    `config.out` then holds `ref.trn`, `hyp.<head>.trn`, `report.html` and, written last,
    `report.json`: where that stands, the others belong to it.

    Args:
        config: Settings.
        reporter: Hears of the seconds of audio done.

    Returns:
        What was written to `report.json`.

    Raises:
        InterkdError: If the checkpoint or manifest cannot be used, or the device is not there.
    """
    device = _device(config.device)
    manifest = read_manifest(config.manifest)
    utt_ids = [utterance.utt_id for utterance in manifest.utterances]
    format_trn(utt_ids, [""] * len(utt_ids))  # refuse unusable ids before the work, not after it
    student = load_student(config.checkpoint, device=device)
    model_rate = student.model.features.sample_rate
    if manifest.sample_rate != model_rate:
        raise CorpusError(
            f"sample rate of {config.manifest}",
            expected=f"{model_rate}, as {student.name} was trained",
            got=manifest.sample_rate,
            remedy="run 'interkd prepare' with that rate",
        )
    results = evaluate(
        student.model,
        student.tokenizer,
        manifest,
        device=device,
        max_seconds=config.batch_seconds,
        reporter=reporter,
        warm_up=True,
    )
    report = summarise(
        results,
        student=student.name,
        manifest=str(config.manifest),
        device=str(device),
        bootstrap_samples=config.bootstrap_samples,
        seed=config.seed,
        resample=config.resample,
        trained_with=str(student.facts.get("trained_with", "")),
    )
    _write_folder(config.out, report)
    return report


def summarise(
    results: HeadResults,
    *,
    student: str,
    manifest: str,
    device: str,
    bootstrap_samples: int = 10_000,
    seed: int = 0,
    resample: str = "utterance",
    trained_with: str = "",
) -> ScoreReport:
    """Puts a bootstrap interval to every rate; the arguments are those of `ScoreReport`.

    Raises:
        CorpusError: If there is not a single reference word, or speakers are to be drawn and the
            manifest names none.
    """
    groups = speaker_groups(results) if resample == "speaker" else None

    def interval(counts: Sequence[ErrorCounts]) -> Interval:
        low, high = bootstrap_interval(
            [count.errors for count in counts],
            [count.reference_length for count in counts],
            samples=bootstrap_samples,
            seed=seed,
            groups=groups,
        )
        return Interval(low=low, high=high)

    return ScoreReport(
        results=results,
        word_intervals=tuple(interval(head.words) for head in results.heads),
        character_intervals=tuple(interval(head.characters) for head in results.heads),
        student=student,
        manifest=manifest,
        device=device,
        bootstrap_samples=bootstrap_samples,
        seed=seed,
        resample=resample,
        trained_with=trained_with,
    )


def speaker_groups(results: HeadResults) -> list[str]:
    """The speaker of each utterance.

    Raises:
        CorpusError: If an utterance has none.
    """
    for utterance in results.utterances:
        if not utterance.speaker:
            raise CorpusError(
                f"utterance {utterance.utt_id} has no speaker",
                remedy="name speakers in the manifest, or resample utterances",
            )
    return [utterance.speaker for utterance in results.utterances]


def _write_folder(out: Path, report: ScoreReport) -> None:
    results = report.results
    utt_ids = [utterance.utt_id for utterance in results.utterances]
    files = {"ref.trn": format_trn(utt_ids, [u.reference for u in results.utterances])}
    for head in results.heads:
        files[f"hyp.{head.name}.trn"] = format_trn(utt_ids, head.hypotheses)
    files["report.html"] = render_html(report)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / REPORT_FILE).unlink(missing_ok=True)  # it would vouch for the files of another run
        for stale in out.glob("hyp.*.trn"):
            stale.unlink()
        for name, text in files.items():
            write_text(out / name, text)
        write_report(out / REPORT_FILE, report)
    except OSError as error:
        raise ConfigError(f"cannot write to {out}", got=error.strerror) from error


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise BackendError("device cuda", expected="a CUDA GPU", got="none", remedy="--device cpu")
    return torch.device(name)
