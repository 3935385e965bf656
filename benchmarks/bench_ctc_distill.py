"""The fused loss beside what else computes it, forward and backward, in one run: `make bench`.

On a CPU numba beside torch; with `--device cuda` Triton beside torch eager, torch.compile, and the
time that the GPU needs only to move the bytes. Peers that compute CTC alone are timed on that half.
Equality is asserted before anything is timed. docs/results.md has the tables.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from kernels.machine import describe
from kernels.peers import cudnn_ctc, optax_ctc
from kernels.problems import GRADIENT_TOLERANCE, Example, Shape, make_example
from torch import Tensor

from interkd.kernels.ctc import ctc_loss
from interkd.kernels.ctc_distill import ctc_distill_loss

CPU_SHAPES = tuple(
    Shape(heads=heads, batch=16, frames=400, vocab_size=vocab_size, targets=60)
    for heads in (1, 4)
    for vocab_size in (32, 128, 1024)
)
CUDA_SHAPES = (
    Shape(heads=4, batch=32, frames=400, vocab_size=32, targets=80),
    Shape(heads=4, batch=32, frames=400, vocab_size=128, targets=80),
    Shape(heads=4, batch=32, frames=400, vocab_size=1024, targets=80),
    Shape(heads=4, batch=32, frames=400, vocab_size=5000, targets=80),
    Shape(heads=4, batch=128, frames=400, vocab_size=1024, targets=80),
    Shape(heads=4, batch=16, frames=1600, vocab_size=32, targets=300),
)
LAMBDA = 0.25
L2_BYTES = 64 << 20
HEAD_START_CYCLES = 12_000_000  # some 6 ms


def torch_loss(example: Example, heads: list[Tensor]) -> Tensor:
    """What one writes without a kernel: log_softmax, ctc_loss and a gathered bucket KL a head."""
    wide = torch.promote_types(heads[0].dtype, torch.float32)
    total = heads[0].new_zeros((), dtype=wide)
    for logits in heads:
        log_probs = logits.to(wide).log_softmax(-1)
        total = total + torch.nn.functional.ctc_loss(
            log_probs.transpose(0, 1),
            example.targets,
            example.frame_lengths,
            example.target_lengths,
            reduction="sum",
        )
        kept = log_probs.flatten(0, 1)[example.owner, example.tokens]
        log_q = log_probs.new_zeros(len(example.tail)).index_add(0, example.owner, kept.exp())
        log_q = (1 - log_q).clamp(min=1e-12).log()
        cross = (example.probs * kept).sum() + (example.tail * log_q).sum()
        total = total + LAMBDA * (example.negative_entropy - cross)
    return total


def fused_loss(example: Example, heads: list[Tensor], backend: str = "auto") -> Tensor:
    """The same from this project's kernels."""
    return ctc_distill_loss(
        heads,
        example.targets,
        example.frame_lengths,
        example.target_lengths,
        example.teacher,
        distill_weights=[LAMBDA] * len(heads),
        backend=backend,
        check_values=heads[0].is_cpu,
    ).total.sum()


def ctc_alone(example: Example, heads: list[Tensor]) -> Tensor:
    """The CTC half of one head."""
    return ctc_loss(
        heads[0],
        example.targets,
        example.frame_lengths,
        example.target_lengths,
        check_values=heads[0].is_cpu,
    ).sum()


def torch_ctc(example: Example, heads: list[Tensor]) -> Tensor:
    """torch's own CTC of one head."""
    return torch.nn.functional.ctc_loss(
        heads[0].float().log_softmax(-1).transpose(0, 1),
        example.targets,
        example.frame_lengths,
        example.target_lengths,
        reduction="sum",
    )


def gradients(loss: Callable[..., Tensor], example: Example, heads: list[Tensor]) -> list[Tensor]:
    """The gradient on every head that the loss reads."""
    grads = torch.autograd.grad(loss(example, heads), heads, allow_unused=True)
    return [grad for grad in grads if grad is not None]


def measure(
    runs: dict[str, Callable[[int], Any]], repeats: int, cuda: bool, *, queued: bool = False
) -> dict[str, float]:
    """Median milliseconds of each; in turns, a few calls of one at a time.

    The first call of a turn is not counted: on a CPU the other library's threads still spin
    beside it. On a GPU `queued` gives the host a head start, as it has in a training step, so that
    only the device's time counts; without it a short loss waits for its own launches.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        for i in range(3):
            run(i)
    for turn in range(repeats):
        for name, run in runs.items():
            for i in range(5):
                if cuda:
                    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                    torch.cuda.synchronize()
                    if queued:
                        torch.cuda._sleep(HEAD_START_CYCLES)
                    start.record()
                    run(5 * turn + i)
                    end.record()
                    end.synchronize()
                    elapsed = start.elapsed_time(end)
                else:
                    started = time.perf_counter()
                    run(i)
                    elapsed = 1e3 * (time.perf_counter() - started)
                if i:
                    times[name].append(elapsed)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_mebibytes(run: Callable[[int], Any], heads: list[Tensor]) -> float:
    """Most GPU memory of a step beyond what it started with and its gradient."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(0)
    torch.cuda.synchronize()
    gradient = sum(head.numel() * head.element_size() for head in heads)
    return (torch.cuda.max_memory_allocated() - before - gradient) / 2**20


def host_mebibytes(name: str, shape: Shape) -> float:
    """The same of a CPU, in a process of its own: `--memory-of`."""
    command = [
        sys.executable,
        __file__,
        "--memory-of",
        name,
        "--shapes",
        str(CPU_SHAPES.index(shape)),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(result.stdout)


def print_host_mebibytes(name: str, shape: Shape) -> None:
    """Peak resident memory of a warm step beyond what it started with and its gradient."""
    loss = {"interkd": fused_loss, "torch": torch_loss}[name]
    small = make_example(Shape(1, 2, 9, shape.vocab_size, 3), torch.device("cpu"))
    gradients(loss, small, small.logits(torch.float32))  # loads what is loaded once
    example = make_example(shape, torch.device("cpu"))
    heads = example.logits(torch.float32)

    def status(field: str) -> float:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(field)) / 1024

    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forgets the peak so far
    before = status("VmRSS")
    grads = gradients(loss, example, heads)
    size = sum(grad.numel() * grad.element_size() for grad in grads) / 2**20
    print(status("VmHWM") - before - size)


def bench(
    shape: Shape, device: torch.device, dtype: torch.dtype, repeats: int, peers: bool
) -> dict[str, Any]:
    """One row of the table."""
    cuda = device.type == "cuda"
    example = make_example(shape, device)
    size = shape.heads * shape.batch * shape.frames * shape.vocab_size * dtype.itemsize
    copies = 1 if not cuda else max(1, -(-4 * L2_BYTES // size))
    inputs = [example.logits(dtype) for _ in range(copies)]

    ours = gradients(fused_loss, example, inputs[0])
    exact = gradients(
        torch_loss,
        example.to_float64(),
        [h.detach().double().requires_grad_() for h in inputs[0][:1]],
    )
    error = float((ours[0] - exact[0]).abs().max())
    tolerance = GRADIENT_TOLERANCE[dtype]
    assert error <= tolerance, f"{shape}: gradient off by {error}, more than {tolerance}"
    again = gradients(fused_loss, example, inputs[0])
    assert all(map(torch.equal, ours, again)), f"{shape}: not the same twice"
    theirs = gradients(torch_loss, example, inputs[0])
    torch_error = float((theirs[0] - exact[0]).abs().max())
    del exact, again, theirs, ours

    def step(loss: Callable[..., Tensor]) -> Callable[[int], Any]:
        return lambda i: gradients(loss, example, inputs[i % copies])

    runs = {"interkd": step(fused_loss), "torch": step(torch_loss)}
    halves = {"interkd": step(ctc_alone), "torch": step(torch_ctc)}
    if cuda:
        runs["bytes"] = lambda i: example.move_bytes(inputs[i % copies])
    if cuda and peers:
        runs["torch.compile"] = step(torch.compile(torch_loss, dynamic=False))
        if peer := cudnn_ctc(example):
            halves["cuDNN"] = step(peer)
    if peers and (peer := optax_ctc(example, inputs[0][0])):
        halves["optax"] = peer
    row = {
        "shape": str(shape),
        "dtype": str(dtype).removeprefix("torch."),
        "ms": measure(runs, repeats, cuda),
        "ctc_of_one_head_ms": measure(halves, repeats, cuda, queued=True),
        "gradient_error": {"interkd": error, "torch": torch_error},
    }
    if not cuda and Path("/proc/self/clear_refs").exists():
        row["extra_mebibytes"] = {
            name: host_mebibytes(name, shape) for name in ("interkd", "torch")
        }
    if cuda:
        row["device_ms"] = measure(runs, repeats, cuda, queued=True)
        row["extra_mebibytes"] = {
            name: peak_mebibytes(runs[name], inputs[0]) for name in ("interkd", "torch")
        }
    return row


def show(row: dict[str, Any]) -> None:
    """A row, and how many times slower than ours each other is."""
    labels = {
        "ms": f"{row['shape']} {row['dtype']}",
        "device_ms": "    launches queued",
        "ctc_of_one_head_ms": "    CTC of one head",
    }
    for what, label in labels.items():
        if what not in row:
            continue
        times = row[what]
        others = ", ".join(
            f"{name} {ms:.3f} ({ms / times['interkd']:.1f}x)"
            for name, ms in times.items()
            if name != "interkd"
        )
        print(f"{label}: interkd {times['interkd']:.3f} ms; {others}", flush=True)
    errors = row["gradient_error"]
    memory = row.get("extra_mebibytes")
    print(
        f"    gradient error {errors['interkd']:.1e}, torch {errors['torch']:.1e}"
        + (f"; memory {memory['interkd']:.0f} MiB, torch {memory['torch']:.0f}" if memory else "")
    )


def main() -> None:
    """Prints the table and writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--no-peers", dest="peers", action="store_false")
    parser.add_argument("--memory-of", choices=("interkd", "torch"))
    parser.add_argument("--shapes", help="numbers of rows to run, such as 0,2")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/bench_ctc_distill.json"))
    options = parser.parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    shapes = CPU_SHAPES if device.type == "cpu" else CUDA_SHAPES
    if options.shapes:
        shapes = tuple(shapes[int(i)] for i in options.shapes.split(","))
    torch.manual_seed(0)
    if options.memory_of:
        print_host_mebibytes(options.memory_of, shapes[0])
        return
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for shape in shapes:
        rows.append(bench(shape, device, dtype, options.repeats, options.peers))
        show(rows[-1])
        record = {**describe(device), "rows": rows}
        options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
