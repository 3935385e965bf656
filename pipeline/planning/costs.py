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

from interkd.pipeline.cache.plan import plan_parts
from interkd.pipeline.corpus.manifest import Manifest
from interkd.pipeline.planning.assumptions import assumptions_of
from interkd.pipeline.planning.run_speed import read_corpus, read_run_speed
from interkd.pipeline.planning.settings import (
    DEFAULT_EPOCHS,
    MEASURED_BYTES,
    MEASURED_SHIFT_MS,
    PAYLOAD_BYTES,
    UTTERANCE_BYTES,
    PlanConfig,
)


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
        assumptions=assumptions_of(config, utterances=utterances, run=run),
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
