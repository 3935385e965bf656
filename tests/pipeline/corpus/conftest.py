"""A small corpus on disk: tones with transcripts, one of which a test may spoil."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile


class SmallCorpus:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = folder / "source.jsonl"
        self.rows: list[dict[str, Any]] = []
        for index, text in enumerate(("HELLO THERE", "IT'S A SMALL WORLD", "GOOD")):
            self.add(f"utt{index}", text, seconds=1.0 + index / 4)

    def add(
        self, utt_id: str, text: str, *, seconds: float = 1.0, rate: int = 16000, **row: Any
    ) -> Path:
        path = self.folder / "audio" / f"{utt_id}.flac"
        path.parent.mkdir(exist_ok=True)
        time = np.arange(int(seconds * rate)) / rate
        pitch = 200 + 20 * len(self.rows)
        soundfile.write(path, 0.3 * np.sin(2 * np.pi * pitch * time), rate)
        self.rows.append(
            {
                "utt_id": utt_id,
                "audio_filepath": f"audio/{utt_id}.flac",
                "duration": seconds,
                "text": text,
                "speaker": f"speaker{len(self.rows) % 2}",
            }
            | row
        )
        return path

    def write(self, *more_lines: str) -> Path:
        lines = [json.dumps(row) for row in self.rows] + list(more_lines)
        self.manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return self.manifest


@pytest.fixture
def corpus(tmp_path: Path) -> SmallCorpus:
    return SmallCorpus(tmp_path)
