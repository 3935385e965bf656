"""What is to be planned, and what was measured of stores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from interkd.kernels.errors import ConfigError
from interkd.pipeline.config import in_range

# Whole stores of docs/results.md, in bytes a 20 ms of audio. The first is of utterances of 10.8 s
# on average; where a corpus' utterances are counted, its two parts are summed instead.
MEASURED_BYTES = 0.886
MEASURED_BPE_BYTES = 0.832
PAYLOAD_BYTES = 0.761
UTTERANCE_BYTES = 67
MEASURED_SHIFT_MS = 20.0

DEFAULT_EPOCHS = 50


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """What is to be planned.

    Attributes:
        manifest: The corpus, from `interkd prepare`. Either this or `hours`.
        hours: Length of the corpus.
        utterances: How many it has, with `hours`; None if unknown.
        teacher_rtf: Seconds of audio that the teacher hears in a GPU second. Either this or ...
        teacher_timing: ... seconds of audio and the GPU seconds that it took to hear them.
        cache_overhead: Time of stage one over that: 1.0 for a teacher timed in stage one itself.
        frame_shift_ms: Of teacher and student.
        bytes_per_frame: Of the whole store; None takes what was measured (docs/results.md).
        part_minutes: Audio in a part of the store.
        student_speed: Seconds of audio that a student trains on in a GPU second. Either this ...
        student_run: ... or the folder of a training run to take it from.
        epochs: Of each student; None takes the run's, else 50.
        students: Numbers of students to compare.
        gpu_price: Of one GPU hour, in any currency; None leaves money out.

    Raises:
        ConfigError: For a value out of range, or for both or neither of two that exclude each
            other.
    """

    manifest: Path | None = None
    hours: float | None = None
    utterances: int | None = None
    teacher_rtf: float | None = None
    teacher_timing: tuple[float, ...] | None = None
    cache_overhead: float = 1.0
    frame_shift_ms: float = MEASURED_SHIFT_MS
    bytes_per_frame: float | None = None
    part_minutes: float = 60.0
    student_speed: float | None = None
    student_run: Path | None = None
    epochs: int | None = None
    students: tuple[int, ...] = (1, 5, 20)
    gpu_price: float | None = None

    def __post_init__(self) -> None:
        for one, other in (
            ("manifest", "hours"),
            ("teacher_rtf", "teacher_timing"),
            ("student_speed", "student_run"),
        ):
            given = [name for name in (one, other) if getattr(self, name) is not None]
            if len(given) != 1:
                raise ConfigError(
                    f"plan of {one} and {other}",
                    expected="exactly one of the two",
                    got=" and ".join(given) or "neither",
                )
        if self.utterances is not None and self.manifest is not None:
            raise ConfigError("plan.utterances", expected="none beside a manifest, which has them")
        if self.teacher_timing is not None and len(self.teacher_timing) != 2:
            raise ConfigError(
                "plan.teacher_timing",
                expected="seconds of audio and seconds",
                got=self.teacher_timing,
            )
        if not self.students:
            raise ConfigError("plan.students", expected="at least one number of students", got="")
        positive = ("hours", "teacher_rtf", "teacher_timing", "frame_shift_ms", "bytes_per_frame")
        in_range("plan.", self, *positive, "part_minutes", "student_speed", "gpu_price", above=0)
        in_range("plan.", self, "utterances", "epochs", "students", "cache_overhead", at_least=1)
