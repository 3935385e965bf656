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
        self.config = config
        self.features = LogMel(config.features)
        self.augment: nn.Module = nn.Identity()
        mels = config.features.mels
        self.encoder: ConformerEncoder | JasperEncoder = (
            ConformerEncoder(config.conformer, mels, last_layer=config.last_layer)
            if config.encoder == "conformer"
            else JasperEncoder(config.jasper, mels, last_layer=config.last_layer)
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
        self.feedback = nn.ModuleList()
        if config.self_conditioned:
            if not intermediate:
                raise ConfigError(
                    "student.self_conditioned", expected="intermediate heads", got="none"
                )
            if len(set(widths[:-1])) > 1:
                raise ConfigError(
                    "student.self_conditioned",
                    expected="intermediate head layers of one width",
                    got=widths[:-1],
                )
            self.feedback.extend(nn.Linear(vocab_size, width) for width in widths[:-1][:1])

    @property
    def frame_formula(self) -> FrameFormula:
        """Frames of so many samples."""
        return self.features.formula.then(*self.encoder.formula_steps)

    def compile_layers(self) -> None:
        """Compiles what the encoder's layers have in common, for training: a minute, once."""
        self.encoder.compile_layers()

    @property
    def weight_counts(self) -> tuple[int, ...]:
        """Weights needed to run up to each head, the final head last."""
        layers = self.encoder.layer_weights()
        everything = sum(p.numel() for p in self.encoder.parameters())
        front = everything - sum(layers)
        heads = [sum(p.numel() for p in head.parameters()) for head in self.heads]
        # Fed back, what earlier heads say is part of what a later one needs.
        fed_back = sum(p.numel() for p in self.feedback.parameters())
        counts = []
        for place, (layer, head) in enumerate(zip(self.head_layers, heads, strict=True)):
            count = front + sum(layers[:layer]) + head
            if self.feedback and place:
                count += fed_back + (0 if self.config.shared_heads else sum(heads[:place]))
            counts.append(count)
        return tuple(counts)

    def forward(
        self, waveforms: Tensor, sample_lengths: Tensor, *, views: int = 1
    ) -> StudentOutput:
        """Logits of every head.

        Args:
            waveforms: float32 `(B, N)` in [-1, 1].
            sample_lengths: Valid samples, int64 `(B,)`.
            views: Times that each utterance is recognised, each time augmented anew: the batch is
                `views * B` then, all utterances of one view after those of the one before.

        Returns:
            Logits of all heads and the frame lengths.
        """
        return StudentOutput(
            *self.recognise(*self.augmented_features(waveforms, sample_lengths, views=views))
        )

    def augmented_features(
        self, waveforms: Tensor, sample_lengths: Tensor, *, views: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Features, augmented in training: what `recognise` takes; arguments as in `forward`."""
        features, feature_lengths = self.features(waveforms, sample_lengths)
        if views > 1:
            features = features.repeat(views, 1, 1)
            feature_lengths = feature_lengths.repeat(views)
        return self.augment(features) if self.training else features, feature_lengths

    def recognise(
        self, features: Tensor, feature_lengths: Tensor
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Encoder and heads.

        Args:
            features: float32 `(B, F, T')`, zero in the padding.
            feature_lengths: int64 `(B,)`.

        Returns:
            Logits `(B, T, V)` of every head, and frame lengths int64 `(B,)`.
        """
        logits: list[Tensor] = []

        def at_layer(layer: int, x: Tensor) -> Tensor:
            if layer not in self.head_layers:
                return x
            scores = self.heads[len(logits)](x)
            logits.append(scores)
            if not self.feedback or len(logits) == len(self.heads):
                return x
            # Nozaki & Komatsu 2021, eq. 9: the posteriors, through one layer, join the encoder.
            fed_back: Tensor = self.feedback[0](scores.softmax(2))
            return x + fed_back.to(x.dtype)

        frame_lengths = self.encoder(features, feature_lengths, at_layer)
        return tuple(logits), frame_lengths
