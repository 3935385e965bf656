"""A CTC student: features, encoder, intermediate heads and the final head."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from interkd.kernels.errors import ConfigError
from interkd.pipeline.frames import FrameFormula
from interkd.pipeline.students.config import StudentConfig
from interkd.pipeline.students.conformer import ConformerEncoder
from interkd.pipeline.students.features import LogMel
from interkd.pipeline.students.jasper import JasperEncoder


@dataclass(frozen=True)
class StudentOutput:
    """What a student says of a batch.

    Attributes:
        logits: One `(B, T, V)` a head, the final head last.
        frame_lengths: Valid frames, int64 `(B,)`.
    """

    logits: tuple[Tensor, ...]
    frame_lengths: Tensor


class Student(nn.Module):
    """An encoder with a CTC head after each layer of `head_layers` and after the last layer.

    Args:
        config: Shape of the student.
        vocab_size: V, with the blank.
    """

    def __init__(self, config: StudentConfig, vocab_size: int) -> None:
        super().__init__()
        self.features = LogMel(config.features)
        self.augment: nn.Module = nn.Identity()
        mels = config.features.mels
        self.encoder: ConformerEncoder | JasperEncoder = (
            ConformerEncoder(config.conformer, mels)
            if config.encoder == "conformer"
            else JasperEncoder(config.jasper, mels)
        )
        dims = self.encoder.layer_dims
        intermediate = config.intermediate_layers(len(dims))
        if intermediate and not 1 <= intermediate[0] <= intermediate[-1] < len(dims):
            raise ConfigError(
                "student.head_layers",
                expected=f"layers from 1 to {len(dims) - 1}; the final head is always there",
                got=list(intermediate),
            )
        self.head_layers = (*intermediate, len(dims))
        self.head_names = (*(f"layer{layer}" for layer in intermediate), "final")
        widths = [dims[layer - 1] for layer in self.head_layers]
        if config.shared_heads and len(set(widths)) > 1:
            raise ConfigError(
                "student.shared_heads", expected="head layers of one width", got=widths
            )
        if config.shared_heads:
            head = nn.Linear(widths[0], vocab_size)
            self.heads = nn.ModuleList([head] * len(widths))
        else:
            self.heads = nn.ModuleList(nn.Linear(width, vocab_size) for width in widths)

    @property
    def frame_formula(self) -> FrameFormula:
        """Frames of so many samples."""
        return self.features.formula.then(*self.encoder.formula_steps)

    @property
    def weight_counts(self) -> tuple[int, ...]:
        """Weights needed to run up to each head, the final head last."""
        layers = self.encoder.layer_weights()
        everything = sum(p.numel() for p in self.encoder.parameters())
        front = everything - sum(layers)
        heads = [sum(p.numel() for p in head.parameters()) for head in self.heads]
        return tuple(
            front + sum(layers[:layer]) + head
            for layer, head in zip(self.head_layers, heads, strict=True)
        )

    def forward(self, waveforms: Tensor, sample_lengths: Tensor) -> StudentOutput:
        """Logits of every head.

        Args:
            waveforms: float32 `(B, N)` in [-1, 1].
            sample_lengths: Valid samples, int64 `(B,)`.

        Returns:
            Logits of all heads and the frame lengths.
        """
        features, feature_lengths = self.features(waveforms, sample_lengths)
        if self.training:
            features = self.augment(features)
        outputs, frame_lengths = self.encoder(features, feature_lengths)
        logits = tuple(
            head(outputs[layer - 1])
            for layer, head in zip(self.head_layers, self.heads, strict=True)
        )
        return StudentOutput(logits, frame_lengths)
