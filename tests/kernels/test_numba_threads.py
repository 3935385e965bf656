"""The compiled CPU backend's threads: as many as torch's, and torch keeps its own."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import torch, numba
torch.set_num_threads(1)
from interkd.kernels.ctc import ctc_loss
one = torch.tensor([1])
for _ in range(2):
    ctc_loss(torch.zeros(1, 3, 4), one[None], torch.tensor([3]), one, backend="numba")
    print(torch.get_num_threads(), numba.get_num_threads())
"""


def test_torch_keeps_its_number_of_threads() -> None:
    # In a process of its own: what is tested happens when numba's pool starts.
    result = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["1"] * 4
