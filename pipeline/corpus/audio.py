"""Audio files to samples: decoded, checked against their hash, resampled, kept in memory.

What is hashed and cached is 16-bit samples at the file's own rate. Integer formats are decoded to
them by libsndfile. Opus, Vorbis and float files are decoded to float and clipped here, because
libsndfile's own conversion of those wraps around where the waveform overshoots full scale.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import torch
import xxhash
from torch import Tensor

from interkd.kernels.errors import ConfigError, CorpusError
from interkd.pipeline.audio_library import torchaudio
from interkd.pipeline.corpus.manifest import Utterance

Samples = npt.NDArray[np.int16]

_INTEGER_SUBTYPES = ("PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "ULAW", "ALAW")
_FLOAT_SUBTYPES = ("FLOAT", "DOUBLE")  # their values are the writer's, not a decoder's
_LONGEST_SECONDS = 24 * 3600  # a header that claims more is a stream of unknown length


@dataclass(frozen=True, kw_only=True)
class AudioSegment:
    """Decoded samples of one channel.

    Attributes:
        samples: int16 `(N,)` at `rate`.
        rate: Of the file, in Hz.
        is_whole: Whether these are all the samples of the file.
    """

    samples: Samples
    rate: int
    is_whole: bool


def decode(
    path: Path,
    *,
    utt_id: str,
    offset_seconds: float = 0.0,
    source_samples: int | None = None,
    channel: int | None = None,
) -> AudioSegment:
    """Decodes a stretch of one channel of an audio file.

    Args:
        path: Any file that libsndfile reads: WAV, FLAC, Ogg Opus, Ogg Vorbis, MP3, NIST.
        utt_id: For messages.
        offset_seconds: Where to begin; rounded to a sample.
        source_samples: How many samples to read; None for all to the end.
        channel: From 0; None demands a file with one channel.

    Raises:
        CorpusError: If the file is missing, cannot be decoded, ends before its header or the
            caller says, is empty, holds NaN, infinite or out-of-range values, or has several
            channels of which none was chosen.
    """
    name = f"utterance '{utt_id}': {path}"
    with _open(path, name) as file:
        channel = _choose_channel(channel, file.channels, name)
        start = round(offset_seconds * file.samplerate)
        wanted = file.frames - start if source_samples is None else source_samples
        if wanted < 1 or start >= file.frames:
            raise CorpusError(f"{name}: no audio after {offset_seconds:g} s")
        if start:
            file.seek(start)
        is_integer = file.subtype in _INTEGER_SUBTYPES
        block = file.read(wanted, dtype="int16" if is_integer else "float32", always_2d=True)
        rate, subtype, is_whole = file.samplerate, file.subtype, wanted == file.frames
    if len(block) < wanted:
        raise CorpusError(f"{name}: truncated", expected=f"{wanted} samples", got=len(block))
    samples = block[:, channel]
    if not is_integer:
        samples = _to_int16(samples, is_exact=subtype in _FLOAT_SUBTYPES, name=name)
    return AudioSegment(samples=np.ascontiguousarray(samples), rate=rate, is_whole=is_whole)


def count_samples(
    path: Path, *, utt_id: str, offset_seconds: float, duration_seconds: float
) -> int:
    """Samples of a stretch of an audio file, at the file's rate; fewer where the file ends first.

    Raises:
        CorpusError: If the file is missing or its header cannot be read.
    """
    with _open(path, f"utterance '{utt_id}': {path}") as file:
        start = round(offset_seconds * file.samplerate)
        wanted: int = round(duration_seconds * file.samplerate)
        available: int = file.frames - start
        return max(0, min(wanted, available))


@contextmanager
def _open(path: Path, name: str) -> Iterator[Any]:
    if not path.is_file():
        raise CorpusError(f"{name}: no such audio file")
    try:
        with soundfile.SoundFile(path) as file:
            if file.frames > _LONGEST_SECONDS * file.samplerate:
                raise CorpusError(
                    f"{name}: length unknown", remedy="write the file again with a complete header"
                )
            yield file
    except soundfile.SoundFileError as error:
        detail = str(getattr(error, "error_string", error)).strip() or "a damaged stream"
        raise CorpusError(f"{name}: cannot decode, truncated or damaged", got=detail) from error


def _choose_channel(channel: int | None, channels: int, name: str) -> int:
    if channel is None and channels > 1:
        raise CorpusError(
            f"{name}: channels",
            expected=1,
            got=channels,
            remedy="mix the file down, or name one channel in a Lhotse cut",
        )
    if channel is not None and not 0 <= channel < channels:
        raise CorpusError(f"{name}: channel", expected=f"below {channels}", got=channel)
    return channel or 0


def _to_int16(values: npt.NDArray[np.float32], *, is_exact: bool, name: str) -> Samples:
    if not np.isfinite(values).all():
        first = int(np.flatnonzero(~np.isfinite(values))[0])
        raise CorpusError(
            f"{name}: sample {first}", expected="a finite value", got=float(values[first])
        )
    # A decoder overshoots by a few dB; a float file far outside holds integers or was never scaled.
    if is_exact and (peak := float(np.abs(values).max())) > 2.0:
        raise CorpusError(f"{name}: peak", expected="at most 1.0", got=f"{peak:.4g}")
    scaled: Samples = np.clip(np.rint(values * 32768.0), -32768, 32767).astype(np.int16)
    return scaled


def hash_samples(samples: Samples, source_rate: int) -> str:
    """xxh3-128 of 16-bit samples and their rate in Hz, as 32 hexadecimal digits.

    Equal for equal audio, whatever the file's name or lossless container.
    """
    state = xxhash.xxh3_128(source_rate.to_bytes(8, "little"))
    state.update(np.ascontiguousarray(samples, dtype="<i2").data)
    return state.hexdigest()


def resampled_length(samples: int, source_rate: int, sample_rate: int) -> int:
    """Samples after resampling: `ceil(samples * sample_rate / source_rate)`, exactly."""
    return -(-samples * sample_rate // source_rate)


@lru_cache(maxsize=32)  # a few rates at a few speeds; a filter has at most 128 MiB (`speeds`)
def _resampler(source_rate: int, sample_rate: int) -> Any:
    return torchaudio.transforms.Resample(source_rate, sample_rate)


def _at_manifest_rate(samples: Samples, utterance: Utterance) -> npt.NDArray[np.float32]:
    length = resampled_length(len(samples), utterance.heard_rate, utterance.sample_rate)
    if length != utterance.samples:
        raise CorpusError(
            f"utterance '{utterance.utt_id}': samples in the manifest",
            expected=length,
            got=utterance.samples,
            remedy="run 'interkd prepare' again",
        )
    waveform = samples.astype(np.float32) / np.float32(32768.0)
    if utterance.heard_rate == utterance.sample_rate:
        return waveform
    resample = _resampler(utterance.heard_rate, utterance.sample_rate)
    resampled: npt.NDArray[np.float32] = resample(torch.from_numpy(waveform)).numpy()
    # torchaudio rounds its length in float32: a sample too few or too many in long files.
    waveform = resampled[:length]
    return np.pad(waveform, (0, length - len(waveform)))


def _decode_utterance(utterance: Utterance, *, verify: bool) -> Samples:
    segment = decode(
        utterance.audio_path,
        utt_id=utterance.utt_id,
        offset_seconds=utterance.offset_seconds,
        source_samples=utterance.source_samples,
        channel=utterance.channel,
    )
    if verify:
        found = hash_samples(segment.samples, segment.rate)
        if found != utterance.audio_hash:
            raise CorpusError(
                f"utterance '{utterance.utt_id}': audio changed: {utterance.audio_path}",
                expected=utterance.audio_hash,
                got=found,
                remedy="restore the file, or run 'interkd prepare' again",
            )
    return segment.samples


def read_samples(utterance: Utterance, *, verify: bool = True) -> npt.NDArray[np.float32]:
    """The waveform of an utterance at the manifest's sample rate and the utterance's speed.

    Args:
        utterance: Row of a manifest.
        verify: Whether to compare the decoded samples with the row's hash.

    Returns:
        float32 `(N,)` in [-1, 1), N the utterance's `samples`.

    Raises:
        CorpusError: If the file cannot be decoded (see `decode`) or its audio has changed.
    """
    return _at_manifest_rate(_decode_utterance(utterance, verify=verify), utterance)


def read_int16(utterance: Utterance) -> Samples:
    """An utterance's 16-bit samples as they stand in the file, checked against the manifest.

    At the file's own rate and at speed 1.

    Raises:
        CorpusError: As `read_samples`.
    """
    return _decode_utterance(utterance, verify=True)


class AudioCache:
    """Decoded audio kept in host memory, so that only the first epoch pays for decoding.

    Holds 16-bit samples at the files' rates, one copy for all speeds, until the budget is spent.
    Nothing is evicted: every epoch visits every utterance, where a least-recently-used cache
    smaller than the corpus would never hit. Safe to use from several threads.

    Args:
        budget_bytes: Most bytes of samples to hold; 0 holds none.
        threads: Threads that decode and resample a batch.

    Raises:
        ConfigError: For a negative budget or less than one thread.
    """

    def __init__(self, budget_bytes: int, *, threads: int = 1) -> None:
        if budget_bytes < 0 or threads < 1:
            raise ConfigError(
                "audio cache",
                expected="budget >= 0 bytes, threads >= 1",
                got=(budget_bytes, threads),
            )
        self.budget_bytes = budget_bytes
        self.held_bytes = 0
        self._held: dict[str, Samples] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def __len__(self) -> int:
        return len(self._held)

    def read(self, utterance: Utterance) -> npt.NDArray[np.float32]:
        """As `read_samples`, from memory where the utterance is held."""
        samples = self._held.get(utterance.audio_hash)
        if samples is None:
            samples = _decode_utterance(utterance, verify=True)
            with self._lock:
                has_room = self.held_bytes + samples.nbytes <= self.budget_bytes
                if has_room and utterance.audio_hash not in self._held:
                    self._held[utterance.audio_hash] = samples
                    self.held_bytes += samples.nbytes
        return _at_manifest_rate(samples, utterance)

    def read_batch(self, utterances: Sequence[Utterance]) -> tuple[Tensor, Tensor]:
        """Waveforms of a batch, padded with zeros at the end.

        B utterances, the longest of N samples.

        Returns:
            Waveforms, float32 `(B, N)`, and their sample lengths, int64 `(B,)`.

        Raises:
            CorpusError: As `read_samples`; or if there is no utterance.
        """
        if not utterances:
            raise CorpusError("a batch without utterances")
        mapper = map if self._pool is None else self._pool.map
        sample_lengths = torch.tensor([u.samples for u in utterances], dtype=torch.int64)
        waveforms = torch.zeros(len(utterances), int(sample_lengths.max()))
        for row, waveform in zip(waveforms, mapper(self.read, utterances), strict=True):
            row[: len(waveform)] = torch.from_numpy(waveform)
        return waveforms, sample_lengths
