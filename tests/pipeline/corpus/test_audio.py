"""Decoding: exact samples, clear refusals, resampling, and the cache in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import torch

from interkd.kernels.errors import ConfigError, CorpusError
from interkd.pipeline.audio_library import torchaudio
from interkd.pipeline.corpus.audio import (
    AudioCache,
    count_samples,
    decode,
    hash_samples,
    read_samples,
    resampled_length,
)
from interkd.pipeline.corpus.manifest import Utterance

RANDOM = np.random.default_rng(5)


def noise(seconds: float = 0.5, rate: int = 16000) -> npt.NDArray[np.int16]:
    return RANDOM.integers(-9000, 9000, int(seconds * rate)).astype(np.int16)


def an_utterance(
    path: Path, samples: npt.NDArray[np.int16], rate: int = 16000, **changes: Any
) -> Utterance:
    if not path.exists():
        soundfile.write(path, samples, rate)
    utterance = Utterance(
        utt_id=path.stem,
        audio_path=path,
        samples=resampled_length(len(samples), rate, 16000),
        sample_rate=16000,
        text="A",
        audio_hash=hash_samples(samples, rate),
        source_rate=rate,
    )
    return replace(utterance, **changes)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_samples_are_exact(suffix: str, tmp_path: Path) -> None:
    samples = noise()
    waveform = read_samples(an_utterance(tmp_path / f"a.{suffix}", samples))
    assert waveform.dtype == np.float32
    np.testing.assert_array_equal(waveform, samples / np.float32(32768))


def test_segments_and_channels(tmp_path: Path) -> None:
    left, right = noise(), noise()
    path = tmp_path / "stereo.flac"
    soundfile.write(path, np.stack([left, right], axis=1), 16000)
    segment = decode(path, utt_id="a", offset_seconds=0.1, source_samples=800, channel=1)
    np.testing.assert_array_equal(segment.samples, right[1600:2400])
    assert (segment.rate, segment.is_whole) == (16000, False)
    assert decode(path, utt_id="a", channel=0).is_whole
    with pytest.raises(CorpusError, match="channels; expected 1, got 2"):
        decode(path, utt_id="a")
    with pytest.raises(CorpusError, match="channel; expected below 2, got 2"):
        decode(path, utt_id="a", channel=2)


def test_counting_a_segment_stops_at_the_end(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", noise(1.0), 16000)

    def count(offset: float, duration: float) -> int:
        path = tmp_path / "a.wav"
        return count_samples(path, utt_id="a", offset_seconds=offset, duration_seconds=duration)

    assert [count(0, 0.5), count(0.75, 0.5), count(2, 1)] == [8000, 4000, 0]


@pytest.mark.parametrize(("name", "subtype"), [("loud.opus", "OPUS"), ("loud.ogg", "VORBIS")])
def test_overshoot_is_clipped_and_does_not_wrap(name: str, subtype: str, tmp_path: Path) -> None:
    time = np.arange(8000) / 16000
    square = np.sign(np.sin(2 * np.pi * 220 * time)) * 0.999
    soundfile.write(tmp_path / name, square, 16000, format="OGG", subtype=subtype)
    decoded, _ = soundfile.read(tmp_path / name, dtype="float32")
    assert np.abs(decoded).max() > 1.1  # the codec overshoots
    samples = decode(tmp_path / name, utt_id="loud").samples
    assert np.abs(samples / 32768.0 - np.clip(decoded, -1, 1)).max() < 1e-4


def test_float_files_are_scaled(tmp_path: Path) -> None:
    samples = noise()
    soundfile.write(tmp_path / "f.wav", samples / 32768.0, 16000, subtype="FLOAT")
    np.testing.assert_array_equal(decode(tmp_path / "f.wav", utt_id="f").samples, samples)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "sample 3; expected a finite value, got nan"),
        (np.inf, "sample 3; expected a finite value, got inf"),
        (12000.0, r"peak; expected at most 1\.0, got 1\.2e\+04"),
    ],
)
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_values_that_are_no_audio(value: float, message: str, subtype: str, tmp_path: Path) -> None:
    values = np.zeros(100)
    values[3] = value
    soundfile.write(tmp_path / "bad.wav", values, 16000, subtype=subtype)
    with pytest.raises(CorpusError, match=rf"utterance 'u': .*bad\.wav: {message}"):
        decode(tmp_path / "bad.wav", utt_id="u")


def test_files_that_cannot_be_decoded(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    with pytest.raises(CorpusError, match=r"utterance 'u': .*a\.flac: no such audio file"):
        decode(path, utt_id="u")
    soundfile.write(path, noise(2.0), 16000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(CorpusError, match="truncated"):
        decode(path, utt_id="u")
    path.write_bytes(b"this is not audio")
    with pytest.raises(CorpusError, match="cannot decode"):
        decode(path, utt_id="u")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    with pytest.raises(CorpusError, match="no audio after 0 s"):
        decode(tmp_path / "empty.wav", utt_id="u")
    soundfile.write(tmp_path / "short.wav", noise(1.0), 16000)
    with pytest.raises(CorpusError, match="no audio after 2 s"):
        decode(tmp_path / "short.wav", utt_id="u", offset_seconds=2.0)
    with pytest.raises(CorpusError, match="truncated; expected 20000 samples, got 16000"):
        decode(tmp_path / "short.wav", utt_id="u", source_samples=20000)


def test_hashes_are_of_the_audio_and_its_rate(tmp_path: Path) -> None:
    samples = noise()
    digest = hash_samples(samples, 16000)
    assert len(digest) == 32
    assert hash_samples(samples.copy(), 16000) == digest
    assert hash_samples(np.stack([samples, samples], axis=1)[:, 0], 16000) == digest
    assert hash_samples(samples, 8000) != digest
    assert hash_samples(samples + np.int16(1), 16000) != digest


def test_changed_audio_is_refused(tmp_path: Path) -> None:
    samples = noise()
    utterance = an_utterance(tmp_path / "a.wav", samples)
    samples[7] += 1
    soundfile.write(tmp_path / "a.wav", samples, 16000)
    found = hash_samples(samples, 16000)
    with pytest.raises(
        CorpusError, match=f"audio changed: .*expected {utterance.audio_hash}, got {found}"
    ):
        read_samples(utterance)
    assert read_samples(utterance, verify=False)[7] == samples[7] / np.float32(32768)


@pytest.mark.parametrize("rate", [8000, 22050, 44100])
def test_resampling(rate: int, tmp_path: Path) -> None:
    samples = noise(0.371, rate)
    utterance = an_utterance(tmp_path / "a.wav", samples, rate)
    waveform = read_samples(utterance)
    expected = torchaudio.functional.resample(torch.from_numpy(samples / 32768.0), rate, 16000)
    assert len(waveform) == utterance.samples == len(expected)
    # The float32 kernel against float64: within a third of a 16-bit step.
    np.testing.assert_allclose(waveform, expected.numpy(), rtol=0, atol=1e-5)


def at_speed(utterance: Utterance, samples: int, speed: float) -> Utterance:
    heard_rate = round(utterance.source_rate * speed)
    length = resampled_length(samples, heard_rate, utterance.sample_rate)
    return replace(utterance, speed=speed, samples=length)


@pytest.mark.parametrize(
    ("rate", "speed"),
    [(8000, 2.0), (16000, 0.5), (16000, 0.9), (16000, 1.1), (48000, 0.9), (44100, 1.1)],
)
def test_speed_moves_pitch_and_length(rate: int, speed: float, tmp_path: Path) -> None:
    """Including 8 kHz at double speed: what is heard then are the file's own samples."""
    time = np.arange(rate) / rate
    tone = (9000 * np.sin(2 * np.pi * 1000 * time)).astype(np.int16)
    utterance = an_utterance(tmp_path / "a.wav", tone, rate)
    waveform = read_samples(at_speed(utterance, rate, speed))
    assert len(waveform) == np.ceil(16000 / speed)
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    peak = spectrum.argmax() * 16000 / len(waveform)
    assert peak == pytest.approx(1000 * speed, abs=speed)  # half a bin at the most
    assert np.std(waveform) == pytest.approx(np.std(tone / 32768), rel=0.01)


def test_what_would_alias_at_a_speed_is_filtered(tmp_path: Path) -> None:
    tone = (9000 * np.sin(2 * np.pi * 7900 * np.arange(16000) / 16000)).astype(np.int16)
    utterance = an_utterance(tmp_path / "a.wav", tone)
    assert np.std(read_samples(utterance)) > 0.19
    assert np.std(read_samples(at_speed(utterance, 16000, 1.5))[100:-100]) < 0.002


def test_the_cache_holds_one_copy_for_all_speeds(tmp_path: Path) -> None:
    original = an_utterance(tmp_path / "a.wav", noise())
    utterances = [original, *(at_speed(original, 8000, speed) for speed in (0.9, 1.1))]
    expected = [read_samples(utterance) for utterance in utterances]
    cache = AudioCache(1 << 20)
    cache.read(original)
    original.audio_path.unlink()
    waveforms, sample_lengths = cache.read_batch(utterances)
    assert (len(cache), cache.held_bytes) == (1, 16000)
    assert sample_lengths.tolist() == [8000, 8889, 7273]
    for waveform, samples in zip(waveforms, expected, strict=True):
        np.testing.assert_array_equal(waveform[: len(samples)], samples)


def test_a_length_that_is_not_the_files(tmp_path: Path) -> None:
    utterance = an_utterance(tmp_path / "a.wav", noise())
    with pytest.raises(CorpusError, match="samples in the manifest; expected 8000, got 7999"):
        read_samples(replace(utterance, samples=7999))
    with pytest.raises(CorpusError, match="samples in the manifest; expected 7273, got 8000"):
        read_samples(replace(utterance, speed=1.1))


@pytest.mark.parametrize("threads", [1, 3])
def test_batches_are_padded(threads: int, tmp_path: Path) -> None:
    lengths = [0.2, 0.5, 0.3]
    utterances = [
        an_utterance(tmp_path / f"{i}.wav", noise(seconds)) for i, seconds in enumerate(lengths)
    ]
    cache = AudioCache(1 << 20, threads=threads)
    for _ in range(2):
        waveforms, sample_lengths = cache.read_batch(utterances)
        assert sample_lengths.tolist() == [3200, 8000, 4800]
        assert sample_lengths.dtype == torch.int64
        assert waveforms.shape == (3, 8000)
        for waveform, utterance in zip(waveforms, utterances, strict=True):
            np.testing.assert_array_equal(waveform[: utterance.samples], read_samples(utterance))
            assert not waveform[utterance.samples :].any()


def test_the_cache_keeps_to_its_budget(tmp_path: Path) -> None:
    utterances = [an_utterance(tmp_path / f"{i}.wav", noise()) for i in range(4)]
    size = 2 * utterances[0].samples
    cache = AudioCache(2 * size + 1)
    expected, _ = cache.read_batch(utterances)
    assert (len(cache), cache.held_bytes) == (2, 2 * size)
    for utterance in utterances[:2]:
        utterance.audio_path.unlink()
    waveforms, _ = cache.read_batch(utterances)
    assert torch.equal(waveforms, expected)
    utterances[2].audio_path.unlink()
    with pytest.raises(CorpusError, match="no such audio file"):
        cache.read_batch(utterances)


def test_a_cache_of_nothing_reads_the_files(tmp_path: Path) -> None:
    utterance = an_utterance(tmp_path / "a.wav", noise())
    cache = AudioCache(0)
    np.testing.assert_array_equal(cache.read(utterance), read_samples(utterance))
    assert len(cache) == 0
    with pytest.raises(CorpusError, match="a batch without utterances"):
        cache.read_batch([])
    with pytest.raises(ConfigError, match="audio cache"):
        AudioCache(-1)
