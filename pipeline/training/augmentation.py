"""Augmentation of the features during training."""

from __future__ import annotations

from torch import nn

from interkd.pipeline.audio_library import torchaudio
from interkd.pipeline.training.config import SpecAugmentConfig


def spec_augment(config: SpecAugmentConfig | None) -> nn.Module:
    """The SpecAugment masks asked for, or nothing."""
    if config is None:
        return nn.Identity()
    masks: nn.Module = torchaudio.transforms.SpecAugment(
        n_time_masks=config.time_masks,
        time_mask_param=config.time_width,
        n_freq_masks=config.frequency_masks,
        freq_mask_param=config.frequency_width,
        p=config.time_share,
        zero_masking=True,
    )
    return masks
