"""What every test may use: the device, the real speech when it is there, Hypothesis profiles."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import settings

from interkd.pipeline.corpus.prepare import PrepareConfig, prepare
from tests.properties import USUAL

# The same examples at every run; `--hypothesis-profile` is read later, and so has the last word.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=USUAL)
settings.register_profile(
    "explore", derandomize=False, deadline=None, max_examples=5 * USUAL, print_blob=True
)
settings.load_profile("repeatable")

SHARED = Path(os.environ.get("INTERKD_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device for device-free tests: cpu or cuda")


def pytest_configure(config: pytest.Config) -> None:
    # Read when the kernels are imported: on a CPU Triton's run in its interpreter.
    if str(config.getoption("--device")) == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Here and in child processes: models this small gain nothing from a second thread.

    Beside another worker of the suite they would wait for it. Kernels have two (their conftest).
    """
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    name = str(request.config.getoption("--device"))
    if name.startswith("cuda") and not torch.cuda.is_available():
        pytest.skip(f"--device {name}: no CUDA device here")
    return torch.device(name)


@dataclass(frozen=True)
class Shared:
    """The folder with real speech and a real teacher (see docs/results.md)."""

    root: Path

    @property
    def speech(self) -> Path:
        return self.root / "speech"

    @property
    def teacher(self) -> Path:
        return self.root / "teacher" / "whisper-base-ctc.pt"


@pytest.fixture(scope="session")
def shared() -> Shared:
    if not (SHARED / "speech" / "dev.jsonl").exists():
        pytest.skip("the real speech folder is not beside the checkout (set INTERKD_SHARED)")
    return Shared(SHARED)


LETTERS = "ABCDEFGH"


def tone_speech(text: str, generator: np.random.Generator) -> np.ndarray:
    """A made-up language: every letter is 120 ms of its own tone, a space is a pause."""
    rate, pieces = 16000, [np.zeros(1600)]
    for letter in text:
        time = np.arange(1920) / rate
        loudness = 0.0 if letter == " " else 0.3
        pitch = 300.0 * 1.25 ** (LETTERS.find(letter) + 1)
        pieces.append(loudness * np.sin(2 * np.pi * pitch * time) * np.hanning(1920))
    wave = np.concatenate([*pieces, np.zeros(1600)])
    return (wave + 0.005 * generator.standard_normal(len(wave))).astype(np.float32)


def write_tone_corpus(folder: Path, utterances: int, seed: int) -> Path:
    """Writes FLAC files and a NeMo-style manifest of random words; returns the manifest."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(utterances):
        words = [
            "".join(generator.choice(list(LETTERS), generator.integers(2, 5)))
            for _ in range(generator.integers(1, 4))
        ]
        wave = tone_speech(" ".join(words), generator)
        name = f"utt{seed}-{index:03d}"
        soundfile.write(folder / f"{name}.flac", wave, 16000)
        rows.append(
            {
                "utt_id": name,
                "audio_filepath": f"{name}.flac",
                "duration": len(wave) / 16000,
                "text": " ".join(words),
                "speaker": f"speaker{index % 3}",
            }
        )
    source = folder / "source.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return source


@dataclass(frozen=True)
class ToneCorpus:
    """A prepared corpus of the made-up language."""

    root: Path

    @property
    def train(self) -> Path:
        return self.root / "train" / "manifest.jsonl"

    @property
    def dev(self) -> Path:
        return self.root / "dev" / "manifest.jsonl"

    @property
    def tokens(self) -> Path:
        return self.root / "tokens.txt"


@pytest.fixture(scope="session")
def tone_corpus(tmp_path_factory: pytest.TempPathFactory) -> ToneCorpus:
    root = tmp_path_factory.mktemp("tones")
    tokens = root / "tokens.txt"
    tokens.write_text("\n".join(["<blk>", "▁", *LETTERS]) + "\n", encoding="utf-8")
    for split, utterances, seed in (("train", 36, 1), ("dev", 8, 2)):
        source = write_tone_corpus(root / "audio" / split, utterances, seed)
        prepare(PrepareConfig(sources=source, out=root / split, tokens=tokens))
    return ToneCorpus(root)
