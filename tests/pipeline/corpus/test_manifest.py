"""Manifests: exact round trips, portable paths, and a line number for every mistake."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import xxhash

from interkd.kernels.errors import CorpusError
from interkd.pipeline.corpus.manifest import Manifest, Utterance, read_manifest, write_manifest


def an_utterance(folder: Path, utt_id: str = "a") -> Utterance:
    return Utterance(
        utt_id=utt_id,
        audio_path=folder / "audio" / f"{utt_id}.flac",
        samples=24000,
        sample_rate=16000,
        text="ÇA VA",
        audio_hash="0" * 32,
        source_rate=16000,
    )


def test_round_trip(tmp_path: Path) -> None:
    first = an_utterance(tmp_path)
    second = replace(
        an_utterance(tmp_path, "b"),
        speaker="s",
        offset_seconds=0.1,
        source_samples=66150,
        source_rate=44100,
        channel=1,
    )
    third = replace(second, utt_id="b_sp1.1", speed=1.1)
    path = tmp_path / "manifest.jsonl"
    write_manifest(path, [first, second, third])
    manifest = read_manifest(path)
    assert manifest.utterances == (first, second, third)
    assert (len(manifest), manifest.sample_rate, manifest.path) == (3, 16000, path)
    assert manifest.total_seconds == 4.5
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [row.get("speed") for row in rows] == [None, None, 1.1]
    assert first.duration == 1.5
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.jsonl"]


def test_the_digest_is_of_ids_and_hashes_in_order(tmp_path: Path) -> None:
    a, b = an_utterance(tmp_path), an_utterance(tmp_path, "b")
    digests = set()
    for index, utterances in enumerate(
        ([a, b], [b, a], [a, replace(b, audio_hash="1" * 32)], [a, replace(b, text="OTHER")])
    ):
        write_manifest(tmp_path / f"{index}", utterances)
        digests.add(read_manifest(tmp_path / f"{index}").digest)
    assert len(digests) == 3  # a changed transcript is the same audio


def test_a_speed_is_part_of_what_is_heard(tmp_path: Path) -> None:
    original = an_utterance(tmp_path)
    assert (original.heard_rate, original.audio_identity) == (16000, original.audio_hash)
    faster, slower = replace(original, speed=1.1), replace(original, speed=0.9)
    assert (faster.heard_rate, slower.heard_rate) == (17600, 14400)
    identity = xxhash.xxh3_128_hexdigest(f"{'0' * 32} at 17600 Hz".encode())
    assert faster.audio_identity == identity != slower.audio_identity
    manifests = [
        Manifest(utterances=(u,), sample_rate=16000, path=tmp_path)
        for u in (original, faster, slower, replace(original, audio_hash=identity))
    ]
    digests = [manifest.digest for manifest in manifests]
    assert len(set(digests)) == 3
    row = json.dumps(["a", "0" * 32]).encode()  # as it was before there were speeds
    assert digests[0] == hashlib.sha256(row).hexdigest()


def test_a_tree_that_moves_as_a_whole_stays_valid(tmp_path: Path) -> None:
    before = tmp_path / "before"
    (before / "prepared").mkdir(parents=True)
    write_manifest(before / "prepared" / "manifest.jsonl", [an_utterance(before)])
    before.rename(tmp_path / "after")
    manifest = read_manifest(tmp_path / "after" / "prepared" / "manifest.jsonl")
    assert manifest.utterances[0].audio_path == tmp_path / "after" / "audio" / "a.flac"


def test_paths_elsewhere_are_absolute(tmp_path: Path) -> None:
    write_manifest(tmp_path / "m", [an_utterance(Path("/elsewhere"))])
    row = json.loads((tmp_path / "m").read_text())
    assert row["audio_path"] == "/elsewhere/audio/a.flac"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"txet": "A"}, r"unknown field 'txet'; did you mean 'text'\?"),
        ({"text": None}, "field 'text'; expected str, got None"),
        ({"samples": 1.5}, r"field 'samples'; expected int, got 1\.5"),
        ({"samples": True}, "field 'samples'; expected int, got True"),
        ({"samples": 0}, "field 'samples'; expected above 0, got 0"),
        ({"offset_seconds": float("nan")}, "field 'offset_seconds'; expected at least 0"),
        ({"sample_rate": 8000}, "sample_rate; expected 16000, got 8000"),
        ({"utt_id": "a"}, "utt_id 'a' is also on line 1"),
        ({"speed": "1.1"}, "field 'speed'; expected int | float, got '1.1'"),
        ({"speed": None}, "field 'speed'; expected int | float, got None"),
        ({"speed": float("nan")}, r"field 'speed'; expected 0\.5 to 2, got nan"),
        ({"speed": float("inf")}, r"field 'speed'; expected 0\.5 to 2, got inf"),
        ({"speed": 0.49}, r"field 'speed'; expected 0\.5 to 2, got 0\.49"),
        ({"speed": 2.1}, r"field 'speed'; expected 0\.5 to 2, got 2\.1"),
        ({"speed": 1.00001}, r"field 'speed'; expected one that makes whole Hz of 16000, got 1\."),
    ],
)
def test_bad_rows(change: dict[str, object], message: str, tmp_path: Path) -> None:
    path = tmp_path / "m"
    write_manifest(path, [an_utterance(tmp_path), an_utterance(tmp_path, "b")])
    first, second = path.read_text(encoding="utf-8").splitlines()
    path.write_text(f"{first}\n{json.dumps(json.loads(second) | change)}\n", encoding="utf-8")
    with pytest.raises(CorpusError, match=f"m:2: {message}"):
        read_manifest(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "m:1: not JSON"),
        ("\n", "m:1: not JSON"),
        ("[]", "m:1: row; expected a JSON object, got list"),
        ("{}", "m:1: missing field"),
        ("", "holds no utterances"),
    ],
)
def test_files_that_are_no_manifests(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "m").write_text(content)
    with pytest.raises(CorpusError, match=message):
        read_manifest(tmp_path / "m")


def test_a_missing_manifest(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="cannot read the manifest"):
        read_manifest(tmp_path / "m")
