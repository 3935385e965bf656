"""What scoring found, in memory and as report.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from interkd.kernels.errors import ConfigError
from interkd.pipeline.files import write_text
from interkd.pipeline.scoring.error_rates import ErrorCounts, total

REPORT_FORMAT = 1
REPORT_FILE = "report.json"


@dataclass(frozen=True, kw_only=True)
class ScoredUtterance:
    """One utterance of the scored set; `speaker` is empty where the manifest names none."""

    utt_id: str
    speaker: str
    audio_seconds: float
    reference: str


@dataclass(frozen=True, kw_only=True)
class HeadResult:
    """What one head recognised, utterance by utterance.

    Attributes:
        name: The head's name, such as `layer8` or `final`.
        weight_count: Weights needed to run the model up to this head.
        hypotheses: Greedy transcripts.
        words: Word errors of each utterance.
        characters: Character errors of each utterance.
    """

    name: str
    weight_count: int
    hypotheses: tuple[str, ...]
    words: tuple[ErrorCounts, ...]
    characters: tuple[ErrorCounts, ...]

    @cached_property
    def word_total(self) -> ErrorCounts:
        """Word errors of the whole set; its `rate` is the WER in percent."""
        return total(self.words)

    @cached_property
    def character_total(self) -> ErrorCounts:
        """Character errors of the whole set; its `rate` is the CER in percent."""
        return total(self.characters)


@dataclass(frozen=True, kw_only=True)
class HeadResults:
    """What every head of a model recognised.

    Attributes:
        utterances: The scored set, in the manifest's order.
        heads: One result a head, the final head last.
        model_seconds: Time in the model's forward pass, features included, decoding excluded.
    """

    utterances: tuple[ScoredUtterance, ...]
    heads: tuple[HeadResult, ...]
    model_seconds: float

    @property
    def final(self) -> HeadResult:
        """The last head's result."""
        return self.heads[-1]

    @cached_property
    def audio_seconds(self) -> float:
        """Length of the scored audio."""
        return sum(utterance.audio_seconds for utterance in self.utterances)

    @property
    def real_time_factor(self) -> float:
        """Seconds of model time per second of audio."""
        return self.model_seconds / self.audio_seconds


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Ends of a bootstrap interval, in percent."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class ScoreReport:
    """Results with their intervals and where they came from.

    Attributes:
        results: What every head recognised.
        word_intervals: Interval of each head's WER.
        character_intervals: Interval of each head's CER.
        student: The student's name.
        manifest: The scored manifest.
        device: Where the model ran.
        bootstrap_samples: Resamples behind each interval.
        seed: Seed of the resampling.
        resample: What was drawn: `utterance` or `speaker`.
        trained_with: The student's objective in one line, normalisation included; empty if unknown.
    """

    results: HeadResults
    word_intervals: tuple[Interval, ...]
    character_intervals: tuple[Interval, ...]
    student: str
    manifest: str
    device: str
    bootstrap_samples: int
    seed: int
    resample: str
    trained_with: str = ""


def format_weights(count: int) -> str:
    """A number of weights for people: `8.19 M`, `412 k`."""
    return f"{count / 1e6:.2f} M" if count >= 1_000_000 else f"{count / 1e3:.0f} k"


def write_report(path: Path, report: ScoreReport) -> None:
    """Writes report.json atomically: a summary for people, then one line an utterance."""
    results = report.results
    summary = {
        "format": REPORT_FORMAT,
        "interkd": version("interkd"),
        "student": report.student,
        "trained_with": report.trained_with,
        "manifest": report.manifest,
        "device": report.device,
        "audio_seconds": results.audio_seconds,
        "model_seconds": results.model_seconds,
        "real_time_factor": results.real_time_factor,
        "bootstrap": {
            "samples": report.bootstrap_samples,
            "seed": report.seed,
            "level": 0.95,
            "resample": report.resample,
        },
        "heads": [
            {
                "name": head.name,
                "weights": head.weight_count,
                "wer": _rate_as_json(head.word_total, words),
                "cer": _rate_as_json(head.character_total, characters),
            }
            for head, words, characters in zip(
                results.heads, report.word_intervals, report.character_intervals, strict=True
            )
        ],
    }
    rows = [
        {
            "utt_id": utterance.utt_id,
            "speaker": utterance.speaker,
            "audio_seconds": utterance.audio_seconds,
            "reference": utterance.reference,
            "heads": {
                head.name: {
                    "hypothesis": head.hypotheses[index],
                    "words": _as_list(head.words[index]),
                    "characters": _as_list(head.characters[index]),
                }
                for head in results.heads
            },
        }
        for index, utterance in enumerate(results.utterances)
    ]
    lines = ",\n    ".join(json.dumps(row, ensure_ascii=False) for row in rows)
    head_text = json.dumps(summary, indent=2, ensure_ascii=False).removesuffix("\n}")
    write_text(path, f'{head_text},\n  "utterances": [\n    {lines}\n  ]\n}}\n')


def read_report(path: Path) -> ScoreReport:
    """Reads a report.json, or the one in a score folder.

    Raises:
        ConfigError: If there is none, or it is damaged or of another format.
    """
    file = path / REPORT_FILE if path.is_dir() else path
    remedy = "give a folder written by `interkd score --out`, or its report.json"
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {file}", got=error.strerror, remedy=remedy) from error
    except ValueError as error:  # JSON and UTF-8 alike
        raise ConfigError(f"{file} is not a report", got=str(error), remedy=remedy) from error
    if not isinstance(value, dict) or value.get("format") != REPORT_FORMAT:
        found = value.get("format") if isinstance(value, dict) else type(value).__name__
        raise ConfigError(f"{file}: report format", expected=REPORT_FORMAT, got=repr(found))
    try:
        return _report_from_json(value)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{file} is damaged", got=repr(error), remedy=remedy) from error


def _report_from_json(value: Mapping[str, Any]) -> ScoreReport:
    rows = value["utterances"]
    heads = tuple(
        HeadResult(
            name=head["name"],
            weight_count=head["weights"],
            hypotheses=tuple(row["heads"][head["name"]]["hypothesis"] for row in rows),
            words=tuple(_from_list(row["heads"][head["name"]]["words"]) for row in rows),
            characters=tuple(_from_list(row["heads"][head["name"]]["characters"]) for row in rows),
        )
        for head in value["heads"]
    )
    utterances = tuple(
        ScoredUtterance(
            utt_id=row["utt_id"],
            speaker=row["speaker"],
            audio_seconds=row["audio_seconds"],
            reference=row["reference"],
        )
        for row in rows
    )
    intervals = {
        unit: tuple(Interval(low=h[unit]["low"], high=h[unit]["high"]) for h in value["heads"])
        for unit in ("wer", "cer")
    }
    return ScoreReport(
        results=HeadResults(
            utterances=utterances, heads=heads, model_seconds=value["model_seconds"]
        ),
        word_intervals=intervals["wer"],
        character_intervals=intervals["cer"],
        student=value["student"],
        manifest=value["manifest"],
        device=value["device"],
        bootstrap_samples=value["bootstrap"]["samples"],
        seed=value["bootstrap"]["seed"],
        resample=value["bootstrap"]["resample"],
        trained_with=value.get("trained_with", ""),
    )


def _rate_as_json(counts: ErrorCounts, interval: Interval) -> dict[str, float | int]:
    return {
        "percent": counts.rate,
        "low": interval.low,
        "high": interval.high,
        "substitutions": counts.substitutions,
        "insertions": counts.insertions,
        "deletions": counts.deletions,
        "hits": counts.hits,
        "reference_length": counts.reference_length,
    }


def _as_list(counts: ErrorCounts) -> list[int]:
    """Substitutions, insertions, deletions, hits: the rest follows from them."""
    return [counts.substitutions, counts.insertions, counts.deletions, counts.hits]


def _from_list(values: list[int]) -> ErrorCounts:
    substitutions, insertions, deletions, hits = values
    return ErrorCounts(
        substitutions=substitutions,
        insertions=insertions,
        deletions=deletions,
        hits=hits,
        reference_length=substitutions + deletions + hits,
    )
