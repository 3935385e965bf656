"""Log-mel features on the training device, the same for an utterance alone and in a batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from interkd.pipeline.audio_library import torchaudio
from interkd.pipeline.frames import FrameFormula
from interkd.pipeline.students.config import FeatureConfig

LOG_FLOOR = 1e-6  # about the mel power of 16-bit rounding noise, so silence stays finite


def frame_mask(frame_lengths: Tensor, frames: int) -> Tensor:
    """True at the valid frames: int64 `(B,)` to bool `(B, frames)`."""
    return torch.arange(frames, device=frame_lengths.device) < frame_lengths[:, None]


class LogMel(nn.Module):
    """Waveforms to normalised log-mel features.

    The waveform is padded with half a window of zeros at both ends and cut into windows without
    reflection, so that the frames of an utterance never depend on the batch's padding.
    """

    def __init__(self, config: FeatureConfig) -> None:
        super().__init__()
        window = round(config.sample_rate * config.window_ms / 1000)
        self.sample_rate = config.sample_rate
        self.hop = round(config.sample_rate * config.hop_ms / 1000)
        self.fft = 1 << (window - 1).bit_length()
        # Constants of the settings: no part of a checkpoint, never cast with the weights, real on
        # the meta device too, where torchaudio cannot look at them.
        self.window: Tensor
        self.filters: Tensor
        with torch.device("cpu"):
            filters = torchaudio.functional.melscale_fbanks(
                self.fft // 2 + 1, 0.0, config.sample_rate / 2, config.mels, config.sample_rate
            )
            self.register_buffer("window", torch.hann_window(window), persistent=False)
            self.register_buffer("filters", filters, persistent=False)

    @property
    def formula(self) -> FrameFormula:
        """Frames of so many samples."""
        return FrameFormula(((self.fft, self.hop, self.fft // 2),))

    @torch.no_grad()
    def forward(self, waveforms: Tensor, sample_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Features of a batch.

        Args:
            waveforms: float32 `(B, N)` in [-1, 1], padded with anything.
            sample_lengths: Valid samples, int64 `(B,)`.

        Returns:
            float32 `(B, mels, T)`, exactly 0 in the padding, and frame lengths int64 `(B,)`.
        """
        with torch.autocast(waveforms.device.type, enabled=False):
            valid = frame_mask(sample_lengths, waveforms.shape[1])
            waveforms = torch.where(valid, waveforms, 0.0)
            padded = nn.functional.pad(waveforms, (self.fft // 2, self.fft // 2))
            spectrum = torch.stft(
                padded,
                self.fft,
                self.hop,
                len(self.window),
                self.window,
                center=False,
                return_complex=True,
            )
            power = torch.view_as_real(spectrum).square().sum(-1)  # abs().pow(2) is 3 times slower
            log_mel = (power.mT @ self.filters).mT.add(LOG_FLOOR).log()
            frame_lengths = sample_lengths // self.hop + 1
            mask = frame_mask(frame_lengths, log_mel.shape[2])[:, None, :]
            count = frame_lengths[:, None, None]
            mean = torch.where(mask, log_mel, 0.0).sum(2, keepdim=True) / count
            centred = torch.where(mask, log_mel - mean, 0.0)
            variance = centred.square().sum(2, keepdim=True) / count
            return centred * (variance + 1e-5).rsqrt(), frame_lengths
