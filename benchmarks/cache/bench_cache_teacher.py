"""Stage one against the bare teacher: what top-k, codes, copies and files add to a forward pass.

    python benchmarks/cache/bench_cache_teacher.py --teacher torchscript:FILE --manifest MANIFEST \\
        [--device cuda] [--rounds 3] [--json FILE]

Three ways over the same batches, in turn, as often as `--rounds` says; medians of the rounds:

- forward: the audio is in device memory; only `teacher.log_probs` runs;
- decode + forward: audio is decoded by the same threads as in stage one, posteriors are dropped;
- cache-teacher: the whole of it until the last part is written, a new store each time.

The last line is the peak resident memory of a process that caches a third of the corpus and of one
that caches all of it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from interkd.pipeline.cache_settings import CacheTeacherConfig
from interkd.pipeline.cache_teacher import cache_teacher
from interkd.pipeline.corpus.audio import AudioCache
from interkd.pipeline.corpus.manifest import Utterance, read_manifest, write_manifest
from interkd.pipeline.part_runner import PartRunner
from interkd.pipeline.teachers.load import load_teacher
from interkd.pipeline.teachers.protocol import Teacher

WAYS = ("forward", "decode + forward", "cache-teacher")


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.inference_mode()
def forward(runner: PartRunner, audio: list[tuple[Tensor, Tensor]]) -> float:
    start = time.perf_counter()
    for waveforms, lengths in audio:
        runner.teacher.log_probs(waveforms, lengths)
    synchronize(runner.device)
    return time.perf_counter() - start


@torch.inference_mode()
def decode_and_forward(runner: PartRunner, utterances: list[Utterance]) -> float:
    start = time.perf_counter()
    for waveforms, lengths in runner.audio_of([(0, utterances)]):
        on_device = waveforms.to(runner.device, non_blocking=True)
        runner.teacher.log_probs(on_device, lengths.to(runner.device))
    synchronize(runner.device)
    return time.perf_counter() - start


def whole_stage(arguments: argparse.Namespace, teacher: Teacher) -> float:
    """Stage one with the teacher that is warm already, as `python:warm:make`."""
    warm = ModuleType("warm")
    warm.make = lambda *, device, precision: teacher  # type: ignore[attr-defined]
    sys.modules["warm"] = warm
    with tempfile.TemporaryDirectory() as folder:
        config = CacheTeacherConfig(
            teacher="python:warm:make",
            manifest=arguments.manifest,
            out=Path(folder, "store"),
            device=arguments.device,
            precision=arguments.precision,
            batch_seconds=arguments.batch_seconds,
        )
        return cache_teacher(config).seconds


def peak_megabytes(arguments: argparse.Namespace, manifest: Path) -> float:
    """Of a process of its own that caches a manifest."""
    code = (
        "import resource, sys; from interkd.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", code, "cache-teacher", "--teacher", arguments.teacher]
        command += ["--manifest", str(manifest), "--out", f"{folder}/store"]
        command += ["--device", arguments.device, "--part-minutes", "20"]
        command += ["--batch-seconds", str(arguments.batch_seconds)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(output.rsplit("peak", 1)[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--manifest", required=True, type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-seconds", type=float, default=640.0)
    parser.add_argument("--skip-memory", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    device = torch.device(arguments.device)
    manifest = read_manifest(arguments.manifest)
    utterances = list(manifest.utterances)
    runner = PartRunner(
        load_teacher(
            arguments.teacher, device=device, precision=getattr(torch, arguments.precision)
        ),
        device,
        top_k=16,
        mass=0.99,
        quantiser="angle5",
        batch_seconds=arguments.batch_seconds,
    )
    audio = []
    for indexes in runner.batches_of(utterances):
        waveforms, lengths = AudioCache(0, threads=runner.threads).read_batch(
            [utterances[i] for i in indexes]
        )
        audio.append((waveforms.to(device), lengths.to(device)))
    forward(runner, audio)  # warm
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(arguments.rounds):
        seconds["forward"].append(forward(runner, audio))
        seconds["decode + forward"].append(decode_and_forward(runner, utterances))
        seconds["cache-teacher"].append(whole_stage(arguments, runner.teacher))
    medians = {way: statistics.median(values) for way, values in seconds.items()}
    for way, median in medians.items():
        rounds = ", ".join(f"{value:.2f}" for value in seconds[way])
        against = ", ".join(f"{median / medians[other]:.3f} of {other}" for other in WAYS[:2])
        speed = manifest.total_seconds / median
        print(f"{way:17}{median:8.2f} s ({rounds})  {speed:6.0f} x real time  {against}")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    result: dict[str, Any] = {
        "device": name,
        "torch": torch.__version__,
        "hours": manifest.total_seconds / 3600,
        "seconds": seconds,
    }
    if not arguments.skip_memory:
        del audio
        with tempfile.TemporaryDirectory() as folder:
            third = Path(folder, "manifest.jsonl")
            write_manifest(third, utterances[: len(utterances) // 3])
            peaks = [peak_megabytes(arguments, path) for path in (third, arguments.manifest)]
        print(f"peak memory: {peaks[0]:.0f} MB for a third, {peaks[1]:.0f} MB for all")
        result["peak_mb"] = peaks
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
