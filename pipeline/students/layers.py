"""What encoders and the student agree on: how many layers run, and who hears of each one."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from interkd.kernels.errors import ConfigError

AtLayer = Callable[[int, Tensor], Tensor]
"""Takes a layer's number, from 1, and its output `(B, T, C)`; returns what the next one gets."""


def layers_in_use(layers: int, last_layer: int | None) -> int:
    """How many of an encoder's layers there are when it ends after `last_layer`.

    Raises:
        ConfigError: If it has no such layer.
    """
    if last_layer is None:
        return layers
    if not 1 <= last_layer <= layers:
        raise ConfigError(
            "student.last_layer", expected=f"a layer from 1 to {layers}", got=last_layer
        )
    return last_layer
