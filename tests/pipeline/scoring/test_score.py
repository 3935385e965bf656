from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from interkd.kernels.errors import BackendError, ConfigError, CorpusError
from interkd.pipeline.corpus.audio import AudioCache
from interkd.pipeline.corpus.manifest import Manifest
from interkd.pipeline.corpus.tokens import Tokenizer
from interkd.pipeline.progress import Reporter
from interkd.pipeline.scoring import score as score_module
from interkd.pipeline.scoring.report import read_report
from interkd.pipeline.scoring.score import ScoreConfig, evaluate, score
from interkd.pipeline.scoring.trn import read_trn

WriteCorpus = Callable[[list[list[int]], list[str]], Manifest]

RATE, FRAME = 8000, 160
TOKENIZER = Tokenizer(tokens=("<blk>", "▁", "a", "b", "c", "d"))
PATHS = [[2, 0, 2, 1, 3, 3], [4, 0], [2, 3, 4, 5, 1, 2, 2, 0, 2], [0, 0, 0]]
TEXTS = ["aa b", "c", "abcd aa", ""]


@dataclass(frozen=True)
class Output:
    logits: tuple[Tensor, ...]
    frame_lengths: Tensor


class Reader(nn.Module):
    """Reads the tokens off the level of each frame; its early head takes every d for a c."""

    head_names = ("early", "final")
    weight_counts = (10, 25)

    def __init__(self) -> None:
        super().__init__()
        self.features = SimpleNamespace(sample_rate=RATE)
        self.batches: list[list[int]] = []
        self.modes: set[bool] = set()

    def forward(self, waveforms: Tensor, sample_lengths: Tensor) -> Output:
        self.batches.append(sample_lengths.tolist())
        self.modes.add(self.training)
        tokens = (waveforms[:, FRAME // 2 :: FRAME] * 10).round().long()
        final = nn.functional.one_hot(tokens, 6).float()
        early = nn.functional.one_hot(tokens.clamp(max=4), 6).float()
        return Output((early, final), sample_lengths // FRAME)


class Listener(Reporter):
    def __init__(self) -> None:
        self.events: list[tuple[str, float]] = []

    def begin(self, task: str, total: float, *, done: float = 0.0) -> None:
        self.events.append((task, total))

    def advance(self, amount: float, figures: str = "") -> None:
        self.events.append(("advance", amount))

    def end(self) -> None:
        self.events.append(("end", 0.0))


@pytest.fixture
def manifest(write_corpus: WriteCorpus) -> Manifest:
    return write_corpus(PATHS, TEXTS)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Reader:
    reader = Reader().eval()
    student = SimpleNamespace(model=reader, tokenizer=TOKENIZER, name="runs/reader", facts={})
    monkeypatch.setattr(score_module, "load_student", lambda path, *, device: student)
    return reader


@pytest.fixture
def config(manifest: Manifest, tmp_path: Path) -> ScoreConfig:
    return ScoreConfig(
        checkpoint=Path("runs/reader"),
        manifest=manifest.path,
        out=tmp_path / "scores" / "reader",
        device="cpu",
        bootstrap_samples=100,
    )


@pytest.mark.parametrize("max_seconds", [0.01, 0.3, 100.0])
def test_every_head_is_recognised(
    manifest: Manifest, max_seconds: float, device: torch.device
) -> None:
    results = evaluate(Reader(), TOKENIZER, manifest, device=device, max_seconds=max_seconds)
    early, final = results.heads
    assert final is results.final
    assert (early.name, final.name) == ("early", "final")
    assert (early.weight_count, final.weight_count) == (10, 25)
    assert list(final.hypotheses) == TEXTS
    assert list(early.hypotheses) == ["aa b", "c", "abc aa", ""]
    assert final.word_total.errors == 0
    assert early.word_total.substitutions == 1
    assert early.word_total.reference_length == 5
    assert early.character_total.deletions == 1
    assert [u.reference for u in results.utterances] == TEXTS
    assert results.audio_seconds == pytest.approx(20 * FRAME / RATE)
    assert results.real_time_factor == results.model_seconds / results.audio_seconds > 0


@pytest.mark.parametrize("training", [True, False])
def test_mode_is_left_as_it_came(manifest: Manifest, training: bool) -> None:
    model = Reader().train(training)
    evaluate(model, TOKENIZER, manifest, device="cpu", max_seconds=1.0)
    assert model.training is training
    assert model.modes == {False}


def test_mode_is_left_after_a_failure(manifest: Manifest) -> None:
    model, listener = Reader().train(), Listener()
    missing = replace(manifest.utterances[0], audio_path=Path("none.wav"))
    with pytest.raises(CorpusError, match="no such audio file"):
        evaluate(
            model,
            TOKENIZER,
            replace(manifest, utterances=(missing,)),
            device="cpu",
            max_seconds=1.0,
            reporter=listener,
        )
    assert model.training
    assert listener.events[-1] == ("end", 0.0)


def test_longest_batch_first_and_warmed_up_once(manifest: Manifest) -> None:
    model = Reader()
    evaluate(model, TOKENIZER, manifest, device="cpu", max_seconds=0.01, warm_up=True)
    assert model.batches == [[9 * FRAME], [9 * FRAME], [6 * FRAME], [3 * FRAME], [2 * FRAME]]


def test_reporter_hears_every_second(manifest: Manifest) -> None:
    listener = Listener()
    evaluate(Reader(), TOKENIZER, manifest, device="cpu", max_seconds=0.01, reporter=listener)
    (task, total), *advances, end = listener.events
    assert (task, end) == ("scoring", ("end", 0.0))
    assert sum(amount for _, amount in advances) == pytest.approx(total) == pytest.approx(0.4)


def test_audio_cache_is_filled_and_used(manifest: Manifest) -> None:
    cache = AudioCache(budget_bytes=1 << 20)
    options = {"device": "cpu", "max_seconds": 1.0, "audio_cache": cache}
    first = evaluate(Reader(), TOKENIZER, manifest, **options)  # type: ignore[arg-type]
    assert len(cache) == 4
    for utterance in manifest.utterances:
        utterance.audio_path.unlink()
    second = evaluate(Reader(), TOKENIZER, manifest, **options)  # type: ignore[arg-type]
    assert second.heads == first.heads


def test_empty_manifest(manifest: Manifest) -> None:
    with pytest.raises(CorpusError, match="without utterances"):
        evaluate(
            Reader(), TOKENIZER, replace(manifest, utterances=()), device="cpu", max_seconds=1.0
        )


def test_score_writes_its_folder(model: Reader, config: ScoreConfig) -> None:
    report = score(config)
    assert sorted(path.name for path in config.out.iterdir()) == [
        "hyp.early.trn",
        "hyp.final.trn",
        "ref.trn",
        "report.html",
        "report.json",
    ]
    assert read_report(config.out) == report
    assert report.student == "runs/reader"
    utt_ids = [f"u-{number}" for number in range(4)]
    assert read_trn(config.out / "ref.trn") == dict(zip(utt_ids, TEXTS, strict=True))
    assert read_trn(config.out / "hyp.early.trn")["u-2"] == "abc aa"
    value = json.loads((config.out / "report.json").read_text(encoding="utf-8"))
    assert [head["wer"]["percent"] for head in value["heads"]] == [20.0, 0.0]
    page = (config.out / "report.html").read_text(encoding="utf-8")
    assert "Not a single word is wrong" in page


def test_a_crash_leaves_no_report(
    model: Reader, config: ScoreConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    score(config)

    def fail(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(score_module, "write_text", fail)
    with pytest.raises(ConfigError, match="No space left on device"):
        score(config)
    assert not (config.out / "report.json").exists()


def test_another_runs_heads_are_cleared(model: Reader, config: ScoreConfig) -> None:
    config.out.mkdir(parents=True)
    (config.out / "hyp.layer99.trn").write_text("old (u-0)\n", encoding="utf-8")
    (config.out / "notes.txt").write_text("mine", encoding="utf-8")
    score(config)
    assert not (config.out / "hyp.layer99.trn").exists()
    assert (config.out / "notes.txt").exists()


def test_unusable_ids_are_refused_before_the_work(
    model: Reader, config: ScoreConfig, manifest: Manifest
) -> None:
    text = manifest.path.read_text(encoding="utf-8")
    manifest.path.write_text(text.replace("u-3", "u 3"), encoding="utf-8")
    with pytest.raises(CorpusError, match="no white space"):
        score(config)
    assert model.batches == []


def test_other_sample_rate_is_refused(model: Reader, config: ScoreConfig) -> None:
    model.features.sample_rate = 16000
    with pytest.raises(CorpusError, match="expected 16000, as runs/reader was trained, got 8000"):
        score(config)


@pytest.mark.parametrize(
    "setting",
    [
        {"device": "tpu"},
        {"batch_seconds": 0.0},
        {"batch_seconds": float("nan")},
        {"bootstrap_samples": 0},
        {"resample": "word"},
    ],
)
def test_settings_out_of_range(setting: dict[str, object], config: ScoreConfig) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        replace(config, **setting)  # type: ignore[arg-type]


def test_missing_gpu(config: ScoreConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match="--device cpu"):
        score(replace(config, device="cuda"))
