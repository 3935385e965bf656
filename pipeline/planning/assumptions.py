"""What a plan takes for granted, in sentences that are printed with it."""

from __future__ import annotations

from interkd.pipeline.planning.run_speed import RunSpeed
from interkd.pipeline.planning.settings import (
    MEASURED_BPE_BYTES,
    MEASURED_BYTES,
    PAYLOAD_BYTES,
    UTTERANCE_BYTES,
    PlanConfig,
)


def assumptions_of(
    config: PlanConfig, *, utterances: int | None, run: RunSpeed | None
) -> tuple[str, ...]:
    """A sentence each, of the store, the teacher and the students.

    Args:
        config: What is planned.
        utterances: How many the corpus has, where known.
        run: How fast the students' model run was, where the plan rests on one.
    """
    return (
        *_of_store(config, utterances),
        *_of_teacher(config),
        *_of_students(config, run),
    )


def _of_store(config: PlanConfig, utterances: int | None) -> list[str]:
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


def _of_teacher(config: PlanConfig) -> list[str]:
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


def _of_students(config: PlanConfig, run: RunSpeed | None) -> list[str]:
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
