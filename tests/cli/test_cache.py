from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from interkd.cli.cache import cache_command
from interkd.kernels.errors import ConfigError, CorruptStoreError, StoreError
from interkd.pipeline.cache.codec import quantise
from interkd.pipeline.cache.fingerprint import Fingerprint
from interkd.pipeline.cache.writer import EncodedUtterance, PartPlan, StoreWriter
from interkd.pipeline.corpus.manifest import Utterance, write_manifest
from interkd.pipeline.frames import FrameFormula

TOKENS = ("<blk>", "▁", "a", "b", "c", "ing")
TEXTS = {"one": "ab ca", "two": "cab baing", "three": "b"}


def audio_hash(utt_id: str) -> str:
    return hashlib.md5(utt_id.encode()).hexdigest()


def spell(text: str) -> list[int]:
    """Tokens of a text, one a frame, a blank after each."""
    pieces = [TOKENS.index("▁" if c == " " else c) for c in text.replace("ing", "")]
    pieces += [TOKENS.index("ing")] * text.endswith("ing")
    return [token for piece in pieces for token in (piece, 0)]


def encode(utt_id: str, text: str) -> EncodedUtterance:
    best = spell(text)
    counts = [1 if token == 0 else 2 for token in best]
    tokens = [t for token in best for t in ([0] if token == 0 else [0, token])]
    probs = [p for token in best for p in ([0.999] if token == 0 else [0.1, 0.9])]
    return EncodedUtterance(
        utt_id=utt_id,
        audio_hash=audio_hash(utt_id),
        entries_per_frame=np.array(counts, np.uint8),
        tokens=np.array(tokens, np.int32),
        log_prob_codes=quantise(np.log(probs).astype(np.float32), "log8"),
        samples=320 * len(best),
    )


@pytest.fixture
def store(tmp_path: Path) -> Path:
    fingerprint = Fingerprint(
        teacher="wav2vec2",
        weights_sha256="ab" * 32,
        tokens=TOKENS,
        blank_index=0,
        sample_rate=16_000,
        frame_formula=FrameFormula(((1, 320, 0),)),
        top_k=8,
        mass=0.999,
        quantiser="log8",
        precision="float32",
    )
    hashes = tuple(audio_hash(utt_id) for utt_id in TEXTS)
    plan = PartPlan(utt_ids=tuple(TEXTS), audio_hashes=hashes, parts=(range(2), range(2, 3)))
    writer = StoreWriter.open(tmp_path / "store", fingerprint, plan)
    encoded = [encode(utt_id, text) for utt_id, text in TEXTS.items()]
    writer.write_part(0, encoded[:2])
    writer.write_part(1, encoded[2:])
    writer.finish({"teacher_wer": 20.0})
    return tmp_path / "store"


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    references = {**TEXTS, "two": "cab ba"}
    write_manifest(
        tmp_path / "dev.jsonl",
        [
            Utterance(
                utt_id=utt_id,
                audio_path=tmp_path / f"{utt_id}.wav",
                samples=320,
                sample_rate=16_000,
                text=text,
                audio_hash=audio_hash(utt_id),
                source_rate=16_000,
            )
            for utt_id, text in references.items()
        ],
    )
    return tmp_path / "dev.jsonl"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cache_command, [str(a) for a in arguments])


def test_info(store: Path) -> None:
    result = run("info", store)
    assert result.exit_code == 0
    lines = dict(
        line.rstrip().split("  ", 1) for line in result.output.splitlines() if line[0] != " "
    )
    assert lines["audio"].strip() == "0.000 h, 3 utterances, 2 parts"
    assert lines["frame shift"].strip() == "20 ms at 16000 Hz"
    assert lines["summary teacher_wer"].strip() == "20.0"
    frames = sum(2 * len(spell(text)) // 2 for text in TEXTS.values())
    assert lines["frames"].strip() == str(frames)
    assert lines["blank share"].strip() == "50.00 %"


def test_info_as_json(store: Path) -> None:
    result = run("info", store, "--json")
    values = json.loads(result.output)
    assert values["utterances"] == 3
    assert values["fingerprint"]["tokens"] == list(TOKENS)
    assert values["total_bytes"] == sum(p.stat().st_size for p in store.rglob("*") if p.is_file())


def test_verify(store: Path) -> None:
    result = run("verify", store)
    assert result.exit_code == 0
    assert result.output.startswith(f"{store}: 2 parts, 3 utterances, ")
    assert result.output.endswith("every digest matches\n")


def test_verify_prints_every_problem_then_fails(store: Path) -> None:
    for part, column in (("part-00000", "token"), ("part-00001", "digest")):
        chunk = store / part / column / "c" / "0"
        chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
    result = run("verify", store)
    assert isinstance(result.exception, CorruptStoreError)
    assert "has 2 problems" in str(result.exception)
    first, second = result.output.splitlines()
    assert first.startswith("part-00000, column 'token': cannot be read")
    assert second.startswith("part-00001, column 'digest': cannot be read")


def test_decode(store: Path, manifest: Path, tmp_path: Path) -> None:
    result = run("decode", store, "--manifest", manifest, "--out", tmp_path / "hypotheses.trn")
    assert result.exit_code == 0, result.exception
    assert "WER from the store     20.00 % (1 of 5 words, 3 utterances)" in result.output
    assert "teacher's own WER      20.00 %" in result.output
    lines = (tmp_path / "hypotheses.trn").read_text().splitlines()
    assert lines == [f"{text} ({utt_id})" for utt_id, text in TEXTS.items()]


def test_errors_are_ours(store: Path, manifest: Path, tmp_path: Path) -> None:
    assert isinstance(run("info", tmp_path / "nothing").exception, StoreError)
    assert isinstance(run("verify", tmp_path / "nothing").exception, StoreError)
    nowhere = tmp_path / "no" / "such" / "folder.trn"
    result = run("decode", store, "--manifest", manifest, "--out", nowhere)
    assert isinstance(result.exception, ConfigError)
    manifest.write_text(manifest.read_text().replace('"three"', '"four"'))
    result = run("decode", store, "--manifest", manifest)
    assert isinstance(result.exception, StoreError)
    assert "its audio under the id 'three'" in str(result.exception)
