"""The training set's samples in the memory of the GPU, where batches are gathered."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from interkd.pipeline.corpus.audio import Samples, read_int16, read_samples
from interkd.pipeline.corpus.manifest import Utterance


class ResidentAudio:
    """16-bit samples of a whole manifest on a device, one utterance after the other.

    A step then needs no copy of audio from the host: only where its utterances begin. What is
    resampled, to another rate or speed, is resampled once and rounded to 16 bits.

    Args:
        utterances: All of a manifest; `fits` must have said yes.
        device: Where to keep them.
        threads: Threads that decode.

    Raises:
        CorpusError: If an utterance cannot be read or its audio has changed.
    """

    def __init__(
        self, utterances: Sequence[Utterance], device: torch.device, *, threads: int
    ) -> None:
        ends = list(accumulate(utterance.samples for utterance in utterances))
        self.starts = [0, *ends[:-1]]
        self.samples = torch.empty(ends[-1], dtype=torch.int16, device=device)
        with ThreadPoolExecutor(max(1, threads)) as pool:
            for start, end, samples in zip(
                self.starts, ends, pool.map(_samples, utterances), strict=True
            ):
                self.samples[start:end].copy_(torch.from_numpy(samples))

    @staticmethod
    def fits(utterances: Sequence[Utterance], budget_bytes: int) -> bool:
        """Whether all samples fit into a budget."""
        return 2 * sum(utterance.samples for utterance in utterances) <= budget_bytes

    def gather(self, starts: Tensor, sample_lengths: Tensor, longest: int) -> Tensor:
        """Waveforms of a batch, without waiting for the device.

        Args:
            starts: Where each utterance begins, int64 `(B,)` on the device.
            sample_lengths: int64 `(B,)` on the device.
            longest: The largest of them.

        Returns:
            float32 `(B, longest)`, zeros behind each utterance.
        """
        offset = torch.arange(longest, device=self.samples.device)
        valid = offset < sample_lengths[:, None]
        place = torch.where(valid, starts[:, None] + offset, 0)
        return torch.where(valid, self.samples[place], 0).float() / 32768.0


def _samples(utterance: Utterance) -> Samples:
    if utterance.heard_rate == utterance.sample_rate:
        return read_int16(utterance)
    scaled = np.rint(read_samples(utterance) * 32768.0)
    rounded: Samples = np.clip(scaled, -32768, 32767).astype(np.int16)
    return rounded
