"""What a student is made of: features, encoder, heads."""

from __future__ import annotations

from dataclasses import dataclass, field

from interkd.kernels.errors import ConfigError
from interkd.pipeline.config import in_range, one_of

ENCODERS = ("conformer", "jasper-mini")


@dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """Log-mel features, normalised to zero mean and unit variance per utterance and band."""

    sample_rate: int = 16000
    mels: int = 80
    window_ms: float = 25.0
    hop_ms: float = 10.0

    def __post_init__(self) -> None:
        in_range("student.features.", self, "sample_rate", "mels", "window_ms", "hop_ms", above=0)


@dataclass(frozen=True, kw_only=True)
class ConformerConfig:
    """A Conformer of torchaudio's layers behind a strided convolution.

    Attributes:
        stride: Feature frames a student frame: 1, 2, 4 or 8.
        subsampling_dim: Channels of the strided front end; `dim` when None.
    """

    dim: int = 168
    layers: int = 12
    attention_heads: int = 4
    feed_forward_dim: int = 672
    convolution_kernel: int = 31
    dropout: float = 0.1
    stride: int = 2
    subsampling_dim: int | None = None

    def __post_init__(self) -> None:
        section = "student.conformer."
        sizes = ("dim", "layers", "attention_heads", "feed_forward_dim", "subsampling_dim")
        in_range(section, self, *sizes, "convolution_kernel", at_least=1)
        in_range(section, self, "dropout", at_least=0, below=1)
        if self.dim % self.attention_heads:
            raise ConfigError(
                f"{section}dim",
                expected=f"a multiple of attention_heads ({self.attention_heads})",
                got=self.dim,
            )
        if self.convolution_kernel % 2 == 0:
            raise ConfigError(
                f"{section}convolution_kernel", expected="odd", got=self.convolution_kernel
            )


@dataclass(frozen=True, kw_only=True)
class JasperConfig:
    """Jasper-Mini: depthwise-separable 1-D convolutions in residual blocks.

    The defaults are OpenSeq2Seq's public jasper-Mini: 1 stem, 10 blocks of 3, 2 layers at the end.

    Attributes:
        stride: Feature frames a student frame.
        block_channels: Output channels of each block; as long as `block_kernels`.
        last_channels: Channels of the dilated layer and of the pointwise layer at the end.
    """

    stride: int = 2
    stem_channels: int = 256
    stem_kernel: int = 11
    block_channels: tuple[int, ...] = (256, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    block_kernels: tuple[int, ...] = (11, 11, 13, 13, 17, 17, 21, 21, 25, 25)
    repeat: int = 3
    dilated_kernel: int = 29
    last_channels: tuple[int, ...] = (512, 1024)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        section = "student.jasper."
        in_range(section, self, "stride", "stem_channels", "stem_kernel", "repeat", at_least=1)
        in_range(section, self, "block_channels", "block_kernels", "last_channels", at_least=1)
        in_range(section, self, "dilated_kernel", at_least=1)
        if any(kernel % 2 == 0 for kernel in self.block_kernels):
            raise ConfigError(
                f"{section}block_kernels", expected="odd sizes", got=list(self.block_kernels)
            )
        in_range(section, self, "dropout", at_least=0, below=1)


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """A student: features, one encoder, intermediate CTC heads and the final one.

    Attributes:
        encoder: `conformer` or `jasper-mini`; the section of that name holds its shape.
        head_layers: Layers (counted from 1) with a CTC head of their own, rising. None takes the
            usual ones: a third and two thirds of a Conformer, 18, 24 and 30 of Jasper-Mini's 33.
        last_layer: The encoder ends after this layer, where the final head is; None: after all.
        shared_heads: One linear layer for all heads (their layers must have one width).
        self_conditioned: Feeds the intermediate heads' posteriors back into the encoder through one
            linear layer (Nozaki & Komatsu 2021); then the intermediate heads are part of the model
            that ships. With `shared_heads` it is the paper's form.
    """

    encoder: str = "conformer"
    head_layers: tuple[int, ...] | None = None
    last_layer: int | None = None
    shared_heads: bool = False
    self_conditioned: bool = False
    features: FeatureConfig = field(default_factory=FeatureConfig)
    conformer: ConformerConfig = field(default_factory=ConformerConfig)
    jasper: JasperConfig = field(default_factory=JasperConfig)

    def __post_init__(self) -> None:
        one_of("student.encoder", self.encoder, ENCODERS)
        if self.head_layers and list(self.head_layers) != sorted(set(self.head_layers)):
            raise ConfigError(
                "student.head_layers", expected="rising layer numbers", got=list(self.head_layers)
            )

    @property
    def dropout(self) -> float:
        """Of the encoder in use."""
        return (self.conformer if self.encoder == "conformer" else self.jasper).dropout

    def intermediate_layers(self, layers: int) -> tuple[int, ...]:
        """The layers with an intermediate head, of an encoder of so many layers."""
        if self.head_layers is not None:
            return self.head_layers
        shares = (1 / 3, 2 / 3) if self.encoder == "conformer" else (18 / 33, 24 / 33, 30 / 33)
        return tuple(sorted({max(1, round(layers * share)) for share in shares} - {layers}))
