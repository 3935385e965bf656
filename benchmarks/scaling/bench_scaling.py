"""Several GPUs of one host against one: stage one and training, weak scaling.

    python benchmarks/scaling/bench_scaling.py cache --teacher SPEC --manifest MANIFEST
    python benchmarks/scaling/bench_scaling.py train --config STUDENT.yaml [--batches 1,2]

`cache`: N processes share the parts of a store of N times `--copies` copies of the manifest.
`train`: N processes of torchrun take a batch of `batch_seconds` each a step; epochs after the
second count, in which every shape of batch has its graph. With as many batches a step the losses
must be the same whatever N; their largest difference is told. Efficiency is audio a second over N
times that of one process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import yaml

from interkd.pipeline.cache_settings import CacheTeacherConfig
from interkd.pipeline.cache_teacher import cache_teacher
from interkd.pipeline.corpus.manifest import read_manifest, write_manifest


def cache_part(config: CacheTeacherConfig) -> float:
    """Seconds of one process, the teacher's loading left out."""
    return cache_teacher(config).seconds


def measure_caching(options: argparse.Namespace, processes: int) -> dict[str, Any]:
    """Audio a second of so many processes, each on a GPU of its own."""
    manifest = read_manifest(options.manifest)
    copies = [
        replace(utterance, utt_id=f"{utterance.utt_id}-{copy}")
        for copy in range(processes * options.copies)
        for utterance in manifest.utterances
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "manifest.jsonl")
        write_manifest(path, copies)
        configs = [
            CacheTeacherConfig(
                teacher=options.teacher,
                manifest=path,
                out=Path(folder, "store"),
                device=options.device if options.device == "cpu" else f"cuda:{process}",
                precision=options.precision,
                part_minutes=options.part_minutes,
                decode_threads=options.decode_threads,
                wait=False,
            )
            for process in range(processes)
        ]
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            seconds = list(pool.map(cache_part, configs))
    audio = processes * options.copies * manifest.total_seconds
    return {"seconds": seconds, "audio_per_second": audio / max(seconds)}


def measure_training(
    options: argparse.Namespace, processes: int, batches: int, folder: Path
) -> dict[str, Any]:
    """Audio a second of so many processes with so many batches a step in all, and the losses."""
    settings = yaml.safe_load(options.config.read_text(encoding="utf-8"))
    settings["data"]["batches_a_step"] = batches
    settings |= {"epochs": options.epochs, "dev_every": 1, "device": options.device}
    out = folder / f"{processes}-of-{batches}"
    file = folder / f"{out.name}.yaml"
    file.write_text(yaml.safe_dump(settings | {"out": str(out)}), encoding="utf-8")
    launcher = [*("-m", "torch.distributed.run", "--nproc-per-node", str(processes))]
    command = ["-m", "interkd", "train-student", "--config", str(file)]
    subprocess.run([sys.executable, *(launcher if processes > 1 else []), *command], check=True)
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text("utf-8").splitlines()]
    ends = [row["seconds"] for row in rows if "dev_wer" in row]
    audio = read_manifest(Path(settings["data"]["train_manifest"])).total_seconds
    return {
        "losses": [row["loss"] for row in rows if "loss" in row],
        "epoch_seconds": [later - first for first, later in zip([0, *ends], ends, strict=False)],
        "audio_per_second": audio * (len(ends) - 2) / (ends[-1] - ends[1]),
    }


def print_row(record: dict[str, Any], alone: float) -> None:
    """One measurement, and its efficiency."""
    n = record["processes"]
    record["efficiency"] = record["audio_per_second"] / alone / n
    batches = f", {record['batches']} batches a step" if "batches" in record else ""
    print(
        f"{n} processes{batches}: {record['audio_per_second']:,.0f} s of audio a second, "
        f"{record['efficiency']:.3f} of {n} times one",
        flush=True,
    )


def cache(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Stage one for each number of processes."""
    records: list[dict[str, Any]] = []
    for processes in options.processes:
        records.append({"processes": processes, **measure_caching(options, processes)})
        print_row(records[-1], records[0]["audio_per_second"])
    return records


def train(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Training for each number of processes, with as many batches a step and with more."""
    records: list[dict[str, Any]] = []
    losses: dict[int, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for processes in options.processes:
            for batches in options.batches:
                if batches % processes:
                    continue
                record = measure_training(options, processes, batches, Path(folder))
                record |= {"processes": processes, "batches": batches}
                records.append(record)
                print_row(record, records[0]["audio_per_second"])
                mine = torch.tensor(record.pop("losses"))
                first = losses.setdefault(batches, mine)
                record["loss_difference"] = float(((mine - first) / first).abs().max())
                print(f"  largest relative difference of losses {record['loss_difference']:.2e}")
    return records


def numbers(text: str) -> list[int]:
    """Whole numbers between commas."""
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Measures and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["cache", "train"])
    parser.add_argument("--processes", type=numbers, default=[1, 2])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--teacher")
    parser.add_argument("--manifest", type=Path)
    parser.add_argument("--copies", type=int, default=1, help="of the manifest for each process")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--part-minutes", type=float, default=20.0)
    parser.add_argument("--decode-threads", type=int)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--batches", type=numbers, default=[1, 2])
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    is_cuda = options.device == "cuda"
    result = {
        "device": torch.cuda.get_device_name() if is_cuda else "cpu",
        "torch": torch.__version__,
        "runs": cache(options) if options.what == "cache" else train(options),
    }
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
