"""`prepare`: a round trip, and every kind of bad row by itself."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from interkd.kernels.errors import ConfigError, CorpusError
from interkd.pipeline.corpus import checks
from interkd.pipeline.corpus.audio import AudioSegment, decode, hash_samples, read_samples
from interkd.pipeline.corpus.manifest import read_manifest
from interkd.pipeline.corpus.prepare import (
    BadRowsError,
    PrepareConfig,
    prepare,
)
from interkd.pipeline.corpus.summary import PrepareSummary
from interkd.pipeline.corpus.tokens import Tokenizer
from interkd.pipeline.progress import Reporter


def run(corpus: Any, *more_lines: str, **changes: Any) -> PrepareSummary:
    settings = {"out": corpus.folder / "out", "train": "characters", "frame_shift_ms": 40.0}
    settings |= changes
    return prepare(PrepareConfig(sources=corpus.write(*more_lines), **settings))


def test_round_trip(corpus: Any) -> None:
    summary = run(corpus)
    out = corpus.folder / "out"
    manifest = read_manifest(out / "manifest.jsonl")
    tokenizer = Tokenizer.load(out)
    assert sorted(path.name for path in out.iterdir()) == [
        "manifest.jsonl",
        "summary.json",
        "tokens.txt",
    ]
    assert [u.utt_id for u in manifest.utterances] == ["utt0", "utt1", "utt2"]
    assert [u.samples for u in manifest.utterances] == [16000, 20000, 24000]
    assert [u.speaker for u in manifest.utterances] == ["speaker0", "speaker1", "speaker0"]
    for utterance, row in zip(manifest.utterances, corpus.rows, strict=True):
        samples, rate = soundfile.read(utterance.audio_path, dtype="int16")
        assert utterance.text == row["text"]
        assert utterance.audio_hash == hash_samples(samples, rate)
        np.testing.assert_array_equal(read_samples(utterance), samples / np.float32(32768))
        assert tokenizer.decode(tokenizer.encode(utterance.text)) == utterance.text
    counts = np.array([11, 18, 4])
    seconds = np.array([1.0, 1.25, 1.5])
    assert summary == PrepareSummary(
        utterances=3,
        hours=round(3.75 / 3600, 4),
        speakers=2,
        tokens_per_second_mean=round(counts.sum() / 3.75, 3),
        tokens_per_second_p95=round(float(np.percentile(counts / seconds, 95)), 3),
        shortest_seconds=1.0,
        longest_seconds=1.5,
        too_short_for_ctc=0,
        rejected={},
        characters=" 'ADEGHILMORSTW",
        sample_rate=16000,
        vocab_size=16,
        tokenizer_digest=tokenizer.digest,
        manifest_digest=manifest.digest,
    )
    written = json.loads((out / "summary.json").read_text())
    assert written | {"too_short_at_speed": None} == json.loads(json.dumps(vars(summary)))
    assert "too_short_at_speed" not in written


def test_another_split_takes_the_tokens(corpus: Any) -> None:
    first = run(corpus)
    again = run(corpus, train=None, tokens=corpus.folder / "out", out=corpus.folder / "dev")
    assert again == first


def test_training_pieces(corpus: Any) -> None:
    summary = run(corpus, train="bpe", vocab_size=24)
    tokenizer = Tokenizer.load(corpus.folder / "out")
    assert (tokenizer.kind, summary.vocab_size) == ("sentencepiece", 24)
    run(corpus)
    assert Tokenizer.load(corpus.folder / "out").kind == "characters"  # no model is left behind


def test_text_is_cased_and_spaced(corpus: Any) -> None:
    corpus.rows[0]["text"] = "  hello\t there "
    run(corpus, case="upper")
    manifest = read_manifest(corpus.folder / "out" / "manifest.jsonl")
    assert manifest.utterances[0].text == "HELLO THERE"


def test_the_case_that_the_tokens_have_is_named(corpus: Any) -> None:
    run(corpus, out=corpus.folder / "tokens")
    for row in corpus.rows:
        row["text"] = row["text"].lower()
    with pytest.raises(BadRowsError, match=r"U\+00.*; '--case upper' mends that"):
        run(corpus, train=None, tokens=corpus.folder / "tokens")
    run(corpus, train=None, tokens=corpus.folder / "tokens", case="upper")


def test_resampled_lengths(corpus: Any) -> None:
    corpus.add("high", "HELLO", seconds=1.0001, rate=44100)
    run(corpus)
    utterance = read_manifest(corpus.folder / "out" / "manifest.jsonl").utterances[-1]
    assert (utterance.source_rate, utterance.samples) == (44100, 16002)
    assert len(read_samples(utterance)) == 16002


def test_segments_of_one_file(corpus: Any) -> None:
    path = corpus.add("long", "ONE", seconds=2.0)
    whole, _ = soundfile.read(path, dtype="float32")
    first = corpus.rows[-1] | {"utt_id": "part", "offset": 0.5, "duration": 0.75}
    last = corpus.rows[-1] | {"utt_id": "rest", "offset": 1.25, "duration": 0.8}
    corpus.rows += [first, last]
    run(corpus)
    *_, part, rest = read_manifest(corpus.folder / "out" / "manifest.jsonl").utterances
    np.testing.assert_array_equal(read_samples(part), whole[8000:20000])
    np.testing.assert_array_equal(read_samples(rest), whole[20000:])


def test_speeds(corpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy a speed, each row decoded once, and without speeds the same as ever."""
    path = corpus.add("long", "HELLO", seconds=2.0, rate=48000)
    corpus.rows.append(corpus.rows[-1] | {"utt_id": "part", "offset": 0.5, "duration": 1.0})
    run(corpus)
    plain = {path.name: path.read_bytes() for path in (corpus.folder / "out").iterdir()}
    decoded: list[str] = []

    def counted(path: Path, *, utt_id: str, **options: Any) -> AudioSegment:
        decoded.append(utt_id)
        return decode(path, utt_id=utt_id, **options)

    monkeypatch.setattr(checks, "decode", counted)
    summary = run(corpus, speeds=(1.1, 0.9, 1.0))
    utterances = read_manifest(corpus.folder / "out" / "manifest.jsonl").utterances
    assert sorted(decoded) == ["long", "part", "utt0", "utt1", "utt2"]
    assert (summary.utterances, summary.too_short_at_speed) == (15, {"0.9": 0, "1.1": 0})
    assert summary.manifest_digest != json.loads(plain["summary.json"])["manifest_digest"]
    assert [u.utt_id for u in utterances[:4]] == ["utt0", "utt0_sp0.9", "utt0_sp1.1", "utt1"]
    assert [u.speed for u in utterances] == 5 * [1.0, 0.9, 1.1]
    assert [u.samples for u in utterances[9:]] == [32000, 35556, 29091, 16000, 17778, 14546]
    for original, slower, faster in zip(*(utterances[i::3] for i in range(3)), strict=True):
        for copy in (slower, faster):
            same = {"utt_id": original.utt_id, "samples": original.samples, "speed": 1.0}
            assert replace(copy, **same) == original
            assert len(read_samples(copy)) == copy.samples
    assert utterances[-1].audio_path == path

    run(corpus, speeds=(1.0,))
    again = {path.name: path.read_bytes() for path in (corpus.folder / "out").iterdir()}
    assert again == plain


def test_copies_too_short_at_their_speed_are_left_out(corpus: Any) -> None:
    corpus.add("dense", "ABCDEFGHIJKLMNOPQRSTUVWX", seconds=1.0)  # 25 frames for 24 tokens
    summary = run(corpus, speeds=(0.9, 1, 1.1, 2), train="characters")
    assert summary.too_short_at_speed == {"0.9": 0, "1.1": 1, "2.0": 2}
    assert (summary.too_short_for_ctc, summary.rejected) == (0, {})
    utterances = read_manifest(corpus.folder / "out" / "manifest.jsonl").utterances
    assert [u.utt_id for u in utterances[-2:]] == ["dense", "dense_sp0.9"]
    written = json.loads((corpus.folder / "out" / "summary.json").read_text())
    assert written["too_short_at_speed"] == summary.too_short_at_speed


def test_rows_too_short_at_speed_1_or_at_every_speed_are_bad(corpus: Any) -> None:
    corpus.add("dense", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", seconds=1.0)  # 28 frames at speed 0.9
    with pytest.raises(BadRowsError, match=r"1 of 4 rows .*'dense': 25 frames of 40 ms for 26"):
        run(corpus, speeds=(0.9, 1.0))
    summary = run(corpus, speeds=(0.9, 1.0), skip_bad=True)
    assert (summary.utterances, summary.too_short_for_ctc) == (6, 1)
    assert summary.too_short_at_speed == {"0.9": 0}
    summary = run(corpus, speeds=(1.1, 0.9))
    assert (summary.utterances, summary.too_short_at_speed) == (7, {"0.9": 0, "1.1": 1})
    with pytest.raises(BadRowsError, match=r"'dense_sp1\.05': 24 frames of 40 ms for 26"):
        run(corpus, speeds=(1.1, 1.05))
    summary = run(corpus, speeds=(1.1, 1.05), skip_bad=True)
    assert (summary.utterances, summary.rejected) == (6, {"too short for CTC": 1})


@pytest.mark.parametrize("speeds", [(1.0, 1.1), (1.1,)])
def test_ids_of_copies_that_are_taken(speeds: tuple[float, ...], corpus: Any) -> None:
    corpus.add("utt1_sp1.1", "GOOD")
    with pytest.raises(
        CorpusError,
        match=r":2: at speed 1\.1 utterance 'utt1' would be 'utt1_sp1\.1'; got that id at .*:4",
    ):
        run(corpus, speeds=speeds)
    assert not (corpus.folder / "out").exists()
    assert run(corpus, speeds=(0.9,)).utterances == 4


@pytest.mark.parametrize(
    ("rate", "speed", "message"),
    [
        (16000, 1.00001, r"expected a whole number of Hz, got 16000\.16 of 16000 Hz"),
        (44100, 1.001, r"got 44144\.1 of 44100 Hz"),
        (44100, 1.01, "resampling from 44541 to 16000 Hz; expected rates with a common divisor"),
    ],
)
def test_speeds_that_do_not_go_with_a_rate(
    rate: int, speed: float, message: str, corpus: Any
) -> None:
    corpus.add("other", "GOOD", rate=rate)
    with pytest.raises(CorpusError, match=f"utterance '.*' at speed {speed}.*{message}") as caught:
        run(corpus, speeds=(1.0, speed), skip_bad=True)
    assert not isinstance(caught.value, BadRowsError)
    assert not (corpus.folder / "out").exists()


def test_lhotse_cuts(corpus: Any) -> None:
    stereo = corpus.folder / "stereo.wav"
    left, right = np.random.default_rng(0).integers(-99, 99, (2, 32000)).astype(np.int16)
    soundfile.write(stereo, np.stack([left, right], axis=1), 16000)
    source = {"type": "file", "channels": [0, 1], "source": "stereo.wav"}
    recording = {"id": "r", "sources": [source], "sampling_rate": 16000, "duration": 2.0}
    corpus.rows = [
        {
            "id": f"cut{channel}",
            "start": 0.5,
            "duration": 1.0,
            "channel": channel,
            "supervisions": [{"text": "HELLO", "speaker": "s"}],
            "recording": recording,
            "type": "MonoCut",
        }
        for channel in (0, 1)
    ]
    assert run(corpus).utterances == 2
    first, second = read_manifest(corpus.folder / "out" / "manifest.jsonl").utterances
    np.testing.assert_array_equal(read_samples(first), left[8000:24000] / np.float32(32768))
    np.testing.assert_array_equal(read_samples(second), right[8000:24000] / np.float32(32768))


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _put_nan(path: Path) -> None:
    values = np.zeros(16000)
    values[9] = np.nan
    soundfile.write(path, values, 16000, format="WAV", subtype="FLOAT")


@pytest.mark.parametrize(
    ("spoil", "row", "kind", "reason"),
    [
        (Path.unlink, {}, "audio", "no such audio file"),
        (_truncate, {}, "audio", "truncated"),
        (_put_nan, {}, "audio", "sample 9; expected a finite value, got nan"),
        (Path.touch, {"duration": 1.2}, "duration", r"has 1\.000 s, the row claims 1\.200 s"),
        (Path.touch, {"offset": 0.5}, "duration", r"has 0\.500 s, the row claims 1\.000 s"),
        (Path.touch, {"text": " "}, "empty text", "the transcript is empty"),
        (Path.touch, {"text": "CAFÉ"}, "text outside the tokens", r"'É' \(U\+00C9\) at position 3"),
        (
            Path.touch,
            {"text": "AN ALL TOO LONG LINE FOR IT"},
            "too short for CTC",
            "25 frames of 40 ms for 27 tokens and 2 blanks between repeats",
        ),
        (Path.touch, {"utt_id": "utt1"}, "duplicate id", "utt_id is also at .*:2"),
    ],
)
def test_each_kind_of_bad_row(
    spoil: Callable[[Path], None],
    row: dict[str, Any],
    kind: str,
    reason: str,
    corpus: Any,
) -> None:
    tokens = corpus.folder / "tokens"
    tokens.mkdir()
    Tokenizer.from_characters(["ABCDEFGHIJKLMNOPQRSTUVWXYZ' "]).save(tokens)
    spoil(corpus.add("bad", "FINE"))
    corpus.rows[-1] |= row
    with pytest.raises(BadRowsError, match=f"1 of 4 rows are bad, nothing was written.*{reason}"):
        run(corpus, train=None, tokens=tokens)
    assert not (corpus.folder / "out").exists()

    summary = run(corpus, train=None, tokens=tokens, skip_bad=True)
    assert (summary.utterances, summary.rejected) == (3, {kind: 1})
    assert summary.too_short_for_ctc == (kind == "too short for CTC")
    listed = json.loads((corpus.folder / "out" / "rejected.jsonl").read_text(encoding="utf-8"))
    assert listed["where"].endswith("source.jsonl:4")
    assert listed["kind"] == kind
    assert re.search(reason, listed["reason"])


def test_bad_json_and_all_rows_at_once(corpus: Any) -> None:
    corpus.rows[1]["text"] = ""
    with pytest.raises(BadRowsError) as error:
        run(corpus, "{not JSON", "{}")
    assert [row.where[-2:] for row in error.value.rows] == [":2", ":4", ":5"]
    assert [row.kind for row in error.value.rows] == ["empty text", "bad JSON", "missing field"]
    summary = run(corpus, "{not JSON", "{}", skip_bad=True)
    assert summary.rejected == {"bad JSON": 1, "empty text": 1, "missing field": 1}


def test_durations_within_the_tolerance(corpus: Any) -> None:
    corpus.rows[0]["duration"] = 1.09
    corpus.add("long", "HELLO", seconds=9.0, duration=9.17)
    assert run(corpus).utterances == 4


def test_nothing_usable(corpus: Any) -> None:
    for row in corpus.rows:
        row["text"] = ""
    with pytest.raises(CorpusError, match=r"has no usable row; got first .*:1: the transcript"):
        run(corpus, skip_bad=True)
    assert not (corpus.folder / "out").exists()


def test_a_failed_run_leaves_the_earlier_one(corpus: Any) -> None:
    run(corpus)
    before = {path.name: path.read_bytes() for path in (corpus.folder / "out").iterdir()}
    corpus.add("bad", "")
    with pytest.raises(BadRowsError):
        run(corpus)
    assert {path.name: path.read_bytes() for path in (corpus.folder / "out").iterdir()} == before


def test_the_reporter_hears_of_every_row(corpus: Any) -> None:
    class Listener(Reporter):
        heard: float = 0
        totals: tuple[float, ...] = ()

        def begin(self, task: str, total: float, *, done: float = 0.0) -> None:
            self.totals += (total,)

        def advance(self, amount: float, figures: str = "") -> None:
            self.heard += amount

    listener = Listener()
    config = PrepareConfig(sources=corpus.write(), out=corpus.folder / "out", train="characters")
    prepare(config, reporter=listener)
    assert (listener.totals, listener.heard) == ((3,), 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": None}, "either tokens to take or a kind to train"),
        ({"tokens": Path("t")}, "either tokens to take or a kind to train"),
        ({"train": "bpe"}, "vocab_size"),
        ({"vocab_size": 30}, "vocab_size"),
        ({"train": "bpee", "vocab_size": 30}, "did you mean 'bpe'"),
        ({"case": "uper"}, "did you mean 'upper'"),
        ({"sample_rate": 0}, "sample_rate; expected above 0"),
        ({"frame_shift_ms": -1.0}, "frame_shift_ms; expected above 0"),
        ({"speeds": ()}, "speeds; expected at least one, got none"),
        ({"speeds": (1.1, 1.0, 1.1)}, "speeds; expected each once, got 1.1 twice"),
        ({"speeds": (1.0, 2.5)}, r"speeds; expected at least 0\.5, at most 2"),
        ({"speeds": (float("nan"),)}, r"speeds; expected at least 0\.5, at most 2"),
    ],
)
def test_settings_that_do_not_go_together(
    changes: dict[str, Any], message: str, corpus: Any
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(corpus, **changes)
