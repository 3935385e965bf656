"""Offline logit-caching distillation for CTC speech recognition (Inter-KD)."""

from importlib.metadata import version

from interkd.kernels.errors import InterkdError

__version__ = version("interkd")

__all__ = ["InterkdError", "__version__"]
