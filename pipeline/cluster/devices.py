"""Stage one on several GPUs of one host: a process each, which share the store's parts."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from interkd.kernels.errors import BackendError, ClusterError
from interkd.pipeline.devices import cores, resolve_device
from interkd.pipeline.progress import Reporter


def device_list(names: str) -> list[str]:
    """The devices of `all`, or of a list such as `cuda:0,cuda:1`.

    Raises:
        ConfigError: For a name that is not a device's.
        BackendError: If one of them is not there.
    """
    if names == "all":
        devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        if not devices:
            raise BackendError("--devices all", expected="a CUDA GPU", got="none")
        return devices
    devices = [name.strip() for name in names.split(",")]
    for name in devices:
        resolve_device(name)
    return devices


def run_on_devices(
    arguments: Sequence[str],
    devices: Sequence[str],
    logs: Path,
    *,
    decode_threads: int | None,
    reporter: Reporter,
) -> None:
    """Runs `interkd cache-teacher ... --no-wait` on each device at once, until all have ended.

    Whoever leaves early, by an exception or a signal, stops the processes first.

    Args:
        arguments: Of the command, without device, threads and `--no-wait`.
        devices: One process each.
        logs: Folder for what the processes say.
        decode_threads: Of each process; None shares this host's cores out.
        reporter: Hears which process runs where.

    Raises:
        ClusterError: If a process fails, with the last line that it said.
    """
    threads = decode_threads or max(1, cores() // len(devices))
    logs.mkdir(parents=True, exist_ok=True)
    processes: list[tuple[str, Path, subprocess.Popen[bytes]]] = []
    try:
        for number, device in enumerate(devices):
            log = logs / f"{number}-{device.replace(':', '')}.txt"
            command = [sys.executable, "-m", "interkd", "cache-teacher", *arguments]
            command += ["--device", device, "--decode-threads", str(threads), "--no-wait"]
            with log.open("wb") as output:
                process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
            processes.append((device, log, process))
            reporter.message(f"{device}: {log}")
        for device, log, process in processes:
            code = process.wait()
            if code:
                lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
                last = next((line for line in reversed(lines) if line.strip()), "nothing")
                raise ClusterError(f"cache-teacher on {device} ended with {code}: {last}")
    finally:
        for _, _, process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGUSR2)
        for _, _, process in processes:
            process.wait()
