"""Stage one: what the store holds, restarts after SIGKILL, and teachers that break their word."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from interkd.kernels.errors import ConfigError, FingerprintError, StoreError, TeacherError
from interkd.pipeline.cache.reader import TeacherStore
from interkd.pipeline.cache.transcripts import transcribe_store
from interkd.pipeline.cache.verify import verify
from interkd.pipeline.cache_settings import CacheTeacherConfig
from interkd.pipeline.cache_teacher import cache_teacher
from interkd.pipeline.corpus.audio import AudioCache
from interkd.pipeline.corpus.manifest import read_manifest, write_manifest
from interkd.pipeline.scoring.error_rates import count_errors
from interkd.pipeline.teachers.load import load_teacher
from interkd.pipeline.teachers.protocol import Teacher, TeacherInfo
from tests.reporters import Heard
from tests.students import conformer, save_untaught

PART_MINUTES = 0.05  # about 18 parts of the tone corpus
HALF_STEP = np.pi / 4 / 31.4  # of angle5, in the root of a fraction


@pytest.fixture(scope="module")
def checkpoint(tone_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student with random weights whose posteriors are as peaked as a trained one's."""
    return save_untaught(
        tmp_path_factory.mktemp("teacher"), conformer(32), tone_corpus.tokens, peaked=8
    )


@pytest.fixture(scope="module")
def config(
    tone_corpus: Any, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> CacheTeacherConfig:
    """Settings of the store that `store` holds."""
    return CacheTeacherConfig(
        teacher=f"interkd:{checkpoint}",
        manifest=tone_corpus.train,
        out=tmp_path_factory.mktemp("stores") / "calm",
        device="cpu",
        part_minutes=PART_MINUTES,
        batch_seconds=6,
        decode_threads=2,
    )


@pytest.fixture(scope="module")
def store(config: CacheTeacherConfig) -> Path:
    """An uninterrupted store."""
    summary = cache_teacher(config)
    assert summary.parts == summary.parts_written > 10
    return config.out


@pytest.fixture(scope="module")
def teacher(checkpoint: Path) -> Teacher:
    cpu = torch.device("cpu")
    return load_teacher(f"interkd:{checkpoint}", device=cpu, precision=torch.float32)


@pytest.fixture(scope="module")
def own_log_probs(teacher: Teacher, config: CacheTeacherConfig) -> dict[str, Tensor]:
    """What the teacher says of each utterance by itself, `(T, V)`."""
    audio, found = AudioCache(0), {}
    with torch.inference_mode():
        for utterance in read_manifest(config.manifest).utterances:
            log_probs, lengths = teacher.log_probs(*audio.read_batch([utterance]))
            found[utterance.utt_id] = log_probs[0, : int(lengths[0])]
    return found


def stored_frames(store: TeacherStore, utt_id: str) -> list[tuple[list[int], list[float]]]:
    """Tokens and log-probabilities of each frame."""
    columns = store.targets([utt_id])
    edges = columns.entry_offsets.tolist()
    return [
        (columns.tokens[a:b].tolist(), columns.log_probs[a:b].tolist())
        for a, b in itertools.pairwise(edges)
    ]


def stored_probs(store: TeacherStore, utt_id: str) -> np.ndarray:
    """Stored probabilities, `(T, V)`, 0 where nothing is kept."""
    columns = store.targets([utt_id])
    probs = np.zeros((int(columns.frame_lengths[0]), columns.vocab_size))
    frames = np.repeat(np.arange(len(probs)), columns.entry_offsets.diff().numpy())
    probs[frames, columns.tokens.numpy()] = columns.log_probs.double().exp().numpy()
    return probs


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and modification time of every file."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_store_holds_the_teachers_posteriors(
    config: CacheTeacherConfig, store: Path, teacher: Teacher, own_log_probs: dict[str, Tensor]
) -> None:
    opened, manifest = TeacherStore.open(store), read_manifest(config.manifest)
    assert opened.utterance_ids == tuple(u.utt_id for u in manifest.utterances)
    blank = teacher.info.blank_index
    frames, kept_beside_the_blank = 0, 0
    for utt_id, log_probs in own_log_probs.items():
        probs = log_probs.double().exp()
        rows = stored_frames(opened, utt_id)
        assert len(rows) == len(log_probs)
        for row, (tokens, values) in zip(probs, rows, strict=True):
            assert tokens[0] == int(row.argmax())
            assert blank in tokens
            assert len(set(tokens)) == len(tokens) <= config.top_k
            left, stored_left = 1.0, 1.0
            stored = dict(zip(tokens, np.exp(values), strict=True))
            beside = sorted((t for t in tokens if t != blank), key=lambda t: -float(row[t]))
            for token in (blank, *beside):  # each a share of what those before it leave
                share, stored_share = float(row[token]) / left, stored[token] / stored_left
                # a near tie moves the blank's code by one step more
                bound = 3 * HALF_STEP if token == blank else HALF_STEP
                assert abs(share**0.5 - stored_share**0.5) < bound + 1e-4
                left -= float(row[token])
                stored_left -= stored[token]
            order = [blank, *[t for t in row.argsort(descending=True).tolist() if t != blank]]
            sums = row[order].cumsum(0)
            if float((sums - config.mass).abs().min()) > 1e-5:  # else rounding decides
                fewest = int((sums < config.mass).sum()) + 1
                assert set(tokens) == {*order[: min(fewest, config.top_k)], int(row.argmax())}
            frames += 1
            kept_beside_the_blank += len(tokens) - 1
    assert 1 < kept_beside_the_blank / frames < 8  # neither one-hot nor everything


def test_fifteen_bits_are_nearer(
    config: CacheTeacherConfig, own_log_probs: dict[str, Tensor], tmp_path: Path
) -> None:
    finer = replace(config, out=tmp_path / "store", quantiser="angle15", mass=1.0, part_minutes=60)
    cache_teacher(finer)
    opened = TeacherStore.open(finer.out)
    for utt_id, log_probs in own_log_probs.items():
        np.testing.assert_allclose(
            stored_probs(opened, utt_id), log_probs.double().exp().numpy(), rtol=0, atol=5e-4
        )


def test_batches_do_not_change_what_is_stored(
    config: CacheTeacherConfig, store: Path, tmp_path: Path
) -> None:
    """Padding changes float32 sums by their rounding; a code may then be the neighbouring one."""
    single = replace(config, out=tmp_path / "single", batch_seconds=0.1)
    cache_teacher(single)
    a, b = TeacherStore.open(store), TeacherStore.open(single.out)
    differing = frames = 0
    for utt_id in a.utterance_ids:
        one, other = stored_probs(a, utt_id), stored_probs(b, utt_id)
        gap = np.abs(one - other)
        assert gap.max() <= 4 * HALF_STEP
        differing += int((gap.max(1) > 0).sum())
        frames += len(gap)
    assert differing / frames < 0.01
    assert a.summary == b.summary


def test_a_second_run_writes_nothing(config: CacheTeacherConfig, store: Path) -> None:
    before = files(store)
    summary = cache_teacher(config)
    assert summary.parts_written == 0
    assert files(store) == before
    opened = TeacherStore.open(store)
    assert summary.parts == opened.part_count
    assert summary.teacher_wer == opened.summary["teacher_wer"]


def test_other_tokens_beside_the_manifest_are_warned_of(
    config: CacheTeacherConfig, store: Path, tmp_path: Path
) -> None:
    heard = Heard()
    cache_teacher(config, reporter=heard)
    assert not [line for line in heard.lines if "warning" in line]
    manifest = tmp_path / "manifest.jsonl"
    write_manifest(manifest, read_manifest(config.manifest).utterances)
    tokens = (config.manifest.parent / "tokens.txt").read_text(encoding="utf-8")
    (tmp_path / "tokens.txt").write_text(tokens.lower(), encoding="utf-8")
    cache_teacher(replace(config, manifest=manifest), reporter=heard)
    (tmp_path / "tokens.txt").write_text("<eps> 0\na 1\n", encoding="utf-8")  # another tool's
    cache_teacher(replace(config, manifest=manifest), reporter=heard)
    warnings = [line for line in heard.lines if "warning" in line]
    assert len(warnings) == 2
    for warning in warnings:
        assert warning.startswith("warning: the teacher's tokens are not those of")


def test_a_lost_part_is_made_again(config: CacheTeacherConfig, store: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    (copy / "part-00004.zip").unlink()
    summary = cache_teacher(replace(config, out=copy))
    assert summary.parts_written == 1
    contents = {name: data for name, (data, _) in files(copy).items()}
    assert contents == {name: data for name, (data, _) in files(store).items()}


SLOW_TEACHER = """
import time

import torch

from interkd.pipeline.teachers.load import load_teacher

torch.set_num_threads({threads})


class Slow:
    def __init__(self, teacher):
        self.teacher, self.info = teacher, teacher.info

    def log_probs(self, waveforms, sample_lengths):
        time.sleep(0.05)
        return self.teacher.log_probs(waveforms, sample_lengths)


def make(*, device, precision):
    return Slow(load_teacher("interkd:{checkpoint}", device=device, precision=precision))
"""


def test_killed_and_restarted_equals_undisturbed(
    config: CacheTeacherConfig, store: Path, checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "slow_teacher.py").write_text(
        SLOW_TEACHER.format(threads=torch.get_num_threads(), checkpoint=checkpoint)
    )
    out = tmp_path / "store"
    command = [sys.executable, "-m", "interkd", "cache-teacher", "--device", "cpu"]
    command += ["--teacher", "python:slow_teacher:make", "--manifest", str(config.manifest)]
    command += ["--out", str(out), "--part-minutes", str(config.part_minutes)]
    command += ["--batch-seconds", str(config.batch_seconds), "--decode-threads", "2"]
    chance = random.Random(5)
    for parts in (2, 9):
        with (tmp_path / "output.txt").open("w") as output:
            process = subprocess.Popen(command, cwd=tmp_path, stdout=output, stderr=output)
        deadline = time.monotonic() + 90
        while not (out / f"part-{parts:05d}.zip").exists() and time.monotonic() < deadline:
            assert process.poll() is None, (tmp_path / "output.txt").read_text()
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        standing = sorted(path.name for path in out.glob("part-*"))
        assert parts < len(standing) < len(list(store.glob("part-*")))
        with pytest.raises(StoreError, match="not whole"):
            TeacherStore.open(out)
    summary = cache_teacher(replace(config, out=out))
    assert summary.parts_written == summary.parts - len(standing)
    assert verify(out).problems == ()
    contents = {name: data for name, (data, _) in files(out).items()}
    calm = {name: data for name, (data, _) in files(store).items()}
    assert contents.keys() == calm.keys()  # and so no leftovers
    differing = [name for name in calm if contents[name] != calm[name]]
    assert differing in ([], ["zarr.json"])  # the root names the teacher as the first start did
    a, b = TeacherStore.open(store), TeacherStore.open(out)
    for index in range(a.part_count):
        one, other = a.read_part(index), b.read_part(index)
        assert one.utt_ids == other.utt_ids
        for column in ("blank", "token", "fraction"):
            np.testing.assert_array_equal(one.payload[column], other.payload[column])
    assert a.summary == b.summary


def test_teachers_error_rate_is_that_of_the_store(config: CacheTeacherConfig, store: Path) -> None:
    transcripts = transcribe_store(store, config.manifest)
    assert transcripts.teacher_wer == pytest.approx(transcripts.word_errors.rate, abs=1e-9)
    assert TeacherStore.open(store).summary["teacher_cer"] > 0
    whole = cache_teacher(config)
    assert whole.teacher_wer == transcripts.teacher_wer


class Fake:
    """A teacher of the caller's making: every frame says `outputs`."""

    def __init__(self, info: TeacherInfo) -> None:
        self.info = info
        self.batches: list[list[int]] = []
        self.change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = lambda x, n: (x, n)

    def log_probs(self, waveforms: Tensor, sample_lengths: Tensor) -> tuple[Tensor, Tensor]:
        self.batches.append(sample_lengths.tolist())
        assert waveforms.shape == (len(sample_lengths), int(sample_lengths.max()))
        counts = [self.info.frame_formula.count(n) for n in sample_lengths.tolist()]
        frame = torch.arange(len(self.info.tokens)) * -1.0
        log_probs = frame.log_softmax(-1).repeat(len(counts), max(counts), 1)
        return self.change(log_probs, torch.tensor(counts))


@pytest.fixture
def fake(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """What `python:fake:make` gives."""
    made = Fake(replace(teacher.info, name="fake", weights_sha256="ab" * 32))
    module = ModuleType("fake")
    module.make = lambda *, device, precision: made  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake", module)
    return made


@pytest.fixture
def fake_config(config: CacheTeacherConfig, tmp_path: Path) -> CacheTeacherConfig:
    return replace(config, teacher="python:fake:make", out=tmp_path / "store", part_minutes=60)


def test_padding_is_kept_from_teachers_that_mind_it(
    fake: Fake, fake_config: CacheTeacherConfig
) -> None:
    fake.info = replace(fake.info, padding_safe=False)
    cache_teacher(fake_config)
    assert all(len(set(lengths)) == 1 for lengths in fake.batches)
    sizes = [len(lengths) for lengths in fake.batches]
    lengths = [u.samples for u in read_manifest(fake_config.manifest).utterances]
    assert sum(sizes) == len(lengths)
    assert max(sizes) > 1
    seconds = [sum(batch) / 16000 for batch in fake.batches if len(batch) > 1]
    assert max(seconds) <= (fake_config.batch_seconds or 0)
    fake.info, fake.batches = replace(fake.info, padding_safe=True), []
    cache_teacher(replace(fake_config, out=fake_config.out.with_name("padded")))
    assert any(len(set(lengths)) > 1 for lengths in fake.batches)


@pytest.mark.parametrize(
    "change", [{"blank_index": 9}, {"tokens": ("_", "a", "b", "c", "d", "e", "f", "g", "h", "i")}]
)
def test_a_blank_that_no_student_can_have(
    fake: Fake, fake_config: CacheTeacherConfig, change: dict[str, Any]
) -> None:
    fake.info = replace(fake.info, **change)
    with pytest.raises(TeacherError, match=r"blank; expected at index 0, .* got blank_index \d"):
        cache_teacher(fake_config)
    assert fake.batches == []
    assert not fake_config.out.exists()


def shortest(manifest: Path) -> str:
    return min(read_manifest(manifest).utterances, key=lambda u: u.samples).utt_id


def as_logits(x: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    return x + 3, n


def with_nan(x: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    x[0, int(n[0]) - 1, 2] = torch.nan
    return x, n


def of_more_tokens(x: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat([x, x[..., :1]], -1), n


def with_a_frame_more(x: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat([x, x[:, :1]], 1), n + 1


def with_one_length(x: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    return x, n.max()


def cut_short(x: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    return x[:, : int(n[0]) - 1], n


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (as_logits, r"log-probabilities that sum to one in every frame, got log-sum 3"),
        (with_nan, r"sum to one.*got log-sum nan"),
        (of_more_tokens, r"V 10 tokens, got \(\d+, \d+, 11\)"),
        (with_a_frame_more, r"expected (\d+) by its formula"),
        (with_one_length, r"frame lengths of the teacher"),
        (cut_short, r"expected (\d+) by its formula .*, got \1 of "),
    ],
)
def test_a_teacher_that_breaks_its_word_is_refused(
    fake: Fake,
    fake_config: CacheTeacherConfig,
    change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    message: str,
) -> None:
    fake.change = change
    with pytest.raises(TeacherError, match=message) as caught:
        cache_teacher(fake_config)
    assert f"utterance {shortest(fake_config.manifest)}" in str(caught.value)
    assert not fake_config.out.exists()  # nothing was worth keeping
    fake.change = lambda x, n: (x, n)
    assert cache_teacher(fake_config).parts_written == 1


def test_parts_that_stand_outlive_a_failure(fake: Fake, fake_config: CacheTeacherConfig) -> None:
    several = replace(fake_config, part_minutes=PART_MINUTES)

    def later(x: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        return (x, n) if len(fake.batches) < 5 else (x + 3, n)

    fake.change = later
    with pytest.raises(TeacherError):
        cache_teacher(several)
    standing = len(list(several.out.glob("part-*")))
    assert standing > 0
    fake.change = lambda x, n: (x, n)
    summary = cache_teacher(several)
    assert summary.parts_written == summary.parts - standing


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"precision": "bfloat16"}, "precision"),
        ({"top_k": 4}, "top_k"),
        ({"mass": 0.9}, "mass"),
        ({"quantiser": "angle6"}, "quantiser"),
    ],
)
def test_a_store_takes_no_other_settings(
    config: CacheTeacherConfig, store: Path, change: dict[str, Any], field: str
) -> None:
    before = files(store)
    with pytest.raises(FingerprintError, match=rf"{field} differs; expected .* got ") as caught:
        cache_teacher(replace(config, **change))
    assert str(change[field]) in str(caught.value)
    assert files(store) == before


def test_a_store_takes_no_other_corpus(
    config: CacheTeacherConfig, store: Path, tone_corpus: Any, tmp_path: Path
) -> None:
    before = files(store)
    with pytest.raises(StoreError, match="begun for other utterances, audio or part lengths"):
        cache_teacher(replace(config, manifest=tone_corpus.dev))
    with pytest.raises(StoreError, match="begun for other utterances, audio or part lengths"):
        cache_teacher(replace(config, part_minutes=60))
    assert files(store) == before


def test_sample_rates_must_agree(fake: Fake, fake_config: CacheTeacherConfig) -> None:
    fake.info = replace(fake.info, sample_rate=8000)
    with pytest.raises(ConfigError, match=r"sample rate.*expected 8000 Hz.*got 16000"):
        cache_teacher(fake_config)
    assert not fake_config.out.exists()


@pytest.mark.parametrize(
    "change", [{"part_minutes": 0.0}, {"batch_seconds": -1.0}, {"decode_threads": 0}]
)
def test_settings_out_of_range(config: CacheTeacherConfig, change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        replace(config, **change)


def test_utterances_without_text(
    config: CacheTeacherConfig, tone_corpus: Any, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in tone_corpus.dev.read_text().splitlines()]
    for row in rows:
        row["audio_path"] = str((tone_corpus.dev.parent / row["audio_path"]).resolve())

    def cache(name: str, texts: list[str]) -> float | None:
        lines = [json.dumps({**row, "text": text}) for row, text in zip(rows, texts, strict=True)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        changed = replace(config, manifest=tmp_path / f"{name}.jsonl", out=tmp_path / name)
        return cache_teacher(changed).teacher_wer

    texts = [row["text"] for row in rows]
    assert cache("silent", [""] * len(rows)) is None
    assert TeacherStore.open(tmp_path / "silent").summary["teacher_wer"] is None
    only_first = cache("first", [texts[0], *[""] * (len(rows) - 1)])
    assert only_first is not None  # the first one's, whatever batch it fell into
    alone = transcribe_store(tmp_path / "first", tmp_path / "first.jsonl")
    hypothesis = alone.texts[0]
    assert only_first == pytest.approx(count_errors([texts[0]], [hypothesis]).rate)
