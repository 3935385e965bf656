"""A training step on a GPU: how long, where it goes, and how much of it the GPU is busy.

Students of the experiment (benchmarks/inter_kd), the Conformer with its SpecAugment, one batch of
equal utterances of 12 s, the recipes asked for, gradient clipping and AdamW. Variants: `eager`;
`compiled` layers; `library`, cuDNN's depthwise convolution instead of the kernel; `norms`, Jasper's
norms by torch instead of the kernel; `graph`, replayed as a CUDA graph.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from kernels.machine import describe
from kernels.problems import Shape, make_example
from torch import nn

from interkd.pipeline.students import convolution, jasper
from interkd.pipeline.students.config import ConformerConfig, FeatureConfig, StudentConfig
from interkd.pipeline.students.model import Student, StudentOutput
from interkd.pipeline.training.augmentation import spec_augment
from interkd.pipeline.training.config import OptimiserConfig, SpecAugmentConfig
from interkd.pipeline.training.objective import Objective
from interkd.pipeline.training.optimisers import make_optimiser, set_learning_rate
from interkd.pipeline.training.recipes import RECIPES, ObjectiveConfig
from interkd.pipeline.training.student import trained_student

CONDITIONED = "-conditioned"
STUDENTS = {
    "jasper-mini": StudentConfig(encoder="jasper-mini", features=FeatureConfig(mels=64)),
    "conformer": StudentConfig(conformer=ConformerConfig(dim=160, feed_forward_dim=768)),
}
AUGMENTATION = {
    "conformer": SpecAugmentConfig(
        frequency_masks=2, frequency_width=20, time_masks=4, time_width=40, time_share=0.1
    )
}
VOCAB, TARGETS_A_SECOND = 29, 14


def make_step(
    name: str,
    audio_seconds: float,
    seconds: float,
    recipe: str,
    compiled: bool,
    device: Any,
    dropout: float | None = None,
) -> Callable[[], None]:
    """One step of a fresh student on one batch."""
    torch.manual_seed(0)
    conditioned = recipe not in RECIPES and recipe.endswith(CONDITIONED)
    if conditioned:
        recipe = recipe.removesuffix(CONDITIONED)
    objective_config = ObjectiveConfig(recipe=recipe)
    views = objective_config.views
    settings = STUDENTS[name]
    if dropout is not None:
        settings = replace(
            settings,
            jasper=replace(settings.jasper, dropout=dropout),
            conformer=replace(settings.conformer, dropout=dropout),
        )
    if conditioned:
        settings = replace(settings, self_conditioned=True)
    student = Student(trained_student(settings, objective_config), VOCAB).to(device)
    student.augment = spec_augment(AUGMENTATION.get(name))
    batch, samples = int(audio_seconds / seconds), int(16000 * seconds)
    waveforms = 0.1 * torch.randn(batch, samples, device=device)
    sample_lengths = torch.full((batch,), samples, device=device)
    frames = student.frame_formula.count(samples)
    heads = len(student.head_names)
    example = make_example(
        Shape(heads, views * batch, frames, VOCAB, int(TARGETS_A_SECOND * seconds)), device
    )
    optimiser = make_optimiser(student, OptimiserConfig(learning_rate=1e-4), capturable=True)
    set_learning_rate(optimiser, 1e-4, torch.tensor(1e-4, device=device))
    objective = Objective(
        objective_config, student.head_names, 0, check_values=device.type == "cpu"
    )
    if compiled:
        student.compile_layers()

    def step() -> None:
        features = student.augmented_features(waveforms, sample_lengths, views=views)
        with torch.autocast(device.type, torch.bfloat16):
            output = StudentOutput(*student.recognise(*features))
        terms = objective(
            output,
            example.targets,
            example.target_lengths,
            example.teacher,
            output.frame_lengths,
        )
        optimiser.zero_grad(set_to_none=True)
        terms.total.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        optimiser.step()

    return step


def as_graph(step: Callable[[], None]) -> Callable[[], None]:
    """The step as one CUDA graph."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        step()
    return graph.replay


def clock(step: Callable[[], None], steps: int) -> tuple[float, float]:
    """Milliseconds a step, and milliseconds until the host has asked for it."""
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    asked = time.perf_counter() - start
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start) / steps, 1e3 * asked / steps


def busiest(
    step: Callable[[], None], steps: int, trace: Path | None
) -> tuple[float, list[tuple[str, float, int]]]:
    """Device milliseconds a step, and the kernels that take most of them."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    if trace is not None:
        activities.append(torch.profiler.ProfilerActivity.CPU)
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    if trace is not None:
        profile.export_chrome_trace(str(trace))
    rows = [
        (event.key[:90], event.self_device_time_total / 1e3 / steps, event.count // steps)
        for event in profile.key_averages()
        if event.device_type == torch.autograd.DeviceType.CUDA  # else with the host's once more
        and not event.is_user_annotation
    ]
    rows.sort(key=lambda row: -row[1])
    return sum(row[1] for row in rows), rows[:40]


def _never(_: Any) -> bool:
    return False


def main() -> None:
    """Prints a line a variant and the kernels of the fastest, and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--students", default="jasper-mini,conformer")
    parser.add_argument("--audio-seconds", default="320,768")
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--recipes", default="inter-kd", help="R-conditioned: with such heads")
    parser.add_argument("--dropout", type=float, help="instead of the student's own")
    parser.add_argument(
        "--variants", default="eager-library,eager,eager-graph,compiled,compiled-graph"
    )
    parser.add_argument("--kernels", type=int, default=0, help="print so many of the longest")
    parser.add_argument("--traces", type=Path, help="folder for Chrome traces")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/bench_training.json"))
    options = parser.parse_args()
    device = torch.device("cuda")
    own_depthwise = convolution.has_fast_depthwise
    own_norms = jasper.has_fast_norm_activation
    options.out.parent.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    result = {
        **describe(device),
        "seconds": options.seconds,
        "dropout": options.dropout,
        "runs": records,
    }
    runs = product(
        options.students.split(","),
        options.recipes.split(","),
        map(float, options.audio_seconds.split(",")),
        options.variants.split(","),
    )
    for name, recipe, audio_seconds, variant in runs:
        traits = variant.split("-")
        convolution.has_fast_depthwise = _never if "library" in traits else own_depthwise
        jasper.has_fast_norm_activation = _never if "norms" in traits else own_norms
        torch._dynamo.reset()
        compiled = "compiled" in traits
        started = time.perf_counter()
        step = make_step(
            *(name, audio_seconds, options.seconds, recipe, compiled, device, options.dropout)
        )
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        first = time.perf_counter() - started
        if "graph" in traits:
            step = as_graph(step)
        wall, host = clock(step, options.steps)
        trace = None
        if options.traces is not None:
            options.traces.mkdir(parents=True, exist_ok=True)
            trace = options.traces / f"{name}-{recipe}-{audio_seconds:g}s-{variant}.json.gz"
        busy, kernels = busiest(step, 5, trace)
        peak = torch.cuda.max_memory_allocated() / 2**30
        print(
            f"{name} {recipe} {audio_seconds:g} s {variant}: {wall:.2f} ms a step "
            f"({audio_seconds / wall * 1e3:,.0f} s of audio a second), host {host:.2f}, "
            f"device {busy:.2f}, peak {peak:.1f} GiB, first step {first:.1f} s",
            flush=True,
        )
        for key, ms, count in kernels[: options.kernels]:
            print(f"  {ms:7.3f} ms {count:4d}x  {key}", flush=True)
        records.append(
            {
                "student": name,
                "recipe": recipe,
                "audio_seconds": audio_seconds,
                "variant": variant,
                "ms": wall,
                "host_ms": host,
                "device_ms": busy,
                "peak_gib": peak,
                "first_step_seconds": first,
                "kernels": kernels,
            }
        )
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
