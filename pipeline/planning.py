"""What distilling will cost before it is paid: the store, the teacher's hours and the students'.

H hours of audio, E epochs, S students; a teacher that hears `teacher_rtf` seconds of audio a GPU
second, and students that train on `student_speed` of them:

    forward = H / teacher_rtf            caching = cache_overhead * forward
    student = E * H / student_speed
    cached  = caching + S * student
    online  = S * E * forward + S * student

So the cache has paid once S * E is above `cache_overhead`, whatever the hours and the speeds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from interkd.kernels.errors import ConfigError
from interkd.pipeline.cache.plan import plan_parts
from interkd.pipeline.config import in_range
from interkd.pipeline.corpus.manifest import Manifest
from interkd.pipeline.run_speed import RunSpeed, read_corpus, read_run_speed

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


@dataclass(frozen=True, kw_only=True)
class StudentsCost:
    """What so many students cost in all, with a cache and without.

    Attributes:
        students: How many.
        cached_hours: GPU hours of stage one and of all students.
        online_hours: GPU hours where the teacher runs in every epoch of every student.
        saved_hours: Their difference; below 0 where the cache does not pay.
        factor: Hours online over hours with the cache.
        break_even_epochs: Epochs of each student at which both cost the same.
        cached_price: The same in money, where a GPU hour has a price.
        online_price: Likewise.
        saved_price: Likewise.
    """

    students: int
    cached_hours: float
    online_hours: float
    saved_hours: float
    factor: float
    break_even_epochs: float
    cached_price: float | None
    online_price: float | None
    saved_price: float | None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The costs, and what they rest on.

    Attributes:
        hours: Length of the corpus.
        utterances: How many, where known.
        frames: Frames of the whole corpus.
        bytes_per_frame: Of the whole store.
        store_bytes: Size of the store.
        parts: Units of work.
        files: Files of the store.
        inodes: Files and folder.
        teacher_rtf: Seconds of audio that the teacher hears in a GPU second.
        forward_hours: GPU hours of the teacher's forward pass over the corpus.
        caching_hours: GPU hours of stage one.
        student_speed: Seconds of audio that a student trains on in a GPU second.
        epochs: Of each student.
        student_hours: GPU hours of each student with a cached teacher.
        costs: In all, for each number of students.
        break_even_epochs: Epochs of a single student at which both ways cost the same.
        pays_from_epoch: Fewest epochs of a single student for which the cache is cheaper.
        gpu_price: Of one GPU hour, or None.
        assumptions: Everything that was taken for granted, a sentence each.
    """

    hours: float
    utterances: int | None
    frames: int
    bytes_per_frame: float
    store_bytes: int
    parts: int
    files: int
    inodes: int
    teacher_rtf: float
    forward_hours: float
    caching_hours: float
    student_speed: float
    epochs: int
    student_hours: float
    costs: tuple[StudentsCost, ...]
    break_even_epochs: float
    pays_from_epoch: int
    gpu_price: float | None
    assumptions: tuple[str, ...]


def make_plan(config: PlanConfig) -> Plan:
    """Works out what caching a teacher and training students will cost.

    Args:
        config: The corpus, the speeds and the numbers of students.

    Returns:
        The costs and their assumptions.

    Raises:
        ConfigError: If the manifest or the training run cannot be read.
    """
    manifest, hours, utterances = None, config.hours or math.nan, config.utterances
    if config.manifest is not None:
        manifest = read_corpus(config.manifest)
        hours, utterances = manifest.total_seconds / 3600, len(manifest)
    frames = round(hours * 3_600_000 / config.frame_shift_ms)
    store_bytes = _store_bytes(config, frames, hours, utterances)
    parts = _count_parts(config, hours, utterances, manifest)
    if config.teacher_timing is not None:
        teacher_rtf = config.teacher_timing[0] / config.teacher_timing[1]
    else:
        teacher_rtf = config.teacher_rtf or math.nan
    run = None if config.student_run is None else read_run_speed(config.student_run, manifest)
    student_speed = run.audio_per_second if run is not None else config.student_speed or math.nan
    epochs = config.epochs or (DEFAULT_EPOCHS if run is None else run.epochs)
    forward = hours / teacher_rtf
    caching = config.cache_overhead * forward
    student = epochs * hours / student_speed

    def cost(students: int) -> StudentsCost:
        cached = caching + students * student
        online = students * (epochs * forward + student)
        price = config.gpu_price
        return StudentsCost(
            students=students,
            cached_hours=cached,
            online_hours=online,
            saved_hours=online - cached,
            factor=online / cached,
            break_even_epochs=config.cache_overhead / students,
            cached_price=None if price is None else price * cached,
            online_price=None if price is None else price * online,
            saved_price=None if price is None else price * (online - cached),
        )

    return Plan(
        hours=hours,
        utterances=utterances,
        frames=frames,
        bytes_per_frame=store_bytes / frames,
        store_bytes=round(store_bytes),
        parts=parts,
        files=parts + 2,
        inodes=parts + 3,
        teacher_rtf=teacher_rtf,
        forward_hours=forward,
        caching_hours=caching,
        student_speed=student_speed,
        epochs=epochs,
        student_hours=student,
        costs=tuple(map(cost, config.students)),
        break_even_epochs=config.cache_overhead,
        pays_from_epoch=math.floor(config.cache_overhead) + 1,
        gpu_price=config.gpu_price,
        assumptions=(
            *_store_assumptions(config, utterances),
            *_teacher_assumptions(config),
            *_student_assumptions(config, run),
        ),
    )


def _store_bytes(config: PlanConfig, frames: int, hours: float, utterances: int | None) -> float:
    if config.bytes_per_frame is not None:
        return config.bytes_per_frame * frames
    units = hours * 3_600_000 / MEASURED_SHIFT_MS
    if utterances is None:
        return MEASURED_BYTES * units
    return PAYLOAD_BYTES * units + UTTERANCE_BYTES * utterances


def _count_parts(
    config: PlanConfig, hours: float, utterances: int | None, manifest: Manifest | None
) -> int:
    """As `cache-teacher` plans them; without a manifest, as if utterances were short."""
    if manifest is not None:
        ids = [utterance.utt_id for utterance in manifest.utterances]
        seconds = [utterance.duration for utterance in manifest.utterances]
        return len(plan_parts(ids, seconds, 60 * config.part_minutes))
    parts = max(1, round(60 * hours / config.part_minutes))
    return parts if utterances is None else min(parts, utterances)


def _store_assumptions(config: PlanConfig, utterances: int | None) -> list[str]:
    files = f"A part is {config.part_minutes:g} minutes of audio and one file; two more and the"
    files += " folder make the store."
    if config.bytes_per_frame is not None:
        size = f"The whole store takes {config.bytes_per_frame:g} bytes a frame, as given."
        return [size, files]
    if utterances is None:
        size = f"The whole store takes {MEASURED_BYTES} bytes a 20 ms, everything counted"
    else:
        size = f"The store takes {PAYLOAD_BYTES} bytes a 20 ms and {UTTERANCE_BYTES} an utterance"
    size += " (measured: characters, mass 0.99, angle5, docs/results.md;"
    return [f"{size} 1,000 BPE tokens: {MEASURED_BPE_BYTES} a 20 ms in all).", files]


def _teacher_assumptions(config: PlanConfig) -> list[str]:
    if config.teacher_timing is not None:
        audio, seconds = config.teacher_timing
        speed = f"The teacher hears {audio:,.6g} s of audio in {seconds:,.6g} GPU seconds, as given"
    else:
        speed = f"The teacher hears {config.teacher_rtf:,.6g} s of audio a GPU second, as given"
    if config.cache_overhead > 1:
        speed += f"; stage one takes {config.cache_overhead:g} times as long."
        return [speed]
    return [
        f"{speed}; stage one takes no longer.",
        "So if that is stage one's speed, the teacher online is charged for decoding and writing"
        " too: the bare forward pass was 2 to 3 times as fast on an H100 (--cache-overhead).",
    ]


def _student_assumptions(config: PlanConfig, run: RunSpeed | None) -> list[str]:
    if run is None:
        speed = f"A student trains on {config.student_speed:,.6g} s of audio a GPU second, as given"
    else:
        speed = (
            f"A student trains on {run.audio_per_second:,.0f} s of audio a GPU second, as"
            f" {config.student_run} did ({run.hours:,.2f} h in {run.seconds:,.0f} s)"
        )
    lines = [f"{speed}, on one GPU; online just as fast, the teacher's time added."]
    if run is not None and not run.is_cached:
        lines.append("That run read no teacher cache, so its steps had no distillation in them.")
    return [
        *lines,
        "Online, the teacher hears the whole corpus in every epoch of every student.",
        "Not counted: prepare, validation, scoring, and runs that are made again.",
    ]
