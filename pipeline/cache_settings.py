"""Stage one's settings, and the teacher that they name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from interkd.pipeline.cache.fingerprint import PRECISIONS, Fingerprint, check_same
from interkd.pipeline.cluster.tasks import IN_PROCESS, ClusterSettings
from interkd.pipeline.config import in_range, one_of
from interkd.pipeline.part_runner import PartRunner
from interkd.pipeline.teachers.load import load_teacher
from interkd.pipeline.teachers.protocol import Teacher


@dataclass(frozen=True, kw_only=True)
class CacheTeacherConfig:
    """Settings of stage one.

    Attributes:
        teacher: SPEC of the teacher, see `teachers.load`.
        manifest: Written by `interkd prepare`.
        out: The store.
        teacher_weights: Local weights of a torchaudio bundle.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: `float32`, or `bfloat16` for autocast.
        top_k: Most tokens kept of a frame, the blank among them.
        mass: Probability that the kept tokens reach.
        quantiser: `angle5`, `angle6`, `angle7` or `angle15`: bits of a stored probability.
        part_minutes: Audio in a part, the unit of work and of loss.
        batch_seconds: Padded audio in a batch; None is 640 on a GPU, 60 on a CPU.
        decode_threads: Threads that decode audio; one a core when None.
        stale_minutes: How long a writer on another host may show no sign of life before the parts
            that it claimed are free again.
        wait: Whether to wait for the parts of other writers and finish the store. Without, this run
            makes what nobody has claimed, and a later one finishes.
        cluster: Where the teacher runs, on CPUs: with `none` in this process.
    """

    teacher: str
    manifest: Path
    out: Path
    teacher_weights: Path | None = None
    device: str = "auto"
    precision: str = "float32"
    top_k: int = 16
    mass: float = 0.99
    quantiser: str = "angle5"
    part_minutes: float = 60.0
    batch_seconds: float | None = None
    decode_threads: int | None = None
    stale_minutes: float = 15.0
    wait: bool = True
    cluster: ClusterSettings = IN_PROCESS

    def __post_init__(self) -> None:
        one_of("precision", self.precision, PRECISIONS)
        in_range("", self, "part_minutes", "batch_seconds", "stale_minutes", above=0)
        in_range("", self, "decode_threads", at_least=1)


def load_runner(config: CacheTeacherConfig, device: torch.device) -> PartRunner:
    """Loads the teacher, ready to run.

    Raises:
        TeacherError: If it cannot be loaded.
    """
    teacher = load_teacher(
        config.teacher,
        device=device,
        precision=getattr(torch, config.precision),
        weights=config.teacher_weights,
    )
    return PartRunner(
        teacher,
        device,
        top_k=config.top_k,
        mass=config.mass,
        quantiser=config.quantiser,
        batch_seconds=config.batch_seconds or (640.0 if device.type == "cuda" else 60.0),
        decode_threads=config.decode_threads,
    )


def load_same_runner(config: CacheTeacherConfig, fingerprint: Fingerprint) -> PartRunner:
    """Loads a worker's teacher, and refuses another one than the store was begun with."""
    runner = load_runner(config, torch.device("cpu"))
    what = f"a worker of {config.out} found another teacher"
    check_same(
        fingerprint,
        fingerprint_of(config, runner.teacher),
        what=what,
        remedy="let every node see the same files",
    )
    return runner


def fingerprint_of(config: CacheTeacherConfig, teacher: Teacher) -> Fingerprint:
    """What a store of the teacher with these settings is begun with."""
    info = teacher.info
    return Fingerprint(
        teacher=info.name,
        weights_sha256=info.weights_sha256,
        tokens=info.tokens,
        blank_index=info.blank_index,
        sample_rate=info.sample_rate,
        frame_formula=info.frame_formula,
        top_k=config.top_k,
        mass=config.mass,
        quantiser=config.quantiser,
        precision=config.precision,
    )
