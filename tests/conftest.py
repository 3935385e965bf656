"""Fixtures that every test may use: the device, and the real speech when it is there."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

SHARED = Path(os.environ.get("INTERKD_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device for device-free tests: cpu or cuda")


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    name = str(request.config.getoption("--device"))
    if name.startswith("cuda") and not torch.cuda.is_available():
        pytest.skip(f"--device {name}: no CUDA device here")
    return torch.device(name)


@dataclass(frozen=True)
class Shared:
    """The folder with real speech and a real teacher (see docs/results.md)."""

    root: Path

    @property
    def speech(self) -> Path:
        return self.root / "speech"

    @property
    def teacher(self) -> Path:
        return self.root / "teacher" / "whisper-base-ctc.pt"


@pytest.fixture(scope="session")
def shared() -> Shared:
    if not (SHARED / "speech" / "dev.jsonl").exists():
        pytest.skip("the real speech folder is not beside the checkout (set INTERKD_SHARED)")
    return Shared(SHARED)
