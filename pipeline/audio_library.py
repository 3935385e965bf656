"""torchaudio, or its pure-Python part where its binary extension cannot load.

torchaudio's wheels are built against one CUDA build of torch. Beside a CPU-only torch, or a torch
of another CUDA minor, `import torchaudio` stops at its shared library, although the transforms,
resampling and models that this project needs are written in Python. This is the only module that
imports torchaudio; everyone else imports `torchaudio` from here.
"""

from __future__ import annotations

import importlib
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from interkd.kernels.errors import BackendError

__all__ = ["torchaudio"]

_EXTENSION = "torchaudio._extension"


def _import_library() -> Any:
    """Imports torchaudio, a second time with `_stub_extension` if its shared library is refused.

    The library announces the removal of its own functions while it is being imported; users of
    those functions do not live here, so these notices are kept quiet.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module("torchaudio")
        except (OSError, RuntimeError) as error:  # missing shared library | another CUDA version
            for name in [n for n in sys.modules if n.split(".")[0] == "torchaudio"]:
                del sys.modules[name]
            sys.modules[_EXTENSION] = _stub_extension(reason=str(error))
            return importlib.import_module("torchaudio")


def _stub_extension(*, reason: str) -> types.ModuleType:
    """A `torchaudio._extension` that says that there is no shared library.

    Args:
        reason: Why the real one did not load, for the functions that need it.
    """

    def fail_if_no_align(function: Callable[..., Any]) -> Callable[..., NoReturn]:
        def unavailable(*_: object, **__: object) -> NoReturn:
            raise BackendError(
                f"torchaudio's {function.__name__} needs its binary extension",
                got=reason,
                remedy="install the torchaudio built for this torch",
            )

        return unavailable

    module = types.ModuleType(_EXTENSION)
    module.__dict__.update(
        __path__=[],
        _IS_TORCHAUDIO_EXT_AVAILABLE=False,
        _IS_ALIGN_AVAILABLE=False,
        _load_lib=lambda _name: False,
        _check_cuda_version=lambda: None,
        fail_if_no_align=fail_if_no_align,
    )
    return module


torchaudio: Any = _import_library()
