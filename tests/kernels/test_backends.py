"""Backends: what `auto` means, what is refused, and that numba is paid for only when used."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from interkd.kernels import backends
from interkd.kernels.backends import resolve_backend
from interkd.kernels.errors import BackendError


def test_auto_is_the_fastest_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_backend("auto", torch.device("cpu")) == "numba"
    assert resolve_backend("auto", torch.device("mps")) == "torch"
    for version, backend in (((3, 7), "triton"), ((3, 2), "torch"), ((), "torch")):
        monkeypatch.setattr(backends, "triton_version", lambda version=version: version)
        assert resolve_backend("auto", torch.device("cuda")) == backend
    assert resolve_backend("reference", torch.device("cuda")) == "reference"


def test_what_cannot_run_is_refused() -> None:
    with pytest.raises(BackendError, match="expected logits on cpu, got cuda"):
        resolve_backend("numba", torch.device("cuda"))
    with pytest.raises(BackendError, match=r"auto \| reference \| .* \| triton, got 'fast'"):
        resolve_backend("fast", torch.device("cpu"))


def test_triton_is_refused_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(backends, "triton_version", lambda: (3, 7))
    with pytest.raises(BackendError, match="expected logits on cuda, got cpu"):
        resolve_backend("triton", torch.device("cpu"))
    for version, got in (((3, 2), "3.2"), ((), "none installed")):
        monkeypatch.setattr(backends, "triton_version", lambda version=version: version)
        with pytest.raises(BackendError, match=rf"the package triton, 3.3 or newer, got {got}"):
            resolve_backend("triton", torch.device("cuda"))


def test_importing_the_kernels_does_not_import_numba() -> None:
    code = (
        "import sys, interkd.kernels.ctc, interkd.kernels.distill, interkd.kernels.stick_breaking;"
        "sys.exit('numba' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
