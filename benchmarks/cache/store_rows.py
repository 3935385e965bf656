"""Ways to keep a teacher's posteriors: the columns each one writes and the frames read back.

The product's codec at several masses and quantisers, the format's first version, and baselines.
Every way encodes a block of frames at a time; the columns of a part's blocks are joined before
they are compressed, as a store does.
"""

from __future__ import annotations

import bz2
import lzma
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numcodecs
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from interkd.kernels.stick_breaking import expand_stick_breaking, stick_breaking_topk
from interkd.pipeline.cache.codec import encode_frames, get_quantiser, pack_codes
from interkd.pipeline.cache.format import token_dtype

Array = npt.NDArray[Any]
MASSES = (0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
QUANTISERS = ("angle5", "angle6", "angle7")
DEFAULT = "mass 0.99 angle5"
TOP_K = 16
FIXED = 8
DRAWS = 12


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A block of N frames in E entries, the blank among them.

    Attributes:
        columns: What is compressed.
        offsets: Entries before each frame, int64 `(N + 1,)`.
        tokens: int64 `(E,)`.
        probs: Probability of each entry as read back, float64 `(E,)`; at most 1 in a frame.
        best: Most probable token as read back, int64 `(N,)`.
    """

    columns: dict[str, Array]
    offsets: Array
    tokens: Array
    probs: Array
    best: Array


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way of keeping posteriors.

    Attributes:
        name: As the table shows it.
        compressor: A key of `COMPRESSORS`.
        encode: Takes float32 log-probabilities `(N, V)`, the blank first.
    """

    name: str
    compressor: str
    encode: Callable[[Tensor], Encoded]


def _zstd(level: int) -> Callable[[Array], int]:
    codec = numcodecs.Zstd(level=level)
    return lambda column: len(codec.encode(np.ascontiguousarray(column)))


def _blosc(column: Array) -> int:
    codec = numcodecs.Blosc(cname="zstd", clevel=9, shuffle=numcodecs.Blosc.BITSHUFFLE)
    return len(codec.encode(np.ascontiguousarray(column)))


COMPRESSORS: dict[str, Callable[[Array], int]] = {
    "none": lambda column: column.nbytes,
    "zstd 3": _zstd(3),
    "zstd 9": _zstd(9),
    "zstd 19": _zstd(19),
    "bz2": lambda column: len(bz2.compress(column.tobytes())),
    "lzma": lambda column: len(lzma.compress(column.tobytes(), preset=9)),
    "blosc zstd 9 bitshuffle": _blosc,
}


def all_rows() -> Iterator[Row]:
    """Every row of the table, in its order."""
    for mass in MASSES:
        for quantiser in QUANTISERS:
            yield product_row(mass, quantiser)
    for mass in (0.999, 0.99):
        for bits in (8, 7, 6):
            yield version1_row(mass, bits)
    yield Row(name="dense float16", compressor="zstd 3", encode=_dense)
    yield Row(name=f"top {FIXED} float16", compressor="zstd 3", encode=_fixed)
    yield Row(name=f"top {FIXED} bit-packed", compressor="none", encode=_packed)
    yield Row(name=f"{DRAWS} draws", compressor="zstd 19", encode=_draws)


def product_row(mass: float, quantiser_name: str) -> Row:
    """A store of today's version: its own codec and its own reader."""
    quantiser = get_quantiser(quantiser_name)

    def encode(log_probs: Tensor) -> Encoded:
        kept = encode_frames(log_probs, top_k=TOP_K, mass=mass, quantiser=quantiser, blank_index=0)
        *side_by_side, _ = (column.numpy() for column in kept.columns())
        blank, tokens, fractions = pack_codes(*side_by_side)
        columns = {
            "blank": blank,
            "token": tokens.astype(token_dtype(log_probs.shape[1])),
            "fraction": fractions,
        }
        offsets, entries, values = expand_stick_breaking(
            columns["blank"], columns["token"], columns["fraction"], quantiser.values
        )
        return Encoded(
            columns=columns,
            offsets=offsets,
            tokens=entries.astype(np.int64),
            probs=np.exp(values.astype(np.float64)),
            best=entries[offsets[:-1]].astype(np.int64),
        )

    return Row(name=f"mass {mass} {quantiser_name}", compressor="zstd 19", encode=encode)


def version1_row(mass: float, bits: int) -> Row:
    """The format's first version: counts, tokens, cubically companded log-probabilities."""

    def encode(log_probs: Tensor) -> Encoded:
        kept = stick_breaking_topk(log_probs, max_tokens=TOP_K, mass=mass, blank_index=0)
        is_kept = (torch.arange(kept.tokens.shape[1]) < kept.counts[:, None]).numpy()
        counts = 1 + kept.counts.numpy()
        frames = np.concatenate([np.arange(len(counts)), np.nonzero(is_kept)[0]])
        tokens = np.concatenate([np.zeros_like(counts), kept.tokens.numpy()[is_kept]])
        # The best token stands first, the others rise: what its writer made.
        best = kept.best.numpy()
        order = np.lexsort((np.where(tokens == best[frames], -1, tokens), frames))
        frames, tokens = frames[order], tokens[order]
        values, codes = _companded(log_probs.numpy()[frames, tokens], bits)
        columns = {
            "entries_per_frame": counts.astype(np.uint8),
            "token": tokens.astype(token_dtype(log_probs.shape[1])),
            "log_prob": codes,
        }
        return _frames(columns, counts, tokens, np.exp(values))

    return Row(name=f"version 1 mass {mass} log{bits}", compressor="zstd 3", encode=encode)


def _companded(log_probs: Array, bits: int) -> tuple[Array, Array]:
    """Nearest of -16 (c / (L - 1))^3, and its code c as one byte."""
    levels = 1 << bits
    values = 16.0 * (np.arange(levels) / (levels - 1)) ** 3
    codes = np.searchsorted((values[1:] + values[:-1]) / 2, -log_probs.astype(np.float64))
    return -values[codes], codes.astype(np.uint8)


def _frames(columns: dict[str, Array], counts: Array, tokens: Array, probs: Array) -> Encoded:
    """Frames from probabilities that may exceed 1; the best is the first of the largest."""
    offsets = np.concatenate([[0], np.cumsum(counts)])
    frames = np.repeat(np.arange(len(counts)), counts)
    sums = np.bincount(frames, weights=probs, minlength=len(counts))
    candidates = np.flatnonzero(probs == np.maximum.reduceat(probs, offsets[:-1])[frames])
    _, first = np.unique(frames[candidates], return_index=True)
    return Encoded(
        columns=columns,
        offsets=offsets,
        tokens=tokens.astype(np.int64),
        probs=probs / np.maximum(sums, 1.0)[frames],
        best=tokens[candidates[first]].astype(np.int64),
    )


def _dense(log_probs: Tensor) -> Encoded:
    """Every log-probability, divided by the frame's sum when read."""
    frames, vocab_size = log_probs.shape
    rounded = log_probs.numpy().astype(np.float16)
    probs = np.exp(rounded.astype(np.float64))
    probs /= probs.sum(1, keepdims=True)
    counts = np.full(frames, vocab_size)
    tokens = np.tile(np.arange(vocab_size), frames)
    return _frames({"log_prob": rounded}, counts, tokens, probs.ravel())


def _fixed(log_probs: Tensor) -> Encoded:
    """The 8 most probable tokens, uint16, and their log-probabilities, float16."""
    top = log_probs.topk(FIXED, dim=1)
    rounded = top.values.numpy().astype(np.float16)
    columns = {"token": top.indices.numpy().astype(np.uint16), "log_prob": rounded}
    counts = np.full(len(rounded), FIXED)
    probs = np.exp(rounded.astype(np.float64)).ravel()
    return _frames(columns, counts, top.indices.numpy().ravel(), probs)


def _packed(log_probs: Tensor) -> Encoded:
    """The same tokens in ceil(log2 V) bits, their log-probabilities companded to 8 bits."""
    frames, vocab_size = log_probs.shape
    top = log_probs.topk(FIXED, dim=1)
    values, _ = _companded(top.values.numpy().ravel(), 8)
    bits = FIXED * ((vocab_size - 1).bit_length() + 8)
    columns = {"packed": np.zeros(-(-frames * bits // 8), dtype=np.uint8)}
    return _frames(columns, np.full(frames, FIXED), top.indices.numpy().ravel(), np.exp(values))


def _draws(log_probs: Tensor) -> Encoded:
    """How often each token came in 12 draws with replacement: an unbiased estimate, no tail.

    Source: random sampling of Anshumann et al. 2025 (arXiv 2503.16870), proposal of temperature 1.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(log_probs.exp(), DRAWS, replacement=True, generator=generator)
    drawn = drawn.sort(dim=1).values
    is_new = torch.ones_like(drawn, dtype=torch.bool)
    is_new[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
    places = torch.cat([is_new.flatten().nonzero()[:, 0], torch.tensor([drawn.numel()])])
    times = places.diff().numpy()
    tokens = drawn[is_new].numpy()
    counts = is_new.sum(1).numpy()
    columns = {
        "entries_per_frame": counts.astype(np.uint8),
        "token": tokens.astype(token_dtype(log_probs.shape[1])),
        "draws": times.astype(np.uint8),
    }
    return _frames(columns, counts, tokens, times / DRAWS)
