"""Stored frames to codes again: another quantiser, a smaller mass, version 1 to today's."""

from __future__ import annotations

import numpy as np
import torch

from interkd.kernels.errors import CorruptStoreError
from interkd.kernels.stick_breaking import StickBreaking
from interkd.pipeline.cache.codec import codes_of, get_quantiser, pack_codes
from interkd.pipeline.cache.compare import best_tokens, frame_of_entries, probabilities
from interkd.pipeline.cache.fingerprint import Fingerprint
from interkd.pipeline.cache.format import Array
from interkd.pipeline.cache.layout import Expanded

_FRAMES_AT_ONCE = 1 << 14


def reencode(
    expanded: Expanded, source: Fingerprint, target: Fingerprint
) -> tuple[Array, Array, Array]:
    """Codes of stored frames under other settings. N frames.

    The stored distribution is taken as it stands: its tokens and, as mass that no token has, its
    rest. Its most probable token stays the most probable.

    Args:
        expanded: The frames.
        source: Of the store that holds them.
        target: With the quantiser and the mass to reach; a mass below the source's drops entries.

    Returns:
        The columns `blank` `(N,)`, `token` and `fraction` `(E,)` of version 2.

    Raises:
        CorruptStoreError: If a frame does not hold the blank exactly once.
    """
    quantiser = get_quantiser(target.quantiser)
    mass = target.mass if target.mass < source.mass else None
    blocks: list[tuple[Array, Array, Array]] = []
    count = len(expanded.entry_offsets) - 1
    for start in range(0, max(1, count), _FRAMES_AT_ONCE):
        offsets = expanded.entry_offsets[start : start + _FRAMES_AT_ONCE + 1]
        entries = slice(int(offsets[0]), int(offsets[-1]))
        block = Expanded(
            entry_offsets=offsets - offsets[0],
            tokens=expanded.tokens[entries],
            log_probs=expanded.log_probs[entries],
        )
        kept = break_sparse(
            block, blank_index=source.blank_index, version=source.format_version, mass=mass
        )
        encoded = codes_of(kept, quantiser=quantiser, blank_index=source.blank_index)
        *columns, _ = (column.numpy() for column in encoded.columns())
        blocks.append(pack_codes(*columns))
    blank, tokens, fractions = (np.concatenate(column) for column in zip(*blocks, strict=True))
    return blank, tokens, fractions


def break_sparse(
    expanded: Expanded, *, blank_index: int, version: int, mass: float | None = None
) -> StickBreaking:
    """Stick-breaking fractions of sparse frames. N frames, K the most non-blank tokens of one.

    What the kept tokens leave, the frame's rest, is mass behind the last of them.

    Args:
        expanded: The frames, each with the blank among its entries.
        blank_index: Index of the blank.
        version: Of the format that they were stored in.
        mass: Keeps of each frame the blank and the fewest others that reach it, and always the
            most probable token; None keeps all.

    Raises:
        CorruptStoreError: If a frame does not hold the blank exactly once.
    """
    frames, count = frame_of_entries(expanded), len(expanded.entry_offsets) - 1
    probs, rest = probabilities(expanded)
    is_blank = expanded.tokens == blank_index
    if not np.array_equal(frames[is_blank], np.arange(count)):
        raise CorruptStoreError(f"expected the blank ({blank_index}) once in each frame")
    blank = probs[is_blank]
    counts = np.diff(expanded.entry_offsets) - 1
    most = max(1, int(counts.max(initial=0)))
    is_there = np.arange(most) < counts[:, None]
    values = np.zeros((count, most))
    values[is_there] = probs[~is_blank]
    tokens = np.zeros((count, most), dtype=np.int32)
    tokens[is_there] = expanded.tokens[~is_blank]
    if version == 1:  # whose entries stand in no order; since then theirs says which is the best
        order = np.argsort(-values, axis=1, kind="stable")
        values = np.take_along_axis(values, order, axis=1)
        tokens = np.take_along_axis(tokens, order, axis=1)

    best = best_tokens(expanded)
    # The mass left is a sum of what is small, never 1 minus what is near 1.
    left = np.cumsum(values[:, ::-1], axis=1)[:, ::-1] + rest[:, None]
    fractions = np.divide(values, left, out=np.zeros_like(values), where=left > 0)
    total = blank + left[:, 0]
    if mass is not None:
        before = np.cumsum(values, axis=1) - values
        is_kept = is_there & ((blank[:, None] + before) < mass * total[:, None])
        is_kept[:, 0] |= best != blank_index
        counts = np.cumprod(is_kept, axis=1).sum(axis=1)
    return StickBreaking(
        blank=torch.from_numpy(blank / total),
        counts=torch.from_numpy(counts),
        tokens=torch.from_numpy(tokens),
        fractions=torch.from_numpy(fractions),
        best=torch.from_numpy(best.astype(np.int32)),
    )


def truncate(
    payload: dict[str, Array], expanded: Expanded, source: Fingerprint, mass: float
) -> tuple[Array, Array, Array]:
    """Codes of version 2 with the entries past a smaller mass left out, the others as they were.

    Args:
        payload: Columns of the frames.
        expanded: The frames they make.
        source: Of the store that holds them.
        mass: To reach.

    Returns:
        As `reencode`.
    """
    levels = get_quantiser(source.quantiser).levels
    kept = break_sparse(
        expanded, blank_index=source.blank_index, version=source.format_version, mass=mass
    )
    counts = kept.counts.numpy()
    before = np.diff(expanded.entry_offsets) - 1
    ranks = np.arange(len(payload["token"])) - np.repeat(np.cumsum(before) - before, before)
    limits = np.repeat(counts, before)
    is_kept = ranks < limits
    dtype = payload["blank"].dtype
    blank = payload["blank"] % levels + levels * (counts > 0)
    fractions = payload["fraction"] % levels + levels * (ranks + 1 < limits)
    return blank.astype(dtype), payload["token"][is_kept], fractions[is_kept].astype(dtype)
