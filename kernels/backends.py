"""Backends of the kernels: which one runs where, and how it is loaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from interkd.kernels.errors import BackendError

OLDEST_TRITON = (3, 3)  # the first with tl.gather; torch 2.6 brings 3.2

_PACKAGES = {"reference": "reference", "numba": "_numba", "torch": "_torch", "triton": "_triton"}


def resolve_backend(backend: str, device: torch.device) -> str:
    """The backend that runs for this choice and device.

    Args:
        backend: `auto` (numba on a CPU, triton on a CUDA device where 3.3 or newer is
            installed, torch elsewhere) or a backend's own name.
        device: Where the logits are.

    Returns:
        `reference`, `numba`, `torch` or `triton`.

    Raises:
        BackendError: For an unknown name, or a backend that is not there or cannot run on the
            device.
    """
    if backend == "auto":
        if device.type == "cpu":
            return "numba"
        return "triton" if device.type == "cuda" and triton_version() >= OLDEST_TRITON else "torch"
    if backend not in _PACKAGES:
        raise BackendError(
            "unknown backend", expected=" | ".join(("auto", *_PACKAGES)), got=repr(backend)
        )
    if backend == "numba" and device.type != "cpu":
        raise BackendError(
            "backend 'numba'", expected="logits on cpu", got=device, remedy="use 'torch' or 'auto'"
        )
    if backend == "triton":
        if (found := triton_version()) < OLDEST_TRITON:
            raise BackendError(
                "backend 'triton'",
                expected=f"the package triton, {'.'.join(map(str, OLDEST_TRITON))} or newer",
                got=".".join(map(str, found)) or "none installed",
            )
        if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            raise BackendError(
                "backend 'triton'",
                expected="logits on cuda",
                got=device,
                remedy="use 'numba' or 'auto'",
            )
    return backend


@cache
def triton_version() -> tuple[int, ...]:
    """Major and minor version of triton, empty where it is not installed."""
    try:
        return tuple(int(part) for part in version("triton").split(".")[:2])
    except PackageNotFoundError:
        return ()


def load_kernel(backend: str, module: str, function: str) -> Callable[..., Any]:
    """A backend's implementation; importing it only now keeps numba out of `import interkd`."""
    name = f"interkd.kernels.{_PACKAGES[backend]}.{module}"
    implementation: Callable[..., Any] = getattr(import_module(name), function)
    return implementation
