"""What the loss costs of a training step: Jasper-Mini with three intermediate heads, on a GPU.

The same step with CTC heads alone (`inter-ctc`), with distillation (`inter-kd`), with the losses
of torch's own operations instead, and without any loss, in turns in one run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_ctc_distill import measure
from kernels.machine import describe
from kernels.problems import Shape, make_example

from interkd.pipeline.students.config import FeatureConfig, StudentConfig
from interkd.pipeline.students.model import Student
from interkd.pipeline.training.objective import Objective
from interkd.pipeline.training.recipes import ObjectiveConfig


def main() -> None:
    """Prints milliseconds a step and the loss's share, and writes them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--vocab-size", type=int, default=29)
    parser.add_argument("--targets", type=int, default=160)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/bench_student_step.json"))
    options = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device(options.device)
    cuda = device.type == "cuda"
    student = Student(
        StudentConfig(encoder="jasper-mini", features=FeatureConfig(mels=64)), options.vocab_size
    ).to(device)
    samples = int(16000 * options.seconds)
    waveforms = 0.1 * torch.randn(options.batch, samples, device=device)
    sample_lengths = torch.full((options.batch,), samples, device=device)
    with torch.no_grad():
        frames = student(waveforms, sample_lengths).logits[0].shape[1]
    shape = Shape(
        len(student.head_names), options.batch, frames, options.vocab_size, options.targets
    )
    example = make_example(shape, device)
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-4)

    def step(recipe: str | None, backend: str = "auto") -> Callable[[int], Any]:
        objective = Objective(
            ObjectiveConfig(recipe=recipe or "ctc"),
            student.head_names,
            0,
            check_values=not cuda,
            backend=backend,
        )
        teacher = example.teacher if recipe == "inter-kd" else None

        def run(_: int) -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=options.bfloat16):
                output = student(waveforms, sample_lengths)
            if recipe is None:
                total = sum(logits.float().mean() for logits in output.logits)
            else:
                total = objective(
                    output,
                    example.targets,
                    example.target_lengths,
                    teacher,
                    output.frame_lengths if teacher else None,
                ).total
            optimiser.zero_grad(set_to_none=True)
            total.backward()
            optimiser.step()

        return run

    runs = {
        "without a loss": step(None),
        "inter-ctc": step("inter-ctc"),
        "inter-kd": step("inter-kd"),
        "inter-ctc, torch": step("inter-ctc", "torch"),
        "inter-kd, torch": step("inter-kd", "torch"),
    }
    times = measure(runs, options.repeats, cuda)
    bare = times["without a loss"]
    for name, ms in times.items():
        print(f"{name}: {ms:.2f} ms, loss {100 * (ms - bare) / ms:.1f} % of the step", flush=True)
    print(f"inter-kd / inter-ctc: {times['inter-kd'] / times['inter-ctc']:.3f}")
    record = {
        **describe(device),
        "shape": str(shape),
        "seconds": options.seconds,
        "bfloat16": options.bfloat16,
        "ms": times,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
