"""Conformer encoder of torchaudio's layers, with the padding kept out of the convolutions."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from interkd.kernels.errors import ConfigError
from interkd.pipeline.audio_library import torchaudio
from interkd.pipeline.students.config import ConformerConfig
from interkd.pipeline.students.convolution import depthwise_over_time
from interkd.pipeline.students.features import frame_mask
from interkd.pipeline.students.layers import AtLayer, layers_in_use

ConformerLayer = torchaudio.models.conformer.ConformerLayer


class MaskedConformerLayer(ConformerLayer):  # type: ignore[misc,valid-type]
    """torchaudio's layer, except that padded frames enter the depthwise convolution as zeros.

    Without this an utterance's last frames depend on how much padding its batch has.
    """

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        """One layer.

        Args:
            x: `(B, T, D)`.
            padding: True at padded frames, bool `(B, T)`.

        Returns:
            `(B, T, D)`.
        """
        x = x + 0.5 * self.ffn1(x)
        x = x + self.self_attn_dropout(self._attend(self.self_attn_layer_norm(x), padding))
        x = x + self._convolve(x, padding)
        x = x + 0.5 * self.ffn2(x)
        return cast(Tensor, self.final_layer_norm(x))

    def _attend(self, x: Tensor, padding: Tensor) -> Tensor:
        """Torchaudio's self-attention on `(B, T, D)`, with frames never transposed."""
        module: nn.MultiheadAttention = self.self_attn
        batch, frames, width = x.shape
        heads = nn.functional.linear(x, module.in_proj_weight, module.in_proj_bias)
        heads = heads.view(batch, frames, 3, module.num_heads, width // module.num_heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
        attended = nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=~padding[:, None, None, :],
            dropout_p=module.dropout if self.training else 0.0,
        )
        attended = attended.transpose(1, 2).reshape(batch, frames, width)
        return cast(Tensor, module.out_proj(attended))

    def _convolve(self, x: Tensor, padding: Tensor) -> Tensor:
        """Torchaudio's convolution module on `(B, T, D)`, with frames never transposed."""
        module = self.conv_module
        expand, _, depthwise, norm, activation, project, dropout = module.sequential
        linear = nn.functional.linear
        x = linear(module.layer_norm(x), expand.weight[:, :, 0], expand.bias)
        x = nn.functional.glu(x, dim=-1).masked_fill(padding[:, :, None], 0.0)
        x = depthwise_over_time(depthwise, x)
        x = activation(norm(x.flatten(0, 1)).view(x.shape))
        return cast(Tensor, dropout(linear(x, project.weight[:, :, 0], project.bias)))


def run_layer(layer: nn.Module, x: Tensor, padding: Tensor) -> Tensor:
    """One layer: what torch.compile compiles once for all of them."""
    return cast(Tensor, layer(x, padding))


class ConformerEncoder(nn.Module):
    """A strided convolutional front end and Conformer layers (Gulati et al. 2020).

    torchaudio's layer has no positional encoding: the convolutions carry position.
    """

    def __init__(
        self, config: ConformerConfig, feature_dim: int, *, last_layer: int | None = None
    ) -> None:
        super().__init__()
        if config.stride not in (1, 2, 4, 8):
            raise ConfigError(
                "student.conformer.stride", expected="1, 2, 4 or 8", got=config.stride
            )
        width = config.subsampling_dim or config.dim
        strides = [2] * (config.stride.bit_length() - 1)
        strides = [1] * (2 - len(strides)) + strides
        self.formula_steps = tuple((3, stride, 1) for stride in strides)
        self.subsampling = nn.ModuleList(
            nn.Conv1d(feature_dim if i == 0 else width, width, 3, stride=stride, padding=1)
            for i, stride in enumerate(strides)
        )
        self.project = nn.Linear(width, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            MaskedConformerLayer(
                config.dim,
                config.feed_forward_dim,
                config.attention_heads,
                config.convolution_kernel,
                dropout=config.dropout,
            )
            for _ in range(layers_in_use(config.layers, last_layer))
        )
        self.layer_dims = (config.dim,) * len(self.layers)
        self.compiled_layer = run_layer

    def compile_layers(self) -> None:
        """Compiles, for training, one layer: they are all alike."""
        self.compiled_layer = torch.compile(run_layer, dynamic=True)

    def layer_weights(self) -> list[int]:
        """Weights of each layer; the others stand before the first."""
        return [sum(p.numel() for p in layer.parameters()) for layer in self.layers]

    def forward(self, features: Tensor, frame_lengths: Tensor, at_layer: AtLayer) -> Tensor:
        """Runs all layers.

        Args:
            features: `(B, F, T)`, zero in the padding.
            frame_lengths: Valid feature frames, int64 `(B,)`.
            at_layer: Hears of every layer's output `(B, T', D)` and says what goes on from it.

        Returns:
            The valid frames, int64 `(B,)`.
        """
        x = features
        for convolution, (kernel, stride, padding) in zip(
            self.subsampling, self.formula_steps, strict=True
        ):
            frame_lengths = (frame_lengths + 2 * padding - kernel) // stride + 1
            x = nn.functional.silu(convolution(x))
            x = x * frame_mask(frame_lengths, x.shape[2])[:, None, :]
        x = self.dropout(self.project(x.transpose(1, 2)))
        padding_mask = ~frame_mask(frame_lengths, x.shape[1])
        # An utterance without a frame would attend to nothing, which is NaN.
        padding_mask = padding_mask & (frame_lengths > 0)[:, None]
        run = self.compiled_layer if self.training else run_layer
        for number, layer in enumerate(self.layers, start=1):
            x = at_layer(number, run(layer, x, padding_mask))
        return frame_lengths
