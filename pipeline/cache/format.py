"""Constants of the store's format: names, versions, columns and their dtypes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from interkd.kernels.errors import StoreError

FORMAT_NAME = "interkd-teacher-cache"
FORMAT_VERSION = 2
QUANTISER_NAMES = {1: ("log8", "float16"), 2: ("angle5", "angle6", "angle7", "angle15")}
METADATA_FILE = "zarr.json"
INDEX_NAME = "index"
ARCHIVE_SUFFIX = ".zip"
AUDIO_HASH_BYTES = 16
MAX_TOKENS_PER_FRAME = 255
ZSTD_LEVEL = 19
_AUDIO_HASH = re.compile(r"[0-9a-f]{32}")

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class ColumnSpec:
    """What a column must be: one chunk of `dtype`, `(n, *row_shape)`."""

    name: str
    dtype: np.dtype[Any]
    row_shape: tuple[int, ...] = ()


def part_name(index: int) -> str:
    """Name of part `index`, the first one being 0."""
    return f"part-{index:05d}"


def file_name(name: str, version: int) -> str:
    """A part's or the index's entry in the store: a folder in version 1, since then a ZIP file."""
    return name if version == 1 else f"{name}{ARCHIVE_SUFFIX}"


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest little-endian unsigned dtype that holds every token below `vocab_size`."""
    if vocab_size <= 1 << 8:
        return np.dtype("u1")
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


UTTERANCE_COLUMNS = (
    ColumnSpec(name="utterance_id", dtype=np.dtype("u1")),
    ColumnSpec(name="audio_hash", dtype=np.dtype("u1"), row_shape=(AUDIO_HASH_BYTES,)),
    ColumnSpec(name="frame_offset", dtype=np.dtype("<i8")),
    ColumnSpec(name="entry_offset", dtype=np.dtype("<i8")),
    ColumnSpec(name="samples", dtype=np.dtype("<i8")),
    ColumnSpec(name="digest", dtype=np.dtype("<u8")),
)

_INDEX_COLUMNS = (
    ColumnSpec(name="utterance_id", dtype=np.dtype("u1")),
    ColumnSpec(name="audio_hash", dtype=np.dtype("u1"), row_shape=(AUDIO_HASH_BYTES,)),
    ColumnSpec(name="part", dtype=np.dtype("<i4")),
    ColumnSpec(name="row", dtype=np.dtype("<i4")),
)
INDEX_COLUMNS = {
    1: _INDEX_COLUMNS,
    2: (
        *_INDEX_COLUMNS[:2],
        ColumnSpec(name="part", dtype=np.dtype("<i4")),
        ColumnSpec(name="frames", dtype=np.dtype("<i8")),
        ColumnSpec(name="part_digest", dtype=np.dtype("<u8")),
    ),
}


def pack_utterance_ids(utt_ids: Sequence[str]) -> Array:
    """Ids as UTF-8 bytes, joined by line feeds.

    Raises:
        StoreError: For an id that is empty, holds a line break or is not Unicode text.
    """
    for utt_id in utt_ids:
        if not utt_id or "\n" in utt_id or "\r" in utt_id:
            raise StoreError(
                "utterance id", expected="one line of text, not empty", got=repr(utt_id)
            )
    try:
        return np.frombuffer("\n".join(utt_ids).encode(), dtype=np.uint8)
    except UnicodeEncodeError as error:
        raise StoreError("utterance ids", expected="Unicode text", got=str(error)) from error


def unpack_utterance_ids(packed: Array) -> tuple[str, ...]:
    """The ids of `pack_utterance_ids`.

    Raises:
        UnicodeDecodeError: For bytes that are not UTF-8.
    """
    return tuple(packed.tobytes().decode().split("\n"))


def pack_audio_hashes(audio_hashes: Sequence[str]) -> Array:
    """Hashes of 32 hexadecimal digits as bytes, uint8 `(n, 16)`.

    Raises:
        StoreError: For a hash of another form.
    """
    for audio_hash in audio_hashes:
        if _AUDIO_HASH.fullmatch(audio_hash) is None:
            raise StoreError(
                "audio hash", expected="32 lowercase hexadecimal digits", got=repr(audio_hash)
            )
    packed = np.frombuffer(bytes.fromhex("".join(audio_hashes)), dtype=np.uint8)
    return packed.reshape(-1, AUDIO_HASH_BYTES)
