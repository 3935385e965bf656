"""Compiled CPU backends: numba, on as many threads as torch uses.

numba keys a cached kernel on its own file alone: after editing a file of this package that another
one imports, touch the importing files too.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# numba's fallback thread pool ends the process when two Python threads enter it at once.
_POOL = Lock()


def launch(kernel: Callable[..., Any], *arguments: Any) -> None:
    """Runs a parallel kernel on torch's number of threads."""
    with _POOL:
        numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
        kernel(*arguments)


def float32_logits(logits: Tensor) -> NDArray[np.float32]:
    """Logits as the kernels read them: float32, contiguous.

    Float64 logits are shifted by their frame's maximum first (softmax does not see it), so that
    the cast loses no more than a relative 6e-8 of each distance to that maximum.
    """
    if logits.dtype == torch.float64 and logits.numel():
        peak = logits.amax(-1, keepdim=True)
        logits = logits - torch.where(peak.isfinite(), peak, 0.0)
    values: NDArray[np.float32] = logits.to(torch.float32).contiguous().numpy()
    return values
