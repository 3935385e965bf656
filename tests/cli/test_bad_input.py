"""Bad input through the command line: one line, exit code 2, nothing half-written."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from torch import Tensor

from interkd.cli.main import main
from interkd.pipeline.cache.metadata import read_metadata, write_metadata
from interkd.pipeline.config import as_plain
from interkd.pipeline.corpus.audio import resampled_length
from interkd.pipeline.corpus.manifest import read_manifest
from interkd.pipeline.corpus.tokens import Tokenizer
from interkd.pipeline.students.model import Student
from interkd.pipeline.teachers.protocol import TeacherInfo
from interkd.pipeline.training.recipes import ObjectiveConfig
from tests.students import conformer, save_untaught, training

STUDENT = conformer(16)


@dataclass(frozen=True)
class World:
    """A corpus, a teacher and its store, which a test may break."""

    root: Path

    @property
    def train(self) -> Path:
        return self.root / "corpus" / "train" / "manifest.jsonl"

    @property
    def dev(self) -> Path:
        return self.root / "corpus" / "dev" / "manifest.jsonl"

    @property
    def tokens(self) -> Path:
        return self.root / "corpus" / "tokens.txt"

    @property
    def teacher(self) -> Path:
        return self.root / "teacher"

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def out(self) -> Path:
        return self.root / "out"

    @property
    def settings(self) -> Path:
        return self.root / "student.yaml"

    def cache_arguments(self, **changes: str | Path) -> list[str]:
        options = {
            "teacher": f"interkd:{self.teacher}",
            "manifest": self.train,
            "out": self.out,
            "device": "cpu",
            "part-minutes": "0.2",
            "decode-threads": "1",
            **{name.replace("_", "-"): value for name, value in changes.items()},
        }
        return ["cache-teacher", *(f"--{name}={value}" for name, value in options.items())]

    def train_arguments(self, *assignments: str, store: Path | None = None) -> list[str]:
        arguments = ["train-student", "--config", str(self.settings), "--out", str(self.out)]
        arguments += ["--store", str(store or self.store)]
        return [*arguments, *(f"--set={assignment}" for assignment in assignments)]

    def score_arguments(self, **changes: str | Path) -> list[str]:
        options = {"checkpoint": self.teacher, "manifest": self.dev, "out": self.out, **changes}
        return ["score", *(f"--{name}={value}" for name, value in options.items())]


@pytest.fixture(scope="module")
def whole_world(tone_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    shutil.copytree(tone_corpus.root, root / "corpus")
    world = World(root)
    save_untaught(world.teacher, STUDENT, world.tokens)
    main(world.cache_arguments(out=world.store))
    assert len(list(world.store.glob("part-*"))) == 3
    return root


@pytest.fixture
def world(
    whole_world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> World:
    shutil.copytree(whole_world, tmp_path / "world")
    monkeypatch.chdir(tmp_path)
    world = World(tmp_path / "world")
    config = training(
        world,
        world.out,
        data={"batch_seconds": 60.0, "buckets": 1},
        student=STUDENT,
        objective=ObjectiveConfig(),
        epochs=1,
    )
    world.settings.write_text(yaml.safe_dump(as_plain(config), sort_keys=False))
    capsys.readouterr()
    return world


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command line and returns its one line of complaint."""

    def run(arguments: list[str], *, lines_before: int = 0) -> str:
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        output = capsys.readouterr()
        assert "Traceback" not in output.out + output.err
        *before, line = output.err.splitlines()
        assert len(before) == lines_before, output.err
        assert line.startswith("interkd: error: ")
        return line.removeprefix("interkd: error: ")

    return run


def files(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def audio_of(manifest: Path, index: int) -> Path:
    return read_manifest(manifest).utterances[index].audio_path


def mend_and_train(world: World, *assignments: str) -> None:
    """The same command with the mistake mended starts, whatever the first one left."""
    main(world.train_arguments(*assignments))
    assert (world.out / "best.json").exists()


# prepare


def good_row(folder: Path) -> dict[str, Any]:
    wave = 0.1 * np.random.default_rng(0).standard_normal(32000)
    soundfile.write(folder / "speech.flac", wave, 16000)
    return {"audio_filepath": "speech.flac", "duration": 2.0, "text": "ABBA"}


def missing_audio(folder: Path, row: dict[str, Any]) -> None:
    (folder / "speech.flac").unlink()


def truncated_flac(folder: Path, row: dict[str, Any]) -> None:
    path = folder / "speech.flac"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def wrong_duration(folder: Path, row: dict[str, Any]) -> None:
    row["duration"] = 3.0


def empty_text(folder: Path, row: dict[str, Any]) -> None:
    row["text"] = "  "


def foreign_character(folder: Path, row: dict[str, Any]) -> None:
    row["text"] = "ABÄB"


def too_short_for_ctc(folder: Path, row: dict[str, Any]) -> None:
    row["text"] = "AB" * 51  # 100 frames of 20 ms


def nan_in_audio(folder: Path, row: dict[str, Any]) -> None:
    wave = np.zeros(32000, np.float32)
    wave[77] = np.nan
    soundfile.write(folder / "speech.wav", wave, 16000, subtype="FLOAT")
    row["audio_filepath"] = "speech.wav"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (missing_audio, "no such audio file"),
        (truncated_flac, "truncated"),
        (wrong_duration, "has 2.000 s, the row claims 3.000 s"),
        (empty_text, "text"),
        (foreign_character, "'Ä'"),
        (too_short_for_ctc, "frames"),
        (nan_in_audio, "sample 77; expected a finite value, got nan"),
    ],
)
def test_bad_rows(
    spoil: Callable[[Path, dict[str, Any]], None],
    message: str,
    world: World,
    tmp_path: Path,
    fails: Callable[..., str],
) -> None:
    row = good_row(tmp_path)
    spoil(tmp_path, row)
    source = tmp_path / "source.jsonl"
    source.write_text(json.dumps(row) + "\n")
    arguments = ["prepare", str(source), "--out", str(world.out), "--tokens", str(world.tokens)]
    line = fails(arguments, lines_before=1)
    assert line.startswith("1 of 1 rows are bad, nothing was written")
    assert message in line
    assert not world.out.exists()


# cache-teacher and train-student


def change_audio(world: World) -> tuple[Path, bytes]:
    path = audio_of(world.train, 30)
    before = path.read_bytes()
    samples, rate = soundfile.read(path, dtype="int16")
    samples[500] += 1
    soundfile.write(path, samples, rate)
    return path, before


def test_audio_changed_before_cache_teacher(world: World, fails: Callable[..., str]) -> None:
    path, before = change_audio(world)
    line = fails(world.cache_arguments(part_minutes="60"))
    assert line.startswith(f"utterance 'utt1-030': audio changed: {path}; expected ")
    assert not world.out.exists()
    line = fails(world.cache_arguments())  # in the last of three parts
    assert "audio changed" in line
    assert sorted(p.name for p in world.out.iterdir()) == [
        "part-00000.zip",
        "part-00001.zip",
        "zarr.json",
    ]
    path.write_bytes(before)
    main(world.cache_arguments())
    assert (world.out / "part-00002.zip").exists()


def test_a_store_of_another_speed(world: World, fails: Callable[..., str]) -> None:
    """The same files under the same ids, but heard faster."""
    before = world.train.read_text()
    rows = [json.loads(line) for line in before.splitlines()]
    for row in rows[3:]:
        row |= {"speed": 1.1, "samples": resampled_length(row["samples"], 17600, 16000)}
    world.train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = fails(world.train_arguments())
    assert "was made of other audio for 33 utterances of the manifest, the first 'utt1-003'" in line
    line = fails(world.cache_arguments(out=world.store))
    assert "was begun for other utterances, audio or part lengths" in line
    assert not world.out.exists()
    world.train.write_text(before)
    mend_and_train(world)


def test_audio_changed_before_train_student(world: World, fails: Callable[..., str]) -> None:
    path, before = change_audio(world)
    line = fails(world.train_arguments(), lines_before=1)  # the objective, as training had begun
    assert line.startswith(f"utterance 'utt1-030': audio changed: {path}; expected ")
    assert not world.out.exists()
    path.write_bytes(before)
    mend_and_train(world)


def test_dev_audio_missing(world: World, fails: Callable[..., str]) -> None:
    path = audio_of(world.dev, 3)
    path.rename(path.with_suffix(".away"))
    assert f"{path}: no such audio file" in fails(world.train_arguments(), lines_before=1)
    assert [path.name for path in world.out.iterdir()] == ["failed.jsonl"]  # of an epoch
    path.with_suffix(".away").rename(path)
    mend_and_train(world)


def test_store_of_another_tokenizer(world: World, fails: Callable[..., str]) -> None:
    tokens = world.root / "other" / "tokens.txt"
    tokens.parent.mkdir()
    tokens.write_text("\n".join(["<blk>", "▁", *"HGFEDCBA"]) + "\n", encoding="utf-8")
    line = fails(world.train_arguments(f"data.tokenizer={tokens}"))
    assert line.startswith(
        "student and teacher cache: tokens differ at index 2; expected 'A' of 10 tokens, "
        "got 'H' of 10 tokens; "
    )
    assert not world.out.exists()
    mend_and_train(world)


def test_store_of_another_frame_shift(world: World, fails: Callable[..., str]) -> None:
    line = fails(world.train_arguments("student.conformer.stride=2"))
    assert "frame shift in samples differs; expected 640, got 320; " in line
    assert line.rstrip().endswith("times student.features.hop_ms must be 40 ms")
    assert not world.out.exists()


def test_store_of_another_teacher(world: World, fails: Callable[..., str]) -> None:
    other = save_untaught(world.root / "other", STUDENT, world.tokens, seed=1)
    (world.store / "part-00001.zip").unlink()
    before = files(world.store)
    line = fails(world.cache_arguments(teacher=f"interkd:{other}", out=world.store))
    assert f"{world.store} was begun with another teacher" in line
    assert "weights_sha256 differs" in line
    assert files(world.store) == before


class LateTeacher:
    """Frames of 640 samples like the student's, but two more of them."""

    def __init__(self, tokens: tuple[str, ...]) -> None:
        self.info = TeacherInfo(
            name="late",
            weights_sha256="cd" * 32,
            tokens=tokens,
            blank_index=0,
            sample_rate=16000,
            frame_formula=Student(STUDENT, len(tokens)).frame_formula.then((1, 1, 1), (2, 1, 1)),
        )

    def log_probs(self, waveforms: Tensor, sample_lengths: Tensor) -> tuple[Tensor, Tensor]:
        counts = [self.info.frame_formula.count(n) for n in sample_lengths.tolist()]
        even = torch.zeros(len(counts), max(counts), len(self.info.tokens)).log_softmax(-1)
        return even, torch.tensor(counts)


def test_frames_that_differ_by_three(
    world: World, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:

    tokens = Tokenizer.load(world.tokens).tokens
    module = ModuleType("late")
    module.make = lambda *, device, precision: LateTeacher(tokens)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "late", module)
    store = world.root / "late-store"
    main(world.cache_arguments(teacher="python:late:make", out=store))
    first = read_manifest(world.train).utterances[0]
    count = Student(STUDENT, len(tokens)).frame_formula.count(first.samples)
    line = fails(world.train_arguments(store=store), lines_before=0)
    assert line.startswith(
        f"utterance {first.utt_id}: frames of student and teacher differ by more than 2; "
        f"expected {count + 3} (teacher), got {count} (student); "
    )
    assert not world.out.exists()
    mend_and_train(world)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("studnet: {}", "unknown setting 'studnet'; did you mean 'student'?"),
        (
            "optimiser: {learning_rat: 1}",
            "unknown setting 'optimiser.learning_rat'; did you mean 'learning_rate'?",
        ),
        ("objective: {recipe: interkd}", "did you mean 'inter-kd'?"),
        ("epochs: many", "setting 'epochs'; expected int, got 'many'"),
        ("epochs: [", "is not YAML"),
        ("data: 3", "setting 'data'"),
    ],
)
def test_settings_that_cannot_be(
    text: str, message: str, world: World, fails: Callable[..., str]
) -> None:
    key = text.split(":")[0]
    lines = world.settings.read_text().splitlines()
    if key in ("epochs", "data"):
        start = next(i for i, line in enumerate(lines) if line.startswith(key))
        end = next((i for i in range(start + 1, len(lines)) if lines[i][0] != " "), len(lines))
        del lines[start:end]
    world.settings.write_text("\n".join([*lines, text]) + "\n")
    assert message in fails(world.train_arguments())
    assert not world.out.exists()


@pytest.mark.parametrize(
    ("assignment", "limits"),
    [
        ("optimiser.learning_rate=0", "above 0"),
        ("optimiser.learning_rate=.nan", "above 0"),
        ("optimiser.betas=[0.9, 1.5]", "at least 0, below 1"),
        ("optimiser.grad_clip=-1", "at least 0"),
        ("student.features.hop_ms=0", "above 0"),
        ("student.conformer.dim=15", "a multiple of attention_heads (2)"),
        ("student.conformer.convolution_kernel=8", "odd"),
        ("student.conformer.dropout=2", "at least 0, below 1"),
        ("student.conformer.stride=3", "1, 2, 4 or 8"),
        ("student.jasper.repeat=0", "at least 1"),
        ("student.jasper.block_kernels=[3, 0]", "at least 1"),
        ("objective.distill_weight=-1", "at least 0"),
        ("objective.temperature=.inf", "above 0"),
        ("spec_augment.time_share=5", "at least 0, at most 1"),
        ("data.batch_seconds=0", "above 0"),
        ("epochs=0", "at least 1"),
        ("dev_every=0", "at least 1"),
        ("average_epochs=-1", "at least 0"),
        ("max_minutes=0", "above 0"),
        ("seed=-1", "at least 0"),
    ],
)
def test_settings_out_of_range(
    assignment: str, limits: str, world: World, fails: Callable[..., str]
) -> None:
    line = fails(world.train_arguments(assignment))
    assert line.startswith(f"{assignment.split('=')[0]}; expected {limits}")
    assert not world.out.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": "interkid:x"}, "unknown teacher 'interkid:x'"),
        ({"teacher": "interkid:x"}, "did you mean 'interkd'?"),
        ({"top_k": "0"}, "'top_k'; expected 2 to 255, got 0"),
        ({"mass": "1.5"}, "'mass'; expected above 0, at most 1, got 1.5"),
        ({"part_minutes": "0"}, "part_minutes; expected above 0, got 0.0"),
        ({"batch_seconds": "nan"}, "batch_seconds; expected above 0, got nan"),
        ({"decode_threads": "0"}, "decode_threads; expected at least 1, got 0"),
        ({"device": "tpu"}, "unknown device"),
    ],
)
def test_options_of_cache_teacher_out_of_range(
    changes: dict[str, str], message: str, world: World, fails: Callable[..., str]
) -> None:
    assert message in fails(world.cache_arguments(**changes))
    assert not world.out.exists()


# the store


def test_store_with_a_missing_part(
    world: World, fails: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    (world.store / "part-00001.zip").unlink()
    line = fails(world.train_arguments())
    assert line.startswith(
        f"{world.store} is not whole; expected 3 parts, got 1 missing (part-00001)"
    )
    assert not world.out.exists()
    with pytest.raises(SystemExit) as stopped:
        main(["cache", "verify", str(world.store)])
    assert stopped.value.code == 2
    output = capsys.readouterr()
    assert output.out == "part-00001: the part is missing\n"
    assert output.err.startswith(f"interkd: error: {world.store} has 1 problems; ")
    main(world.cache_arguments(out=world.store))
    mend_and_train(world)


@pytest.mark.parametrize("column", ["blank", "token", "fraction", "digest"])
def test_flipped_byte(
    column: str, world: World, fails: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    part = world.store / "part-00002.zip"
    data = bytearray(part.read_bytes())
    member = f"{column}/c/0".encode()
    data[data.index(member) + len(member) + 8] ^= 0x10  # the first bytes are zstd's frame header
    part.write_bytes(data)
    line = fails(world.train_arguments())
    assert line.startswith(f"{world.store} part-00002, column '{column}'")
    assert not world.out.exists()
    with pytest.raises(SystemExit) as stopped:
        main(["cache", "verify", str(world.store)])
    assert stopped.value.code == 2
    assert capsys.readouterr().out.startswith(f"part-00002, column '{column}'")


def test_unfinished_store(world: World, fails: Callable[..., str]) -> None:
    write_metadata(world.store, replace(read_metadata(world.store), summary=None), replace=True)
    line = fails(world.train_arguments())
    assert line.startswith(f"{world.store} is not finished; ")
    assert "run cache-teacher again" in line
    assert not world.out.exists()


def test_no_store(world: World, fails: Callable[..., str]) -> None:
    nowhere = world.root / "nowhere"
    assert fails(world.train_arguments(store=nowhere)).startswith(f"no teacher cache at {nowhere}")
    assert not world.out.exists()


# checkpoints, manifests, devices


def test_checkpoint_missing(world: World, fails: Callable[..., str]) -> None:
    nowhere = world.root / "nowhere"
    assert fails(world.score_arguments(checkpoint=nowhere)).startswith(
        f"no checkpoint at {nowhere}"
    )
    line = fails(world.cache_arguments(teacher=f"interkd:{nowhere}"))
    assert line.startswith(f"no checkpoint at {nowhere}")
    assert not world.out.exists()


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize("name", ["model.safetensors", "student.json", "tokens.txt"])
@pytest.mark.parametrize("damage", [cut, lambda data: b"", lambda data: b"\xff" + data[1:]])
def test_damaged_checkpoint(
    name: str, damage: Callable[[bytes], bytes], world: World, fails: Callable[..., str]
) -> None:
    path = world.teacher / name
    path.write_bytes(damage(path.read_bytes()))
    line = fails(world.score_arguments())
    assert str(world.teacher) in line
    assert not world.out.exists()


@pytest.mark.parametrize("content", [None, "", "{}\n", '{"utt_id": 3}\n', "\xff\n", "[1]\n"])
def test_manifest_missing_or_damaged(
    content: str | None, world: World, fails: Callable[..., str]
) -> None:
    if content is None:
        world.dev.unlink()
        world.train.unlink()
    else:
        world.dev.write_text(content, encoding="latin-1")
        world.train.write_text(content, encoding="latin-1")
    assert str(world.dev) in fails(world.score_arguments())
    assert str(world.train) in fails(world.cache_arguments())
    assert str(world.train) in fails(world.train_arguments())
    assert not world.out.exists()


def test_cuda_without_cuda(
    world: World, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for arguments in (
        world.cache_arguments(device="cuda"),
        world.train_arguments("device=cuda"),
        world.score_arguments(device="cuda"),
    ):
        line = fails(arguments)
        assert "cuda" in line
        assert "--device cpu" in line
    assert not world.out.exists()


def test_resume_of_another_run(
    world: World, fails: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    mend_and_train(world)
    capsys.readouterr()
    before = files(world.out)
    assert "holds a run already" in fails(world.train_arguments())
    line = fails([*world.train_arguments("seed=2"), "--resume"])
    assert line.startswith("the run was started with another 'seed'; expected 1, got 2")
    assert files(world.out) == before
