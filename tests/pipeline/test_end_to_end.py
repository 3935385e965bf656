"""The whole road by its commands: a teacher, its store, two students, their scores."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from interkd.cli.main import main
from interkd.pipeline.cache.inspect import info
from interkd.pipeline.cache.reader import TeacherStore
from interkd.pipeline.cache.transcripts import transcribe_store
from interkd.pipeline.cache_settings import CacheTeacherConfig
from interkd.pipeline.cache_teacher import cache_teacher
from interkd.pipeline.config import as_plain
from interkd.pipeline.corpus.manifest import read_manifest
from interkd.pipeline.corpus.prepare import PrepareConfig, prepare
from interkd.pipeline.scoring.compare import compare
from interkd.pipeline.scoring.report import ScoreReport, read_report
from tests.students import conformer, steps_of, training

pytestmark = pytest.mark.xdist_group("road")  # walked once, not by each worker


@dataclass(frozen=True)
class Road:
    """The folders that the commands left."""

    root: Path

    def log(self, run: str) -> list[dict[str, Any]]:
        """The training steps of a run."""
        return steps_of(self.root / run)

    def report(self, name: str) -> ScoreReport:
        return read_report(self.root / "scores" / name)


@pytest.fixture(scope="module")
def road(tone_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Road:
    """Every command once, as a user would give them."""
    root = tmp_path_factory.mktemp("road")
    for name, dim, epochs in (("teacher", 48, 36), ("student", 24, 25)):
        config = training(
            tone_corpus,
            root / name,
            data={"decode_threads": 0},
            student=conformer(dim, dropout=0.0),
            epochs=epochs,
            dev_every=epochs,
        )
        settings = as_plain(config)
        del settings["objective"]  # each command has its own
        (root / f"{name}.yaml").write_text(yaml.safe_dump(settings))

    def run(*arguments: object) -> None:
        main([str(argument) for argument in arguments])

    run("train-teacher", "--config", root / "teacher.yaml", "--out", root / "teacher")
    store = root / "store"
    run(
        *("cache-teacher", "--teacher", f"interkd:{root / 'teacher'}", "--device", "cpu"),
        *("--manifest", tone_corpus.train, "--out", store, "--part-minutes", "0.3"),
    )
    for recipe in ("inter-kd", "ctc"):
        run(
            *("train-student", "--config", root / "student.yaml", "--out", root / recipe),
            *("--store", store, "--set", f"objective.recipe={recipe}"),
        )
    for name in ("teacher", "inter-kd", "ctc"):
        run(
            *("score", "--checkpoint", root / name, "--manifest", tone_corpus.dev),
            *("--out", root / "scores" / name, "--device", "cpu", "--bootstrap-samples", "200"),
        )
    return Road(root)


def test_the_teacher_learns(road: Road) -> None:
    report = road.report("teacher")
    (head,) = report.results.heads  # the plain recipe trains no other
    assert head.name == "final"
    assert head.character_total.rate < 40


@pytest.mark.parametrize("split", ["train", "dev"])
def test_the_store_says_what_the_teacher_said(
    split: str, road: Road, tone_corpus: Any, tmp_path: Path
) -> None:
    manifest: Path = getattr(tone_corpus, split)
    store, checkpoint = tmp_path / "store", str(road.root / "teacher")
    main(
        [
            *("cache-teacher", "--teacher", f"interkd:{checkpoint}", "--device", "cpu"),
            *("--manifest", str(manifest), "--out", str(store), "--batch-seconds", "9"),
        ]
    )
    said = transcribe_store(store, manifest)
    assert said.word_errors.rate == said.teacher_wer
    assert said.word_errors.rate < 60
    assert said.word_errors.reference_length == sum(
        len(u.text.split()) for u in read_manifest(manifest).utterances
    )
    # Scored as a model, on the same audio in other batches, it says the same words.
    scores = tmp_path / "scores"
    main(
        [
            *("score", "--checkpoint", checkpoint, "--device", "cpu", "--out", str(scores)),
            *("--manifest", str(manifest), "--bootstrap-samples", "10"),
        ]
    )
    (head,) = read_report(scores).results.heads
    assert head.hypotheses == said.texts
    assert head.word_total.rate == said.teacher_wer


def test_the_students_learn_and_are_reported(road: Road) -> None:
    for name, heads in (("inter-kd", ("layer1", "final")), ("ctc", ("final",))):
        steps = road.log(name)
        first = sum(row["loss"] for row in steps[:5])
        assert sum(row["loss"] for row in steps[-5:]) < 0.5 * first
        report = road.report(name)
        assert tuple(head.name for head in report.results.heads) == heads
        for head in report.results.heads:
            assert (road.root / "scores" / name / f"hyp.{head.name}.trn").is_file()
        assert (road.root / "scores" / name / "report.html").is_file()
        assert len(report.results.utterances) == 8


def test_every_head_nears_the_teacher(road: Road) -> None:
    steps = road.log("inter-kd")
    for head in ("layer1", "final"):
        for term in ("ctc", "distill"):
            first = sum(row[term][head] for row in steps[:5])
            assert sum(row[term][head] for row in steps[-5:]) < 0.8 * first
    assert all(sum(row["distill"].values()) == 0 for row in road.log("ctc"))


def test_the_store_can_be_looked_into(
    road: Road, tone_corpus: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(road.root / "store")
    main(["cache", "info", store, "--json"])
    values = json.loads(capsys.readouterr().out)
    assert values["utterances"] == 36
    assert values["frames"] == info(store).frames
    main(["cache", "verify", store])
    assert capsys.readouterr().out.endswith("every digest matches\n")
    main(["cache", "decode", store, "--manifest", str(tone_corpus.train)])
    first, second = capsys.readouterr().out.splitlines()
    assert first.split("%")[0].split()[-1] == second.split("%")[0].split()[-1]


def test_scores_are_compared(road: Road, capsys: pytest.CaptureFixture[str]) -> None:
    scores = road.root / "scores"
    arguments = [str(scores / "teacher"), str(scores / "ctc"), "--bootstrap-samples", "500"]
    main(["score", "--compare", *arguments])
    lines = capsys.readouterr().out.splitlines()
    rates = [road.report(name).results.heads[-1].word_total.rate for name in ("teacher", "ctc")]
    assert [line.split()[1] for line in lines[:2]] == [f"{rate:.2f}" for rate in rates]
    result = compare(scores / "teacher", scores / "ctc", samples=500)
    assert result.paired.difference == pytest.approx(rates[0] - rates[1])
    assert f"{result.paired.difference:+.2f} points" in lines[2]


@pytest.mark.shared
def test_real_teacher_on_real_speech(
    shared: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = []
    for line in (shared.speech / "dev.jsonl").read_text(encoding="utf-8").splitlines()[:12]:
        row = json.loads(line)
        rows.append({**row, "audio_filepath": str(shared.speech / row["audio_filepath"])})
    source = tmp_path / "source.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tokens = shared.teacher.with_name("tokens.txt")
    prepare(PrepareConfig(sources=source, out=tmp_path / "dev", tokens=tokens, frame_shift_ms=20))
    assert (tmp_path / "dev" / "tokens.txt").read_bytes() == tokens.read_bytes()
    manifest, store = tmp_path / "dev" / "manifest.jsonl", tmp_path / "store"
    summary = cache_teacher(
        CacheTeacherConfig(
            teacher=f"torchscript:{shared.teacher}",
            manifest=manifest,
            out=store,
            device="cpu",
            part_minutes=0.5,
            batch_seconds=40,
        )
    )
    assert summary.parts > 1
    assert summary.teacher_wer is not None
    assert 0 < summary.teacher_wer < 60
    said = transcribe_store(store, manifest)
    assert said.word_errors.rate == pytest.approx(summary.teacher_wer, abs=0.2)
    fingerprint = TeacherStore.open(store).fingerprint
    assert list(fingerprint.tokens) == tokens.read_text(encoding="utf-8").splitlines()
    frames = [-(-u.samples // 320) for u in read_manifest(manifest).utterances]
    assert [
        fingerprint.frame_formula.count(u.samples) for u in read_manifest(manifest).utterances
    ] == frames
    assert summary.frames == sum(frames)
    assert summary.bytes_a_frame < 8  # short parts: their own bytes weigh more than in an hour
    main(["cache", "decode", str(store), "--manifest", str(manifest)])
    assert f"{summary.teacher_wer:.2f} %" in capsys.readouterr().out


def test_speeds_are_heard_by_teacher_and_student(
    road: Road, tone_corpus: Any, tmp_path: Path
) -> None:
    """Every command on a corpus at three speeds; the teacher, run again, says the same of each."""
    source = tone_corpus.root / "audio" / "dev" / "source.jsonl"
    data, store, run = tmp_path / "data", tmp_path / "store", tmp_path / "run"
    manifest, teacher = data / "manifest.jsonl", road.root / "teacher"

    def interkd(*arguments: object) -> None:
        main([str(argument) for argument in arguments])

    prepared = ("prepare", source, "--out", data, "--tokens", tone_corpus.tokens)
    interkd(*prepared, "--speeds", "0.9,1,1.1")
    heard = ("--teacher", f"interkd:{teacher}", "--manifest", manifest, "--device", "cpu")
    interkd("cache-teacher", *heard, "--out", store, "--batch-seconds", 9)
    interkd("cache", "verify", store, "--sample", 24, *heard)
    changes = ("--set", f"data.train_manifest={manifest}", "--set", "epochs=1")
    trained = ("train-student", "--config", road.root / "student.yaml", "--store", store)
    interkd(*trained, *changes, "--out", run)
    scored = ("--manifest", manifest, "--device", "cpu", "--bootstrap-samples", 10)
    interkd("score", "--checkpoint", run, "--out", tmp_path / "score", *scored)

    utterances, opened = read_manifest(manifest).utterances, TeacherStore.open(store)
    assert [u.speed for u in utterances] == 8 * [1.0, 0.9, 1.1]
    assert len({u.audio_identity for u in utterances}) == 24
    for utterance in utterances:
        assert opened.audio_hash(utterance.utt_id) == utterance.audio_identity
        frames = opened.fingerprint.frame_formula.count(utterance.samples)
        assert opened.frame_count(utterance.utt_id) == frames
    seconds = sum(utterance.duration for utterance in utterances)
    assert read_report(tmp_path / "score").results.audio_seconds == pytest.approx(seconds)
