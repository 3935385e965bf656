"""CTC loss and gradient on the CPU, numba beside torch in one run: `make bench`."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numba
import torch

from interkd import __version__
from interkd.kernels.ctc import ctc_loss

BATCH, FRAMES, TARGETS, REPEATS = 16, 400, 60, 15
OUT = Path("benchmarks/out/bench_ctc.json")


def measure(step: Callable[[], object]) -> float:
    """One call, in milliseconds."""
    started = time.perf_counter()
    step()
    return 1e3 * (time.perf_counter() - started)


def main() -> None:
    """Prints the table and writes it as JSON."""
    torch.manual_seed(0)
    rows = []
    frame_lengths = torch.full((BATCH,), FRAMES)
    target_lengths = torch.full((BATCH,), TARGETS)
    for vocab_size in (32, 128, 1024):
        logits = torch.randn(BATCH, FRAMES, vocab_size, requires_grad=True)
        targets = torch.randint(1, vocab_size, (BATCH, TARGETS))

        def run(backend: str, x: torch.Tensor = logits, y: torch.Tensor = targets) -> torch.Tensor:
            loss = ctc_loss(x, y, frame_lengths, target_lengths, backend=backend).sum()
            return torch.autograd.grad(loss, x)[0]

        def run_torch(x: torch.Tensor = logits, y: torch.Tensor = targets) -> torch.Tensor:
            loss = torch.nn.functional.ctc_loss(
                x.log_softmax(-1).transpose(0, 1), y, frame_lengths, target_lengths, reduction="sum"
            )
            return torch.autograd.grad(loss, x)[0]

        exact = run("reference")
        errors = {
            "numba": (run("numba") - exact).abs().max().item(),
            "torch": (run_torch() - exact).abs().max().item(),
        }
        assert errors["numba"] < 2e-6, errors
        times: dict[str, list[float]] = {"numba": [], "torch": []}
        for _ in range(REPEATS):  # interleaved, so that both see the same machine
            times["numba"].append(measure(lambda: run("numba")))
            times["torch"].append(measure(run_torch))
        medians = {name: statistics.median(values) for name, values in times.items()}
        ratio = medians["torch"] / medians["numba"]
        rows.append(
            {"V": vocab_size, "ms": medians, "ratio": ratio, "largest_gradient_error": errors}
        )
        print(
            f"V {vocab_size:5d}  numba {medians['numba']:6.2f} ms  torch {medians['torch']:6.2f} ms"
            f"  ratio {ratio:4.1f}  gradient error numba {errors['numba']:.1e}"
            f" torch {errors['torch']:.1e}"
        )
    record = {
        "shape": {"B": BATCH, "T": FRAMES, "U": TARGETS},
        "threads": torch.get_num_threads(),
        "versions": {
            "interkd": __version__,
            "torch": torch.__version__,
            "numba": numba.__version__,
            "python": platform.python_version(),
        },
        "machine": platform.processor() or platform.machine(),
        "rows": rows,
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"written to {OUT}")


if __name__ == "__main__":
    main()
