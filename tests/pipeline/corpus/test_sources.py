"""NeMo-style rows and Lhotse cuts, told apart by content; bad rows are collected."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from interkd.kernels.errors import CorpusError
from interkd.pipeline.corpus.sources import SourceRow, read_sources

NEMO = {"audio_filepath": "a/b.wav", "duration": 2, "text": "HI"}


def a_cut(**changes: Any) -> dict[str, Any]:
    """A cut as Lhotse 1.33 writes it."""
    supervision = {
        "id": "s1",
        "recording_id": "r1",
        "start": 0,
        "duration": 2.5,
        "channel": 0,
        "text": "HELLO",
        "speaker": "x",
    }
    recording = {
        "id": "r1",
        "sources": [{"type": "file", "channels": [0], "source": "a/r1.opus"}],
        "sampling_rate": 16000,
        "num_samples": 93680,
        "duration": 5.855,
        "channel_ids": [0],
    }
    cut = {
        "id": "c1",
        "start": 1.0,
        "duration": 2.5,
        "channel": 0,
        "supervisions": [supervision],
        "recording": recording,
        "type": "MonoCut",
    }
    return cut | changes


def read(tmp_path: Path, *rows: Any) -> tuple[list[SourceRow], list[tuple[str, str]]]:
    path = tmp_path / "source.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    good, bad = read_sources(path)
    return good, [(row.where.removeprefix(f"{path}:"), row.reason) for row in bad]


def test_nemo_rows(tmp_path: Path) -> None:
    (plain, full), bad = read(
        tmp_path, NEMO, "", NEMO | {"utt_id": 7, "speaker": "s", "offset": 1.5, "lang": "en"}
    )
    assert bad == []
    assert plain == SourceRow(
        utt_id="a/b",
        where=f"{tmp_path}/source.jsonl:1",
        audio_path=tmp_path / "a" / "b.wav",
        offset_seconds=0.0,
        duration_seconds=2.0,
        is_segment=False,
        text="HI",
        speaker=None,
        channel=None,
    )
    assert (full.utt_id, full.speaker, full.where[-2:]) == ("7", "s", ":3")
    assert (full.offset_seconds, full.is_segment) == (1.5, True)


def test_segments_without_ids_are_told_apart(tmp_path: Path) -> None:
    rows, bad = read(tmp_path, *(NEMO | {"offset": offset} for offset in (0, 2, 4.25)))
    assert bad == []
    assert [row.utt_id for row in rows] == ["a/b", "a/b@2", "a/b@4.25"]


def test_lhotse_cuts(tmp_path: Path) -> None:
    path = tmp_path / "cuts.jsonl.gz"
    recording = a_cut()["recording"]
    stereo = recording | {"sources": [{"type": "file", "channels": [0, 1], "source": "/s.wav"}]}
    cuts = [
        a_cut(),
        a_cut(id="whole", start=0.0, duration=5.855),
        a_cut(id="stereo", channel=1, recording=stereo, supervisions=[]),
    ]
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, cuts)).encode()))
    (part, whole, right), bad = read_sources(path)
    assert bad == []
    assert (part.utt_id, part.text, part.speaker) == ("c1", "HELLO", "x")
    assert (part.offset_seconds, part.duration_seconds, part.is_segment) == (1.0, 2.5, True)
    assert (part.channel, whole.is_segment) == (None, False)
    assert (right.channel, right.text, right.audio_path) == (1, "", Path("/s.wav"))


def test_audio_of_cuts_beside_the_manifest_or_the_working_folder(tmp_path: Path) -> None:
    (elsewhere,), _ = read(tmp_path, a_cut())
    assert elsewhere.audio_path == Path("a/r1.opus")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "r1.opus").touch()
    (beside,), _ = read(tmp_path, a_cut())
    assert beside.audio_path == tmp_path / "a" / "r1.opus"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "not JSON: .* column 2"),
        ("[1]", "expected a JSON object, got list"),
        ({"duration": 2, "text": "HI"}, "missing 'audio_filepath'"),
        ({"audio_filepath": "a.wav", "duration": 2}, "missing 'text'"),
        (NEMO | {"text": 3}, "'text' is not a str: 3"),
        (NEMO | {"duration": "2"}, "'duration' is not a number of seconds: '2'"),
        (NEMO | {"duration": None}, "'duration' is not a number of seconds: None"),
        (NEMO | {"offset": -1}, "'offset' is not a number of seconds: -1"),
        (NEMO | {"duration": float("nan")}, "'duration' is not a number of seconds: nan"),
        (NEMO, "utt_id is also at .*source.jsonl:1"),
    ],
)
def test_bad_nemo_rows(row: Any, reason: str, tmp_path: Path) -> None:
    rows, bad = read(tmp_path, NEMO, row)
    assert len(rows) == 1
    assert len(bad) == 1
    assert bad[0][0] == "2"
    assert re.search(reason, bad[0][1])


RECORDING = a_cut()["recording"]


@pytest.mark.parametrize(
    ("cut", "reason"),
    [
        (a_cut(type="MixedCut"), "expected a MonoCut, got a MixedCut"),
        (a_cut(supervisions=[{}, {}]), "2 supervisions: apply trim_to_supervisions first"),
        (a_cut(recording=RECORDING | {"transforms": [{"name": "Speed"}]}), "has transforms"),
        (a_cut(recording=RECORDING | {"sources": []}), "a recording in one file"),
        (a_cut(recording=RECORDING | {"sources": [{"type": "url"}]}), "a recording in one file"),
        (a_cut(channel=3), "channel 3 is not in the recording"),
        (a_cut(recording=None), "'recording' is not a dict"),
    ],
)
def test_bad_cuts(cut: dict[str, Any], reason: str, tmp_path: Path) -> None:
    rows, bad = read(tmp_path, cut)
    assert rows == []
    assert len(bad) == 1
    assert reason in bad[0][1]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="cannot read"):
        read_sources(tmp_path / "nowhere.jsonl")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"{}\n" * 100)[:20])
    with pytest.raises(CorpusError, match="cannot read"):
        read_sources(tmp_path / "cut.gz")
    (tmp_path / "empty").touch()
    with pytest.raises(CorpusError, match="holds no utterances"):
        read_sources(tmp_path / "empty")
