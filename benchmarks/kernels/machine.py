"""Where and with what a benchmark ran."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch


def describe(device: torch.device) -> dict[str, Any]:
    """Machine, threads, versions and commit, for the head of a results file."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    versions = {"python": platform.python_version()}
    for package in ("interkd", "torch", "numba", "triton", "jax", "optax"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else platform.processor(),
        "threads": torch.get_num_threads(),
        "versions": versions,
        "commit": commit or None,
    }
