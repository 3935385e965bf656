from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from interkd.cli.cache import cache_command
from interkd.kernels.errors import ConfigError, CorruptStoreError, FingerprintError, StoreError
from interkd.pipeline.cache.codec import encode_frames, get_quantiser, pack_codes
from interkd.pipeline.cache.fingerprint import Fingerprint
from interkd.pipeline.cache.reader import TeacherStore
from interkd.pipeline.cache.writer import EncodedUtterance, PartPlan, StoreWriter
from interkd.pipeline.cache_settings import CacheTeacherConfig
from interkd.pipeline.cache_teacher import cache_teacher
from interkd.pipeline.corpus.manifest import Utterance, write_manifest
from interkd.pipeline.frames import FrameFormula
from interkd.pipeline.teachers.protocol import TeacherInfo

GOLDEN = Path(__file__).parents[1] / "golden"
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
    probs = torch.full((len(best), len(TOKENS)), 1e-6)
    probs[:, 0] = 0.1
    probs[range(len(best)), best] = torch.tensor([0.999 if t == 0 else 0.9 for t in best])
    encoded = encode_frames(
        probs.log(), top_k=8, mass=0.99, quantiser=get_quantiser("angle6"), blank_index=0
    )
    *columns, _ = (column.numpy() for column in encoded.columns())
    blank, kept, codes = pack_codes(*columns)
    return EncodedUtterance(
        utt_id=utt_id,
        audio_hash=audio_hash(utt_id),
        blank=blank,
        tokens=kept,
        fractions=codes,
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
        mass=0.99,
        quantiser="angle6",
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
    assert lines["inodes"].strip() == "5 (files 4, folders 1)"
    size = sum(p.stat().st_size for p in store.iterdir())
    assert lines["size"].strip() == f"{size:,} bytes"


def test_info_of_version_1(tmp_path: Path) -> None:
    old = Path(shutil.copytree(GOLDEN / "teacher-cache-v1", tmp_path / "old"))
    values = json.loads(run("info", old, "--json").output)
    everything = list(old.rglob("*"))
    assert values["files"] == sum(p.is_file() for p in everything)
    assert values["folders"] == sum(p.is_dir() for p in everything) + 1
    assert values["inodes"] == len(everything) + 1
    assert values["total_bytes"] == sum(p.stat().st_size for p in everything if p.is_file())
    assert sum(values["column_bytes"].values()) == values["total_bytes"]
    index = sum(p.is_file() for p in (old / "index").rglob("*"))
    parts = values["files"] - index - 1
    expected = index + 1 + parts / values["parts"] * np.ceil(1000 / values["hours"] * 2)
    assert values["files_in_1000_hours"] == pytest.approx(expected, rel=1e-6)


def test_info_as_json(store: Path) -> None:
    result = run("info", store, "--json")
    values = json.loads(result.output)
    assert values["utterances"] == 3
    assert values["fingerprint"]["tokens"] == list(TOKENS)
    assert values["total_bytes"] == sum(p.stat().st_size for p in store.rglob("*") if p.is_file())
    assert sum(values["column_bytes"].values()) == values["total_bytes"]
    assert (values["files"], values["inodes"]) == (4, 5)
    assert values["files_in_1000_hours"] == 2 + np.ceil(2 * 1000 / values["hours"])


def test_verify(store: Path) -> None:
    result = run("verify", store)
    assert result.exit_code == 0
    assert result.output.startswith(f"{store}: 2 parts, 3 utterances, ")
    assert result.output.endswith("every digest matches\n")


def test_verify_prints_every_problem_then_fails(store: Path) -> None:
    for part in ("part-00000.zip", "part-00001.zip"):
        content = (store / part).read_bytes()
        (store / part).write_bytes(content[:-30])
    result = run("verify", store)
    assert isinstance(result.exception, CorruptStoreError)
    assert "has 2 problems" in str(result.exception)
    first, second = result.output.splitlines()
    assert first.startswith("part-00000: ")
    assert "'one' to 'two'" in first
    assert second.startswith("part-00001: ")


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


def rows(result: Result) -> dict[str, str]:
    """The printed table."""
    return {line[:21].strip(): line[22:] for line in result.output.splitlines() if line.strip()}


def test_stats(store: Path, tmp_path: Path) -> None:
    outputs = [tmp_path / name for name in ("stats.json", "stats.png", "stats.html")]
    json_file, plot, page = outputs
    result = run("stats", store, "--json", json_file, "--plot", plot, "--html", page)
    assert result.exit_code == 0, result.exception
    found = rows(result)
    frames = sum(len(spell(text)) for text in TEXTS.values())
    assert found["frames"] == str(frames)
    assert found["blank above 0.9"] == "50.00 % of frames"
    assert found["entries a frame"] == "mean 1.500"
    assert found["a"].startswith("4 (")
    assert json.loads(json_file.read_text())["frames"] == frames
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in page.read_text()
    nowhere = tmp_path / "no" / "such" / "folder.png"
    for option in ("--json", "--plot", "--html"):
        assert isinstance(run("stats", store, option, nowhere).exception, ConfigError)


def test_compact(store: Path, tmp_path: Path) -> None:
    drop = tmp_path / "drop.txt"
    drop.write_text("two\n\n")
    result = run("compact", store, tmp_path / "new", "--drop", drop, "--quantiser", "angle5")
    assert result.exit_code == 0, result.exception
    found = rows(result)
    assert found["utterances"] == "2 (1 left out)"
    assert found["parts"] == "1 from 2, 1 written now"
    assert found["codes"] == "made anew"
    assert found["no longer known"] == "teacher_wer"
    opened = TeacherStore.open(tmp_path / "new")
    assert opened.utterance_ids == ("one", "three")
    assert opened.fingerprint.quantiser == "angle5"
    again = run("compact", store, tmp_path / "new", "--drop", drop, "--quantiser", "angle5")
    assert rows(again)["parts"] == "1 from 2, 0 written now"


def test_compact_keeps(store: Path, tmp_path: Path) -> None:
    keep = tmp_path / "keep.txt"
    keep.write_text("three\none\n")
    result = run("compact", store, tmp_path / "new", "--keep", keep, "--mass", "0.5")
    assert result.exit_code == 0, result.exception
    assert TeacherStore.open(tmp_path / "new").utterance_ids == ("one", "three")
    copied = run("compact", store, tmp_path / "copy", "--part-minutes", "0.001")
    assert rows(copied)["codes"] == "copied bit for bit"
    assert "no longer known" not in rows(copied)


def test_compact_refuses(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "new"
    ids = tmp_path / "ids.txt"
    ids.write_text("one\n")
    both = run("compact", store, out, "--keep", ids, "--drop", ids)
    assert both.exit_code == 2
    assert "cannot be given together" in both.output
    missing = run("compact", store, out, "--drop", tmp_path / "nothing.txt")
    assert isinstance(missing.exception, ConfigError)
    ids.write_bytes(b"\xff\n")
    assert isinstance(run("compact", store, out, "--drop", ids).exception, ConfigError)
    more = run("compact", store, out, "--quantiser", "angle7")
    assert isinstance(more.exception, StoreError)
    assert isinstance(run("compact", tmp_path / "none", out).exception, StoreError)
    assert not out.exists()


def test_diff(store: Path, tmp_path: Path) -> None:
    assert run("compact", store, tmp_path / "same").exit_code == 0
    equal = run("diff", store, tmp_path / "same")
    assert equal.exit_code == 0
    assert rows(equal)["equal"] == "yes"
    ids = tmp_path / "ids.txt"
    ids.write_text("two\n")
    run("compact", store, tmp_path / "other", "--drop", ids, "--quantiser", "angle5")
    unequal = run("diff", store, tmp_path / "other")
    assert unequal.exit_code == 1
    found = rows(unequal)
    assert found["quantiser"] == "angle6 | angle5"
    assert found["only in A"] == "1 utterances: two"
    assert found["frames compared"].endswith(" of 2 utterances")
    assert found["same best token"].endswith("(100.000 %)")
    assert found["equal"] == "no"
    as_json = run("diff", store, tmp_path / "other", "--json")
    assert as_json.exit_code == 1
    assert json.loads(as_json.output)["only_left"] == ["two"]
    assert isinstance(run("diff", store, tmp_path / "none").exception, StoreError)
    old = Path(shutil.copytree(GOLDEN / "teacher-cache-v1", tmp_path / "old"))
    apart = run("diff", store, old)
    assert apart.exit_code == 1
    assert rows(apart)["frames"] == "not compared: the vocabularies differ"


def test_exit_codes_of_the_program(store: Path, tmp_path: Path) -> None:
    from interkd.cli.main import main

    assert run("compact", store, tmp_path / "less", "--mass", "0.5").exit_code == 0
    main(["cache", "diff", str(store), str(store)])
    for arguments, code in (
        (["diff", store, tmp_path / "less"], 1),
        (["diff", store, tmp_path / "none"], 2),
        (["compact", store, tmp_path / "less"], 2),
        (["verify", store, "--sample", "1"], 2),
    ):
        with pytest.raises(SystemExit) as caught:
            main(["cache", *map(str, arguments)])
        assert caught.value.code == code


def make_teacher(**changes: Any) -> SimpleNamespace:
    """Says of each 20 ms how loud it is, as a token."""
    info = TeacherInfo(
        name="loudness",
        weights_sha256=changes.get("weights_sha256", "ab" * 32),
        tokens=TOKENS,
        blank_index=0,
        sample_rate=16_000,
        frame_formula=FrameFormula(((320, 320, 0),)),
    )

    def log_probs(
        waveforms: torch.Tensor, sample_lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        loudness = waveforms.unfold(1, 320, 320).abs().mean(-1, keepdim=True)
        logits = loudness * torch.linspace(-40, 40, len(TOKENS)) + changes.get("bias", 0.0)
        logits = logits + torch.tensor([3.0, *[0.0] * (len(TOKENS) - 1)])
        return (logits * changes.get("scale", 1.0)).log_softmax(-1), sample_lengths // 320

    return SimpleNamespace(info=info, log_probs=log_probs)


def test_verify_with_a_sample(
    tone_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("loudness_teacher")
    monkeypatch.setitem(sys.modules, "loudness_teacher", module)
    monkeypatch.setattr(module, "make", lambda **_: make_teacher(), raising=False)
    spec = "python:loudness_teacher:make"
    store = tmp_path / "store"
    cache_teacher(
        CacheTeacherConfig(teacher=spec, manifest=tone_corpus.dev, out=store, device="cpu")
    )
    sample = ("--sample", "3", "--teacher", spec, "--manifest", tone_corpus.dev, "--device", "cpu")
    result = run("verify", store, *sample)
    assert result.exit_code == 0, result.exception
    found = rows(result)
    assert found["heard again"].startswith("3 utterances, ")
    assert found["equal codes"] == "100.00 % of frames"
    assert found["best token changed"] == "0 % of frames; quantisation alone 0"
    strict = run("verify", store, *sample, "--tolerance", "1e-9")
    assert isinstance(strict.exception, StoreError)
    assert "is not what the teacher says now" in str(strict.exception)
    monkeypatch.setattr(module, "make", lambda **_: make_teacher(scale=0.5))
    other = run("verify", store, *sample, "--seed", "4")
    assert isinstance(other.exception, StoreError)
    assert "heard again" in other.output
    monkeypatch.setattr(module, "make", lambda **_: make_teacher(weights_sha256="cd" * 32))
    assert isinstance(run("verify", store, *sample).exception, FingerprintError)


def test_verify_wants_all_of_a_sample_or_nothing(store: Path) -> None:
    for arguments in (("--sample", "3"), ("--teacher", "python:a:b"), ("--manifest", "m.jsonl")):
        result = run("verify", store, *arguments)
        assert result.exit_code == 2
        assert "--sample" in result.output
    assert run("verify", store, "--sample", "0").exit_code == 2


@pytest.mark.parametrize("command", ["info", "verify", "stats", "compact", "diff", "decode"])
def test_help(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "STORE" in result.output or command in ("compact", "diff")
