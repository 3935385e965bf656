"""What encoders and the student agree on: who hears of each layer's output."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

AtLayer = Callable[[int, Tensor], Tensor]
"""Takes a layer's number, from 1, and its output `(B, T, C)`; returns what the next one gets."""
