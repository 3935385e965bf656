"""The device that a name means, checked when it is asked for."""

from __future__ import annotations

import os

import torch

from interkd.kernels.errors import BackendError, ConfigError


def resolve_device(name: str) -> torch.device:
    """The device of that name; `auto` is the first GPU where there is one, else the CPU.

    A GPU becomes the current one: what Triton launches goes there.

    Raises:
        ConfigError: If it is not a device's name.
        BackendError: If that device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError("unknown device", expected="auto, cpu, cuda, cuda:N", got=name) from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError("unknown device", expected="auto, cpu, cuda, cuda:N", got=name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BackendError(f"no device {name} here", remedy="--device cpu runs without a GPU")
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def cores() -> int:
    """Cores that this process may use: in a Slurm job those of the job."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
