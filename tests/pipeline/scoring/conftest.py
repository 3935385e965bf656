from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from interkd.pipeline.corpus.audio import hash_samples
from interkd.pipeline.corpus.manifest import Manifest, Utterance, read_manifest, write_manifest
from interkd.pipeline.scoring.error_rates import count_errors_each
from interkd.pipeline.scoring.report import HeadResult, HeadResults, ScoredUtterance, ScoreReport
from interkd.pipeline.scoring.score import summarise

RATE = 8000
FRAME = 160
TOKENS = ("<blk>", "▁", "a", "b", "c", "d")

WriteCorpus = Callable[[list[list[int]], list[str]], Manifest]
MakeReport = Callable[..., ScoreReport]


@pytest.fixture
def write_corpus(tmp_path: Path) -> WriteCorpus:
    """Audio whose level in each frame of 160 samples spells a token: 0.1 times its index."""

    def write(paths: list[list[int]], texts: list[str]) -> Manifest:
        rows = []
        for number, (path, text) in enumerate(zip(paths, texts, strict=True)):
            samples = np.repeat(np.array(path) * 0.1 * 32768, FRAME).astype(np.int16)
            file = tmp_path / f"u{number}.wav"
            soundfile.write(file, samples, RATE, subtype="PCM_16")
            rows.append(
                Utterance(
                    utt_id=f"u-{number}",
                    audio_path=file,
                    samples=len(samples),
                    sample_rate=RATE,
                    text=text,
                    speaker=f"speaker-{number % 2}",
                    audio_hash=hash_samples(samples, RATE),
                    source_rate=RATE,
                )
            )
        write_manifest(tmp_path / "dev.jsonl", rows)
        return read_manifest(tmp_path / "dev.jsonl")

    return write


def make_results(
    references: list[str],
    hypotheses: dict[str, list[str]],
    *,
    utt_ids: list[str] | None = None,
    speakers: list[str] | None = None,
) -> HeadResults:
    count = len(references)
    utt_ids = utt_ids or [f"utt-{index:03d}" for index in range(count)]
    speakers = speakers or [f"speaker-{index % 5}" for index in range(count)]
    return HeadResults(
        utterances=tuple(
            ScoredUtterance(utt_id=utt_id, speaker=speaker, audio_seconds=2.5, reference=reference)
            for utt_id, speaker, reference in zip(utt_ids, speakers, references, strict=True)
        ),
        heads=tuple(
            HeadResult(
                name=name,
                weight_count=(index + 1) * 1_500_000,
                hypotheses=tuple(texts),
                words=tuple(count_errors_each(references, texts)),
                characters=tuple(count_errors_each(references, texts, unit="character")),
            )
            for index, (name, texts) in enumerate(hypotheses.items())
        ),
        model_seconds=1.25,
    )


@pytest.fixture
def make_report() -> MakeReport:
    """A report of given texts, with few resamples."""

    def make(
        references: list[str],
        hypotheses: dict[str, list[str]],
        *,
        student: str = "runs/a",
        utt_ids: list[str] | None = None,
        speakers: list[str] | None = None,
        resample: str = "utterance",
    ) -> ScoreReport:
        return summarise(
            make_results(references, hypotheses, utt_ids=utt_ids, speakers=speakers),
            student=student,
            manifest="dev.jsonl",
            device="cpu",
            bootstrap_samples=200,
            resample=resample,
        )

    return make


@pytest.fixture
def noisy_texts() -> tuple[list[str], dict[str, list[str]]]:
    """120 references, and two heads' hypotheses with 40 and 10 % of the words replaced."""
    rng = random.Random(4)
    words = ["time", "and", "tide", "wait", "for", "no", "man", "but", "me"]
    references = [" ".join(rng.choices(words, k=rng.randint(2, 15))) for _ in range(120)]

    def spoil(rate: float) -> list[str]:
        return [
            " ".join("wrong" if rng.random() < rate else word for word in reference.split())
            for reference in references
        ]

    return references, {"layer4": spoil(0.4), "final": spoil(0.1)}
