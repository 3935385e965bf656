"""Jasper-Mini encoder: depthwise-separable 1-D convolutions in residual blocks."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from interkd.kernels.errors import ConfigError
from interkd.kernels.norm_activation import has_fast_norm_activation, norm_activation
from interkd.pipeline.students.config import JasperConfig
from interkd.pipeline.students.convolution import (
    as_frames,
    as_image,
    batch_norm,
    depthwise_over_time,
    pointwise,
)
from interkd.pipeline.students.features import frame_mask
from interkd.pipeline.students.layers import AtLayer, layers_in_use


class SeparableConvolution(nn.Module):
    """Depthwise convolution over time, pointwise convolution over channels, batch norm."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, dilation: int = 1
    ) -> None:
        super().__init__()
        padding = dilation * (kernel - 1) // 2
        # A dilated kernel spans dilation * (kernel - 1) + 1 frames: that is its formula's kernel.
        self.formula_step = (dilation * (kernel - 1) + 1, stride, padding)
        self.depthwise = nn.Conv2d(
            inputs,
            inputs,
            (1, kernel),
            stride=(1, stride),
            padding=(0, padding),
            dilation=(1, dilation),
            groups=inputs,
            bias=False,
        )
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, T, C)` to `(B, T', C')`, before the norm."""
        if self.depthwise.stride[1] == 1:
            x = depthwise_over_time(self.depthwise, x)
        else:
            x = as_frames(self.depthwise(as_image(x)))
        return pointwise(self.pointwise, x)


def activate(
    x: Tensor,
    norm: nn.BatchNorm2d,
    around: Tensor | None,
    norm_around: nn.BatchNorm2d | None,
    dropout: nn.Dropout,
    mask: Tensor,
) -> Tensor:
    """What follows a layer's convolutions: norm, the way around a block, activation.

    A function of its own, since it is what torch.compile makes one pass of.

    Args:
        x: `(B, T, C)`.
        norm: Of the layer.
        around: `(B, T, C)`, at the end of a block.
        norm_around: Its norm.
        dropout: Applied last.
        mask: True at valid frames, bool `(B, T, 1)`.

    Returns:
        `(B, T, C)`, zero in the padding: it enters the next convolution as zeros, whatever the
        batch.
    """
    x = batch_norm(norm, x)
    if around is not None and norm_around is not None:
        x = x + batch_norm(norm_around, around)
    out: Tensor = dropout(nn.functional.relu(x)) * mask
    return out


class JasperEncoder(nn.Module):
    """Stem, residual blocks, a dilated layer and a pointwise layer (Li et al. 2019, Jasper).

    Layers are counted as the convolutions in order: 1 is the stem, the last is the pointwise one.
    Frames hold their channels side by side; the modules are 2-D over `(B, C, 1, T)` with channels
    last, which is several times faster on a CPU than 1-D ones (docs/log.md, 2026-11-24).

    A block's residual goes through a 1x1 convolution with batch norm and is added before the last
    activation of the block.
    """

    def __init__(
        self, config: JasperConfig, feature_dim: int, *, last_layer: int | None = None
    ) -> None:
        super().__init__()
        if len(config.block_channels) != len(config.block_kernels):
            raise ConfigError(
                "student.jasper.block_channels",
                expected=f"one for each of the {len(config.block_kernels)} block_kernels",
                got=len(config.block_channels),
            )
        if len(config.last_channels) != 2:
            raise ConfigError(
                "student.jasper.last_channels", expected="two widths", got=config.last_channels
            )
        stem = SeparableConvolution(
            feature_dim, config.stem_channels, config.stem_kernel, stride=config.stride
        )
        layers, dims = [stem], [config.stem_channels]
        self.block_ends: dict[int, int] = {}
        self.residuals = nn.ModuleList()
        width = config.stem_channels
        for channels, kernel in zip(config.block_channels, config.block_kernels, strict=True):
            self.residuals.append(
                nn.Sequential(nn.Conv2d(width, channels, 1, bias=False), nn.BatchNorm2d(channels))
            )
            for _ in range(config.repeat):
                layers.append(SeparableConvolution(width, channels, kernel))
                dims.append(channels)
                width = channels
            self.block_ends[len(layers) - 1] = len(self.residuals) - 1
        dilated, last = config.last_channels
        layers.append(SeparableConvolution(width, dilated, config.dilated_kernel, dilation=2))
        layers.append(SeparableConvolution(dilated, last, 1))
        count = layers_in_use(len(layers), last_layer)
        self.layers = nn.ModuleList(layers[:count])
        self.layer_dims = (*dims, dilated, last)[:count]
        self.block_ends = {end: block for end, block in self.block_ends.items() if end < count}
        self.residuals = self.residuals[: len(self.block_ends)]
        self.dropout = nn.Dropout(config.dropout)
        self.formula_steps = (stem.formula_step,)
        self.compiled_activate = activate

    def compile_layers(self) -> None:
        """Compiles, for training, what the layers have in common and no kernel does."""
        self.compiled_activate = torch.compile(activate, dynamic=True)

    def layer_weights(self) -> list[int]:
        """Weights of each layer, the way around a block with the layer that ends it."""
        weights = [sum(p.numel() for p in layer.parameters()) for layer in self.layers]
        for layer, block in self.block_ends.items():
            weights[layer] += sum(p.numel() for p in self.residuals[block].parameters())
        return weights

    def forward(self, features: Tensor, frame_lengths: Tensor, at_layer: AtLayer) -> Tensor:
        """Runs all layers.

        Args:
            features: `(B, F, T)`, zero in the padding.
            frame_lengths: Valid feature frames, int64 `(B,)`.
            at_layer: Hears of every layer's output `(B, T', C)` and says what goes on from it.

        Returns:
            The valid frames, int64 `(B,)`.
        """
        kernel, stride, padding = self.formula_steps[0]
        frame_lengths = (frame_lengths + 2 * padding - kernel) // stride + 1
        x = features.transpose(1, 2).contiguous()
        block_input, mask = x, None
        run = self.compiled_activate if self.training else activate
        is_fast, seed = self.training and has_fast_norm_activation(x.device), None
        if is_fast and self.dropout.p:
            seed = torch.randint(1 << 62, (1,), device=x.device)
        for index, layer in enumerate(self.layers):
            x = layer(x)
            around: Tensor | None = None
            norm_around: nn.BatchNorm2d | None = None
            if index in self.block_ends:
                block = cast(nn.Sequential, self.residuals[self.block_ends[index]])
                around = pointwise(cast(nn.Conv2d, block[0]), block_input)
                norm_around = cast(nn.BatchNorm2d, block[1])
            if mask is None:
                mask = frame_mask(frame_lengths, x.shape[1])[:, :, None]
            norm = cast(nn.BatchNorm2d, layer.norm)
            if is_fast and norm.training:
                x = norm_activation(
                    x,
                    norm,
                    around,
                    norm_around,
                    mask,
                    dropout=self.dropout.p,
                    seed=seed,
                    stream=index,
                )
            else:
                x = run(x, norm, around, norm_around, self.dropout, mask)
            changed = at_layer(index + 1, x)
            x = x if changed is x else changed * mask
            if index == 0 or index in self.block_ends:
                block_input = x
        return frame_lengths
