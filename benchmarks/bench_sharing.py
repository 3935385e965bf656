"""How many students fit on one GPU: steps of 1, 2, 4, 8 at once, and how they share it.

Each student is a process that replays its step (bench_training.py) as a CUDA graph. Ways to share:
`processes`, which take turns on the GPU; `mps`, the same under NVIDIA's Multi-Process Service,
whose kernels run side by side; `streams`, all of them in one process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from bench_training import as_graph, make_step
from kernels.machine import describe


def prepare(options: argparse.Namespace) -> Callable[[], None]:
    """A student's step, ready to be replayed."""
    device = torch.device("cuda")
    step = make_step(
        options.student, options.audio_seconds, 12.0, options.recipe, options.compiled, device
    )
    step()
    replay = as_graph(step)
    replay()
    torch.cuda.synchronize()
    return replay


def steps_a_second(replays: list[Callable[[], None]], seconds: float) -> float:
    """Steps of all of them together, each on a stream of its own."""
    streams = [torch.cuda.Stream() for _ in replays]
    steps, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for _ in range(10):
            for stream, replay in zip(streams, replays, strict=True):
                with torch.cuda.stream(stream):
                    replay()
        torch.cuda.synchronize()
        steps += 10 * len(replays)
    return steps / (time.perf_counter() - start)


def work(options: argparse.Namespace, parent: Connection) -> None:
    """One process of `processes` or `mps`: measures whenever it is told to, until told not to."""
    replay = prepare(options)
    parent.send("ready")
    while parent.recv():
        parent.send(steps_a_second([replay], options.measure_seconds))


def measure_processes(options: argparse.Namespace) -> dict[int, float]:
    """Steps a second of all processes together, by their number."""
    context = multiprocessing.get_context("spawn")
    workers, lines = [], []
    try:
        for _ in range(max(options.counts)):
            mine, theirs = context.Pipe()
            worker = context.Process(target=work, args=(options, theirs), daemon=True)
            worker.start()
            theirs.close()  # so that its end is heard of
            workers.append(worker)
            lines.append(mine)
        for line in lines:
            line.recv()
        result = {}
        for count in options.counts:
            for line in lines[:count]:
                line.send(True)
            result[count] = sum(line.recv() for line in lines[:count])
        return result
    except EOFError:
        raise SystemExit("a student's process has ended; its error is above") from None
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def measure_streams(options: argparse.Namespace) -> dict[int, float]:
    """The same of students in one process."""
    replays = [prepare(options) for _ in range(max(options.counts))]
    return {
        count: steps_a_second(replays[:count], options.measure_seconds) for count in options.counts
    }


@contextmanager
def multi_process_service() -> Iterator[None]:
    """NVIDIA's MPS for the processes started inside, with its files in a folder of its own."""
    former = dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        names = ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY")
        os.environ |= dict.fromkeys(names, folder)
        subprocess.run(["nvidia-cuda-mps-control", "-d"], check=True)
        if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):  # the service numbers them anew
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(visible.count(",") + 1)))
        try:
            yield
        finally:
            subprocess.run(["nvidia-cuda-mps-control"], input="quit\n", text=True, check=False)
            os.environ.clear()
            os.environ |= former


def main() -> None:
    """Prints a line a way and number, and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--student", default="jasper-mini")
    parser.add_argument("--recipe", default="inter-kd")
    parser.add_argument("--audio-seconds", type=float, default=320.0)
    parser.add_argument("--counts", default="1,2,4,8")
    parser.add_argument("--ways", default="processes,mps,streams")
    parser.add_argument("--measure-seconds", type=float, default=3.0)
    parser.add_argument("--compiled", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/bench_sharing.json"))
    options = parser.parse_args()
    options.counts = [int(count) for count in options.counts.split(",")]
    records = []
    for way in options.ways.split(","):
        if way == "mps":
            with multi_process_service():
                rates = measure_processes(options)
        else:
            rates = {"processes": measure_processes, "streams": measure_streams}[way](options)
        for count, rate in rates.items():
            print(
                f"{way} {count}: {1e3 / rate:.2f} ms a step of any, "
                f"{rate * options.audio_seconds:,.0f} s of audio a second, "
                f"{rate / rates[options.counts[0]]:.2f} of {options.counts[0]}",
                flush=True,
            )
            records.append({"way": way, "students": count, "steps_a_second": rate})
    options.out.parent.mkdir(parents=True, exist_ok=True)
    settings = {k: getattr(options, k) for k in ("student", "recipe", "audio_seconds", "compiled")}
    result = {**describe(torch.device("cuda")), **settings, "runs": records}
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
