"""The LibriSpeech example without LibriSpeech: its commands, settings, tokens and frame counts."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import yaml

from interkd.pipeline.audio_library import torchaudio
from interkd.pipeline.config import build, read_yaml
from interkd.pipeline.corpus.prepare import PrepareConfig, prepare
from interkd.pipeline.corpus.sources import read_sources
from interkd.pipeline.corpus.tokens import BLANK, WORD_BOUNDARY, Tokenizer
from interkd.pipeline.frames import FrameFormula
from interkd.pipeline.planning.costs import make_plan
from interkd.pipeline.planning.settings import PlanConfig
from interkd.pipeline.students.model import Student
from interkd.pipeline.training.config import TrainConfig
from interkd.pipeline.training.data import compared_lengths

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "librispeech"
SIZES = ("100h", "960h")
BUNDLES = ("WAV2VEC2_ASR_LARGE_960H", "WAV2VEC2_ASR_LARGE_LV60K_960H", "HUBERT_ASR_LARGE")

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="run.sh wants bash")


def run_sh(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, **variables}
    return subprocess.run(
        ["bash", str(EXAMPLE / "run.sh"), *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def commands(output: str) -> list[list[str]]:
    lines = [shlex.split(line[2:]) for line in output.splitlines() if line.startswith("$ ")]
    return [words[3:] if words[1:3] == ["-m", "interkd"] else words[1:] for words in lines]


@needs_bash
@pytest.mark.parametrize("size", SIZES)
def test_dry_run_from_any_directory(size: str, tmp_path: Path) -> None:
    result = run_sh("--dry-run", size, "/data/Libri Speech", cwd=tmp_path, SEEDS="1 2")
    assert result.returncode == 0, result.stderr
    assert re.search(r"dry run: \d+ interkd commands .* accepted", result.stdout)
    assert not list(tmp_path.iterdir())
    planned = commands(result.stdout)
    train = next(words for words in planned if words[0].endswith("manifest.py"))
    splits = ["train-clean-100", "train-clean-360", "train-other-500"][: 1 if size == "100h" else 3]
    assert train[1:-2] == [f"/data/Libri Speech/{split}" for split in splits]
    trained = [words for words in planned if words[0] == "train-student"]
    recipes = ("ctc", "inter-ctc", "skd", "inter-ctc-skd", "inter-kd")
    for words, (seed, recipe) in zip(
        trained, [(seed, recipe) for seed in "12" for recipe in recipes], strict=True
    ):
        assert words[2] == str(EXAMPLE / f"student-{size}.yaml")
        assert f"objective.recipe={recipe}" in words
        assert f"seed={seed}" in words
        assert ("objective.inter_ctc_weight=1" in words) == (recipe == "inter-ctc")
    scored = [words for words in planned if words[0] == "score"]
    assert len(scored) == 20 + 16  # ten students on two sets, and each but ctc against ctc
    assert [words[1] for words in planned if words[0] == "cache"] == ["info", "verify", "decode"]


@needs_bash
def test_dry_run_refuses_what_training_would(tmp_path: Path) -> None:
    setting = "student.jasper.dropot=0.1"  # other mistakes: tests/cli/test_bad_input.py
    result = run_sh("--dry-run", "100h", "LibriSpeech", "--set", setting, cwd=tmp_path)
    assert result.returncode == 1
    assert "run.sh: error: interkd train-student" in result.stderr
    assert "did you mean 'dropout'?" in result.stderr
    assert "Traceback" not in result.stderr


@needs_bash
def test_dry_run_refuses_an_unknown_option(tmp_path: Path) -> None:
    result = run_sh("--dry-run", "100h", "LibriSpeech", "--stor", "x", cwd=tmp_path)
    assert result.returncode == 1
    assert "No such option" in result.stderr
    assert run_sh("--dry-run", "10h", "LibriSpeech", cwd=tmp_path).returncode == 2
    assert "Usage:" in run_sh(cwd=tmp_path).stderr


@pytest.mark.parametrize("size", SIZES)
def test_settings_are_the_papers_student(size: str) -> None:
    config = build(TrainConfig, read_yaml(EXAMPLE / f"student-{size}.yaml"))
    student = Student(config.student, vocab_size=29)
    assert student.head_names == ("layer18", "layer24", "layer30", "final")
    assert student.weight_counts[-1] == 8_188_893
    assert config.student.features.mels == 64
    assert student.frame_formula.shift_samples == 320
    objective = config.objective
    assert (objective.recipe, objective.distill_weight, objective.temperature) == (
        ("inter-kd", 0.25, 1.0)
    )
    assert objective.divergence in (None, "l2")
    assert config.spec_augment is None


def test_settings_differ_in_data_and_length_alone() -> None:
    small, large = (
        yaml.safe_load((EXAMPLE / f"student-{size}.yaml").read_text(encoding="utf-8"))
        for size in SIZES
    )
    for section in ("student", "objective", "precision"):
        assert small[section] == large[section]


def teacher_formula(bundle_name: str) -> FrameFormula:
    """As the adapter makes it, without the weights."""
    convolutions = getattr(torchaudio.pipelines, bundle_name)._params["extractor_conv_layer_config"]
    return FrameFormula(tuple((kernel, stride, 0) for _, kernel, stride in convolutions))


def counts(formula: FrameFormula, samples: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    frames = samples
    for kernel, stride, padding in formula.steps:
        frames = np.maximum(0, (frames + 2 * padding - kernel) // stride + 1)
    for index in range(0, len(samples), 9973):
        assert frames[index] == formula.count(int(samples[index]))
    return frames


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bundle_name", BUNDLES)
def test_frames_fit_the_teachers_at_every_length(size: str, bundle_name: str) -> None:
    """From 1 to 35 s at 16 kHz, sample by sample."""
    config = build(TrainConfig, read_yaml(EXAMPLE / f"student-{size}.yaml"))
    samples = np.arange(16_000, 35 * 16_000 + 1)
    student = counts(Student(config.student, vocab_size=29).frame_formula, samples)
    teacher = counts(teacher_formula(bundle_name), samples)
    assert set((student - teacher).tolist()) == {1, 2}
    ids = [f"{n} samples" for n in samples.tolist()]
    assert compared_lengths(ids, student.tolist(), teacher.tolist()) == teacher.tolist()


def test_tokens_are_the_teachers() -> None:
    tokens = (EXAMPLE / "tokens.txt").read_text(encoding="utf-8").split("\n")[:-1]
    for bundle_name in BUNDLES:
        labels = getattr(torchaudio.pipelines, bundle_name).get_labels(blank=BLANK)
        assert tokens == [label.replace("|", WORD_BOUNDARY) for label in labels]
    assert Tokenizer.load(EXAMPLE / "tokens.txt").vocab_size == 29


def write_chapter(split: Path, speaker: str, chapter: str, *texts: str) -> Path:
    folder = split / speaker / chapter
    folder.mkdir(parents=True)
    lines = []
    for index, text in enumerate(texts):
        name = f"{speaker}-{chapter}-{index:04d}"
        time = np.arange(16_000 + 800 * index) / 16_000
        soundfile.write(folder / f"{name}.flac", 0.2 * np.sin(2 * np.pi * 300 * time), 16_000)
        lines.append(f"{name} {text}\n")
    path = folder / f"{speaker}-{chapter}.trans.txt"
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def split(tmp_path: Path) -> Path:
    split = tmp_path / "LibriSpeech" / "train-clean-100"
    write_chapter(split, "26", "495", "GOOD", "IT'S SO")
    write_chapter(split, "103", "1240", "NO")
    return split


def manifest_py(*arguments: Path | str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLE / "manifest.py"), *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def test_manifest_of_a_small_tree(split: Path, tmp_path: Path) -> None:
    other = split.with_name("train-clean-360")
    write_chapter(other, "7", "8", "YES")
    out = tmp_path / "new" / "train.jsonl"
    result = manifest_py("LibriSpeech/train-clean-100", other, "--out", out, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{out}: 4 utterances, 0.00 h\n"
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["utt_id"] for row in rows] == [
        "103-1240-0000",
        "26-495-0000",
        "26-495-0001",
        "7-8-0000",
    ]
    assert rows[2] == {
        "utt_id": "26-495-0001",
        "audio_filepath": str(split / "26" / "495" / "26-495-0001.flac"),
        "duration": 1.05,
        "text": "IT'S SO",
        "speaker": "26",
    }
    sources, bad = read_sources(out)
    assert (len(sources), bad) == (4, [])
    summary = prepare(PrepareConfig(sources=out, out=tmp_path / "data", train="characters"))
    assert (summary.utterances, summary.speakers) == (4, 3)
    assert sorted(path.name for path in out.parent.iterdir()) == ["train.jsonl"]


def remove_audio(split: Path) -> None:
    (split / "26" / "495" / "26-495-0001.flac").unlink()


def spoil_audio(split: Path) -> None:
    (split / "26" / "495" / "26-495-0001.flac").write_bytes(b"no audio")


def rewrite(text: str) -> Callable[[Path], None]:
    def change(split: Path) -> None:
        (split / "26" / "495" / "26-495.trans.txt").write_bytes(text.encode("latin-1"))

    return change


def remove_all(split: Path) -> None:
    shutil.rmtree(split)


def empty(split: Path) -> None:
    shutil.rmtree(split)
    split.mkdir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove_all, "no transcripts in LibriSpeech/train-clean-100; expected SPEAKER/CHAPTER/"),
        (empty, "got a folder without any; name a split"),
        (remove_audio, "26-495.trans.txt:2: no audio; expected "),
        (spoil_audio, "26-495-0001.flac; got Error opening"),
        (rewrite("26-495-0000 A\n"), "has no transcript of 26-495-0001; got 1 without one"),
        (rewrite("26-495-0000 A\n26-495-0000 A\n"), ":2: 26-495-0000 stands there twice"),
        (rewrite("26-495-0000\n"), ":1; expected an id and its transcript, got '26-495-0000'"),
        (rewrite("26-495-0000 A\n\n"), ":2; expected an id and its transcript, got ''"),
        (rewrite("27-495-0000 A\n"), ":1; expected an id 26-495-NUMBER, got 27-495-0000"),
        (rewrite("26-495-0000 \xff\n"), "cannot read "),
    ],
)
def test_manifest_mistakes_are_one_line(
    change: Callable[[Path], None], message: str, split: Path, tmp_path: Path
) -> None:
    change(split)
    out = tmp_path / "out" / "train.jsonl"
    result = manifest_py("LibriSpeech/train-clean-100", "--out", out, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("manifest.py: error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(out.parent.iterdir())


def test_manifest_that_cannot_be_written(split: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = manifest_py(split, "--out", tmp_path / "file" / "train.jsonl", cwd=tmp_path)
    assert result.returncode == 2
    assert "cannot write " in result.stderr


@pytest.mark.parametrize(
    ("column", "hours", "utterances", "epochs", "speed"),
    [(0, 100.59, 28_539, 100, 25_000), (1, 960.9, 281_241, 50, 5_000)],
)
def test_the_readmes_costs_are_the_plans(
    column: int, hours: float, utterances: int, epochs: int, speed: float
) -> None:
    plan = make_plan(
        PlanConfig(
            hours=hours,
            utterances=utterances,
            teacher_timing=(15682.8, 2.61),
            cache_overhead=2.24,
            student_speed=speed,
            epochs=epochs,
            students=(1, 5, 20),
        )
    )
    text = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    table = text[text.index("| store | ") :].split("\n\n")[0]
    rows = [line.strip("| ").split(" | ")[1 + column] for line in table.splitlines()]
    numbers = [[float(number) for number in re.findall(r"[\d.]+", row)] for row in rows]
    expected = [
        [plan.store_bytes / 1e6, plan.files],
        [plan.caching_hours],
        [plan.student_hours],
        *([cost.cached_hours, cost.online_hours] for cost in plan.costs),
    ]
    for said, planned in zip(numbers, expected, strict=True):
        assert said == pytest.approx(planned, rel=0.005)
    assert config_epochs(column) == epochs


def config_epochs(column: int) -> int:
    return build(TrainConfig, read_yaml(EXAMPLE / f"student-{SIZES[column]}.yaml")).epochs
