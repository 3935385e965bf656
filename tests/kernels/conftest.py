"""Kernels run on two threads, so that a result that hangs on their order would show."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def _two_threads() -> Iterator[None]:
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    yield
    torch.set_num_threads(1)
