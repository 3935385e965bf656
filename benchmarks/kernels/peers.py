"""Other implementations of CTC, timed where they are installed; each returns None elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from kernels.problems import Example


def cudnn_ctc(example: Example) -> Callable[..., Tensor] | None:
    """cuDNN's CTC through torch, which takes int32 targets on the host and at most 255 of them."""
    if not torch.backends.cudnn.is_available() or example.shape.targets > 255:
        return None
    targets = example.targets.flatten().int().cpu()
    lengths = example.frame_lengths.int().cpu(), example.target_lengths.int().cpu()

    def loss(_: Example, heads: list[Tensor]) -> Tensor:
        log_probs = heads[0].float().log_softmax(-1).transpose(0, 1)
        return torch._cudnn_ctc_loss(  # what F.ctc_loss calls for such arguments
            log_probs, targets, lengths[0].tolist(), lengths[1].tolist(), 0, True, False
        )[0].sum()

    try:
        torch.autograd.grad(loss(example, leaf := example.logits(torch.float32)), leaf[0])
    except RuntimeError as error:
        print(f"    cuDNN refuses: {str(error).splitlines()[0]}")
        return None
    return loss


def optax_ctc(example: Example, logits: Tensor) -> Callable[[int], Any] | None:
    """optax's ctc_loss, compiled by XLA, on the same device."""
    if not (find_spec("jax") and find_spec("optax")):
        return None
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax
    import jax.numpy as jnp
    import optax

    values = jnp.asarray(logits.detach().float().cpu().numpy())
    targets = jnp.asarray(example.targets.int().cpu().numpy())
    paddings = jnp.zeros(values.shape[:2]), jnp.zeros(targets.shape)
    step = jax.jit(jax.grad(lambda x: optax.ctc_loss(x, paddings[0], targets, paddings[1]).sum()))
    return lambda _: jax.block_until_ready(step(values))
