"""Settings of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from interkd.kernels.errors import ConfigError
from interkd.pipeline.config import in_range, one_of
from interkd.pipeline.students.config import StudentConfig
from interkd.pipeline.training.recipes import ObjectiveConfig

OPTIMISERS = ("adamw", "novograd")
SCHEDULES = ("cosine", "linear", "constant")
PRECISIONS = ("float32", "bfloat16")
STOP_SIGNALS = ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is trained on.

    Attributes:
        train_manifest: Written by `interkd prepare`.
        dev_manifest: Decides which checkpoint is best.
        tokenizer: Folder or tokens.txt; the folder of the training manifest when None.
        batch_seconds: Padded audio in a batch: longest utterance times utterances.
        batches_a_step: Batches whose gradients make one step, over all GPUs; None for one a GPU.
            With more batches than GPUs each takes several.
        buckets: Length classes from which batches are drawn.
        device_memory_gb: Memory of the GPU for the training set's samples; a set that does not fit
            is copied batch by batch instead.
        audio_memory_gb: Host memory for decoded audio; what does not fit is decoded each epoch.
        store_memory_gb: Host memory for the teacher cache; a larger one is read part by part, the
            batches drawn from half as many parts at a time as fit.
        prefetch_batches: Batches decoded ahead.
        decode_threads: Threads that decode audio.
    """

    train_manifest: Path
    dev_manifest: Path
    tokenizer: Path | None = None
    batch_seconds: float = 320.0
    batches_a_step: int | None = None
    buckets: int = 20
    device_memory_gb: float = 8.0
    audio_memory_gb: float = 4.0
    store_memory_gb: float = 8.0
    prefetch_batches: int = 4
    decode_threads: int = 2

    def __post_init__(self) -> None:
        in_range("data.", self, "batch_seconds", above=0)
        in_range("data.", self, "buckets", "batches_a_step", at_least=1)
        memory = ("device_memory_gb", "audio_memory_gb", "store_memory_gb")
        in_range("data.", self, *memory, "prefetch_batches", "decode_threads", at_least=0)


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """Optimiser and learning-rate schedule.

    Attributes:
        name: `adamw` or `novograd`.
        learning_rate: Peak.
        schedule: How it falls after the warmup, over the epochs: `cosine`, `linear`, `constant`.
        warmup_steps: Linear rise from 0.
        grad_clip: Largest norm of the whole gradient; None for none.
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    betas: tuple[float, ...] = (0.9, 0.98)
    weight_decay: float = 1e-2
    schedule: str = "cosine"
    warmup_steps: int = 500
    grad_clip: float | None = 5.0

    def __post_init__(self) -> None:
        one_of("optimiser.name", self.name, OPTIMISERS)
        one_of("optimiser.schedule", self.schedule, SCHEDULES)
        if len(self.betas) != 2:
            raise ConfigError("optimiser.betas", expected="two numbers", got=list(self.betas))
        in_range("optimiser.", self, "learning_rate", above=0)
        in_range("optimiser.", self, "betas", at_least=0, below=1)
        in_range("optimiser.", self, "weight_decay", "warmup_steps", "grad_clip", at_least=0)


@dataclass(frozen=True, kw_only=True)
class SpecAugmentConfig:
    """SpecAugment masks (Park et al. 2019); the paper's Inter-KD setting is none.

    Attributes:
        frequency_width: Largest width of a frequency mask, in bands.
        time_width: Largest width of a time mask, in feature frames.
        time_share: Largest share of the padded batch's frames under one time mask.
    """

    frequency_masks: int = 2
    frequency_width: int = 27
    time_masks: int = 5
    time_width: int = 40
    time_share: float = 0.2

    def __post_init__(self) -> None:
        counts = ("frequency_masks", "frequency_width", "time_masks", "time_width")
        in_range("spec_augment.", self, *counts, at_least=0)
        in_range("spec_augment.", self, "time_share", at_least=0, at_most=1)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run: `train-student` and `train-teacher` share it.

    Attributes:
        out: The run's folder.
        store: Teacher cache; None for objectives without a teacher.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: Autocast type of the forward pass; the loss is float32 always.
        compile: Compiles what the encoder's layers share with torch.compile, where no kernel of
            interkd does it.
        cuda_graphs: Replays each shape of batch as one CUDA graph, so that a small student does
            not wait for the host. Batches have few shapes then: utterances are padded to their
            bucket's longest, on a CPU too, where there are no graphs.
        max_minutes: Stops after so much training time, for comparisons at equal cost.
        average_epochs: Averages the weights of so many last epochs at the end; 0 for none.
        checkpoint_minutes: A checkpoint at least so often, besides one an epoch.
        dev_every: Validates after every so many epochs, and after the last.
        stop_signal: On this signal the run writes a checkpoint at the next step and exits with 3;
            `--resume` goes on. NCCL catches SIGUSR1 in some set-ups, hence a setting.
    """

    data: DataConfig
    out: Path
    store: Path | None = None
    student: StudentConfig = field(default_factory=StudentConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    spec_augment: SpecAugmentConfig | None = None
    epochs: int = 50
    seed: int = 1
    device: str = "auto"
    precision: str = "float32"
    compile: bool = False
    cuda_graphs: bool = False
    max_minutes: float | None = None
    average_epochs: int = 0
    checkpoint_minutes: float = 10.0
    dev_every: int = 1
    stop_signal: str = "SIGUSR2"

    def __post_init__(self) -> None:
        one_of("precision", self.precision, PRECISIONS)
        one_of("stop_signal", self.stop_signal, STOP_SIGNALS)
        in_range("", self, "epochs", "dev_every", at_least=1)
        in_range("", self, "average_epochs", "checkpoint_minutes", at_least=0)
        in_range("", self, "max_minutes", above=0)
        in_range("", self, "seed", at_least=0, below=2**63)
        if self.objective.views > 1 and not (self.spec_augment or self.student.dropout):
            raise ConfigError(
                "two views of an utterance are the same without augmentation and dropout",
                expected="a section spec_augment, or dropout above 0",
                got="neither",
            )
