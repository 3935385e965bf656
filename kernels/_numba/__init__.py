"""Compiled CPU backends: numba, on as many threads as torch uses.

numba keys a cached kernel on its own file alone: after editing a file of this package that another
one imports, touch the importing files too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

import numba
import numpy as np
import torch
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor

from interkd.kernels.precision import shifted_float32

# numba's fallback thread pool ends the process when two Python threads enter it at once.
_POOL = Lock()


def launch(kernel: Callable[..., Any], *arguments: Any) -> None:
    """Runs a parallel kernel on torch's number of threads."""
    with _POOL:
        threads = torch.get_num_threads()
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
        kernel(*arguments)
        # Both may share one OpenMP library, whose default numba sets when its pool starts.
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def float32_logits(logits: Tensor) -> NDArray[np.float32]:
    """Logits as the kernels read them: float32, contiguous."""
    values: NDArray[np.float32] = shifted_float32(logits).contiguous().numpy()
    return values


def addresses(arrays: Sequence[NDArray[np.float32]]) -> NDArray[np.int64]:
    """Where C-contiguous arrays lie, so that one kernel takes any number of them.

    A tuple of arrays would compile a kernel anew for each length.
    """
    return np.array([array.ctypes.data for array in arrays], np.int64)


@intrinsic  # type: ignore[untyped-decorator]
def _pointer(typing: Any, address: Any) -> Any:
    pointer = types.CPointer(types.float32)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(pointer))

    return pointer(types.int64), generate


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def array_at(address: int, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """The float32 array of a shape at an address, inside a kernel."""
    values: NDArray[np.float32] = numba.carray(_pointer(address), shape)
    return values
