"""A corpus in the device's memory gives the batches that the host would have copied."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from interkd.pipeline.corpus.audio import AudioCache, resampled_length
from interkd.pipeline.corpus.manifest import Utterance, read_manifest
from interkd.pipeline.training.resident_audio import ResidentAudio


def gathered(audio: ResidentAudio, utterances: list[Utterance], chosen: list[int]) -> torch.Tensor:
    device = audio.samples.device
    lengths = [utterances[i].samples for i in chosen]
    starts = torch.tensor([audio.starts[i] for i in chosen], device=device)
    return audio.gather(starts, torch.tensor(lengths, device=device), max(lengths)).cpu()


def test_batches_are_the_hosts(tone_corpus: Any, device: torch.device) -> None:
    utterances = list(read_manifest(tone_corpus.train).utterances)
    audio = ResidentAudio(utterances, device, threads=2)
    chosen = [5, 0, len(utterances) - 1]
    expected, _ = AudioCache(0).read_batch([utterances[i] for i in chosen])
    assert torch.equal(gathered(audio, utterances, chosen), expected)


def test_resampled_audio_is_rounded_to_16_bits(tone_corpus: Any, device: torch.device) -> None:
    slower = [
        replace(utterance, speed=0.9, samples=resampled_length(utterance.samples, 14400, 16000))
        for utterance in read_manifest(tone_corpus.dev).utterances
    ]
    audio = ResidentAudio(slower, device, threads=0)
    expected, _ = AudioCache(0).read_batch(slower[:2])
    got = gathered(audio, slower, [0, 1])
    torch.testing.assert_close(got, expected, rtol=0, atol=0.51 / 32768)


def test_what_fits(tone_corpus: Any) -> None:
    utterances = read_manifest(tone_corpus.dev).utterances
    needed = 2 * sum(utterance.samples for utterance in utterances)
    assert ResidentAudio.fits(utterances, needed)
    assert not ResidentAudio.fits(utterances, needed - 1)
