"""Backends: what `auto` means, what is refused, and that numba is paid for only when used."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from interkd.kernels.backends import resolve_backend
from interkd.kernels.errors import BackendError


def test_auto_is_numba_on_a_cpu_and_torch_elsewhere() -> None:
    assert resolve_backend("auto", torch.device("cpu")) == "numba"
    assert resolve_backend("auto", torch.device("cuda")) == "torch"
    assert resolve_backend("reference", torch.device("cuda")) == "reference"


def test_what_cannot_run_is_refused() -> None:
    with pytest.raises(BackendError, match="expected logits on cpu, got cuda"):
        resolve_backend("numba", torch.device("cuda"))
    with pytest.raises(BackendError, match=r"auto \| reference \| numba \| torch, got 'fast'"):
        resolve_backend("fast", torch.device("cpu"))


def test_importing_the_kernels_does_not_import_numba() -> None:
    code = (
        "import sys, interkd.kernels.ctc, interkd.kernels.distill, interkd.kernels.stick_breaking;"
        "sys.exit('numba' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
