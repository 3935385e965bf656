"""Checks of the kernels' arguments: shapes and dtypes at once, values in one look at the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interkd.kernels.errors import ShapeError
from interkd.kernels.sparse import SparsePosteriors

_LOGITS_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_logits(logits: Sequence[Tensor]) -> None:
    """Refuses what no kernel takes as the logits of one or more heads.

    Raises:
        ShapeError: Unless there is a head, and all are `(B, T, V)` alike, floating, V at least 1.
    """
    if not logits:
        raise ShapeError("logits", expected="at least one head", got="none")
    first = logits[0]
    if first.ndim != 3 or first.shape[-1] < 1:
        raise ShapeError("logits", expected="(B, T, V), V at least 1", got=tuple(first.shape))
    if first.dtype not in _LOGITS_DTYPES:
        raise ShapeError(
            "logits", expected="float32, bfloat16, float16 or float64", got=first.dtype
        )
    for head in logits:
        if (head.shape, head.dtype, head.device) != (first.shape, first.dtype, first.device):
            raise ShapeError(
                "logits of the heads",
                expected=f"all {tuple(first.shape)} of {first.dtype} on {first.device}",
                got=f"{tuple(head.shape)} of {head.dtype} on {head.device}",
            )


def check_column(
    name: str, column: Tensor, shape: tuple[int | None, ...], dtype: torch.dtype, logits: Tensor
) -> None:
    """Refuses an argument whose shape, dtype or device does not fit the logits.

    Raises:
        ShapeError: Naming the argument; a None in `shape` fits any size.
    """
    fits = column.ndim == len(shape) and all(
        size in (None, actual) for size, actual in zip(shape, column.shape, strict=True)
    )
    if not fits or column.dtype != dtype:
        raise ShapeError(
            name,
            expected=f"{tuple('*' if size is None else size for size in shape)} of {dtype}",
            got=f"{tuple(column.shape)} of {column.dtype}",
        )
    if column.device != logits.device:
        raise ShapeError(name, expected=f"on the logits' {logits.device}", got=column.device)


def check_targets(
    logits: Tensor,
    targets: Tensor,
    frame_lengths: Tensor,
    target_lengths: Tensor,
    blank_index: int,
    *,
    check_values: bool = True,
) -> dict[str, Any]:
    """Checks shapes; returns what is wrong with the values, as flags on the device by its text.

    Raises:
        ShapeError: If a shape, dtype or device does not fit, or the blank is not among V.
    """
    batch, frames, vocab_size = logits.shape
    check_column("targets", targets, (batch, None), torch.int64, logits)
    check_column("frame_lengths", frame_lengths, (batch,), torch.int64, logits)
    check_column("target_lengths", target_lengths, (batch,), torch.int64, logits)
    if not 0 <= blank_index < vocab_size:
        raise ShapeError("blank_index", expected=f"in [0, {vocab_size})", got=blank_index)
    if not check_values:
        return {}
    y, frame_counts, counts = _values(targets, frame_lengths, target_lengths)
    width = targets.shape[1]
    positions = np.arange(width) if targets.is_cpu else torch.arange(width, device=targets.device)
    inside = positions < counts[:, None]
    return {
        f"frame_lengths outside [0, {frames}], the logits' frames": (frame_counts < 0)
        | (frame_counts > frames),
        f"target_lengths outside [0, {width}], the targets' width": (counts < 0) | (counts > width),
        f"a target outside [0, {vocab_size}), the logits' tokens": inside
        & ((y < 0) | (y >= vocab_size)),
        f"a target equal to the blank ({blank_index})": inside & (y == blank_index),
    }


def check_teacher(
    logits: Tensor,
    teacher: SparsePosteriors,
    compared_lengths: Tensor,
    *,
    check_values: bool = True,
) -> dict[str, Any]:
    """Checks shapes; returns what is wrong with the values, as flags on the device by its text.

    Raises:
        ShapeError: If a shape, dtype, device or the vocabulary does not fit.
    """
    batch, frames, vocab_size = logits.shape
    if teacher.vocab_size != vocab_size:
        raise ShapeError("the teacher's tokens", expected=vocab_size, got=teacher.vocab_size)
    check_column("compared_lengths", compared_lengths, (batch,), torch.int64, logits)
    check_column("teacher.frame_offsets", teacher.frame_offsets, (batch + 1,), torch.int64, logits)
    check_column("teacher.entry_offsets", teacher.entry_offsets, (None,), torch.int64, logits)
    check_column("teacher.tokens", teacher.tokens, (None,), torch.int32, logits)
    if len(teacher.entry_offsets) < 1:
        raise ShapeError("teacher.entry_offsets", expected="at least one", got="none")
    if not check_values:
        return {}
    entries = len(teacher.tokens)
    frame_offsets, entry_offsets, tokens, compared = _values(
        teacher.frame_offsets, teacher.entry_offsets, teacher.tokens, compared_lengths
    )
    problems = {}
    for name, offsets, end in (
        ("frame_offsets", frame_offsets, len(entry_offsets) - 1),
        ("entry_offsets", entry_offsets, entries),
    ):
        text = f"teacher.{name} that do not rise from 0 to {end}"
        problems[text] = offsets[1:] < offsets[:-1]
        problems[text + " "] = (offsets[:1] != 0) | (offsets[-1:] != end)
    return problems | {
        f"a teacher token outside [0, {vocab_size})": (tokens < 0) | (tokens >= vocab_size),
        f"compared_lengths outside [0, {frames}], the logits' frames": (compared < 0)
        | (compared > frames),
        "compared_lengths beyond the teacher's frames": compared
        > frame_offsets[1:] - frame_offsets[:-1],
    }


def _values(*columns: Tensor) -> list[Any]:
    """Columns to compare, on a CPU as numpy's.

    numpy costs a tenth of torch there, and leaves no thread spinning beside the kernel to come.
    """
    return [column.detach().numpy() if column.is_cpu else column for column in columns]


def refuse_any(problems: dict[str, Any]) -> None:
    """Raises for the first true flag; one transfer to the host for all of them.

    Raises:
        ShapeError: With the key as its text.
    """
    present = [flags.any() for flags in problems.values()]
    if present and isinstance(present[0], Tensor):
        present = torch.stack(present).tolist()
    for problem, flag in zip(problems, present, strict=True):
        if flag:
            raise ShapeError(problem.strip())
