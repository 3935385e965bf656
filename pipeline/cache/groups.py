"""Zarr groups of one-chunk columns: written through zarr, read back with nothing taken on trust."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numcodecs import zstd
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from interkd.kernels.errors import CorruptStoreError, StoreError
from interkd.pipeline.cache.containers import Container, MissingKeyError, pack_zip
from interkd.pipeline.cache.format import METADATA_FILE, ZSTD_LEVEL, Array, ColumnSpec

REMAKE = "delete it and run cache-teacher again: it makes only what is missing"
MAX_METADATA_BYTES = 1 << 24
# A damaged or hostile length must not take the machine down; an hour of audio is far below.
MAX_COLUMN_BYTES = 1 << 29
_CRC_BYTES = 4


def pack_group(columns: Mapping[str, Array], attributes: Mapping[str, Any]) -> bytes:
    """A Zarr v3 group in a ZIP file, each column in one chunk: bytes, zstd, CRC-32C.

    The CRC stands outside zstd, so that a damaged byte never reaches the decompressor.

    Raises:
        StoreError: For a column past `MAX_COLUMN_BYTES`.
    """
    files: dict[str, Buffer] = {}
    group = zarr.create_group(MemoryStore(files), zarr_format=3, attributes=dict(attributes))
    for name, column in columns.items():
        if column.nbytes > MAX_COLUMN_BYTES:
            raise StoreError(
                f"column '{name}' of a part",
                expected=f"at most {MAX_COLUMN_BYTES:,} bytes",
                got=f"{column.nbytes:,}",
                remedy="make the parts shorter (--part-minutes)",
            )
        array = group.create_array(
            name,
            shape=column.shape,
            dtype=column.dtype,
            chunks=tuple(max(1, size) for size in column.shape),
            compressors=[ZstdCodec(level=ZSTD_LEVEL, checksum=False), Crc32cCodec()],
            fill_value=0,
            # an absent chunk must never stand for zeros: then it would be no loss
            config={"write_empty_chunks": True},
        )
        if column.size:
            array[...] = column
    return pack_zip({key: value.to_bytes() for key, value in files.items()})


def read_attributes(container: Container, *, where: str) -> dict[str, Any]:
    """Attributes of a Zarr v3 group.

    Raises:
        CorruptStoreError: If its zarr.json is missing or is not what Zarr v3 writes.
    """
    metadata = _read_json(container, METADATA_FILE, where=where)
    if (
        not isinstance(metadata, dict)
        or metadata.get("zarr_format") != 3
        or metadata.get("node_type") != "group"
        or not isinstance(metadata.get("attributes"), dict)
    ):
        raise CorruptStoreError(
            f"{where}: {METADATA_FILE} is not that of a Zarr v3 group", remedy=REMAKE
        )
    attributes: dict[str, Any] = metadata["attributes"]
    return attributes


def read_column(container: Container, spec: ColumnSpec, *, where: str) -> Array:
    """One column of a group, as `(n, *spec.row_shape)` of `spec.dtype`.

    Raises:
        CorruptStoreError: Naming the column: missing, of another shape or dtype, or with bytes
            that are not what was written.
    """
    column = f"{where}, column '{spec.name}'"
    metadata = _read_json(container, f"{spec.name}/{METADATA_FILE}", where=column)
    shape = _checked_shape(metadata, spec, column)
    size = math.prod(shape) * spec.dtype.itemsize
    if size == 0:
        return np.zeros(shape, dtype=spec.dtype)
    key = "/".join([spec.name, "c", *("0" for _ in shape)])
    try:
        # zstd makes what it cannot compress longer by less than this
        chunk = container.read(key, at_most=size + size // 128 + 1024)
    except MissingKeyError as error:
        raise CorruptStoreError(f"{column}: its chunk is missing", remedy=REMAKE) from error
    except CorruptStoreError as error:
        raise CorruptStoreError(f"{column} cannot be read: {error}", remedy=REMAKE) from error
    stored, crc = chunk[:-_CRC_BYTES], chunk[-_CRC_BYTES:]
    computed = google_crc32c.value(stored)
    if computed.to_bytes(_CRC_BYTES, "little") != crc:
        raise CorruptStoreError(
            f"{column} is not what was written",
            expected=f"CRC-32C {computed:08x}",
            got=f"{int.from_bytes(crc, 'little'):08x}",
            remedy=REMAKE,
        )
    if (declared := _zstd_content_size(stored)) != size:
        raise CorruptStoreError(
            f"{column}: decompressed bytes", expected=size, got=declared, remedy=REMAKE
        )
    content = np.empty(size, dtype=np.uint8)
    try:
        zstd.decompress(stored, content)
    except (RuntimeError, ValueError) as error:
        raise CorruptStoreError(
            f"{column} cannot be decompressed", got=str(error), remedy=REMAKE
        ) from error
    return content.view(spec.dtype).reshape(shape)


def _read_json(container: Container, key: str, *, where: str) -> Any:
    try:
        return json.loads(container.read(key, at_most=MAX_METADATA_BYTES))
    except MissingKeyError as error:
        raise CorruptStoreError(f"{where} is missing: no {key}", remedy=REMAKE) from error
    except CorruptStoreError as error:
        raise CorruptStoreError(f"{where}: {error}", remedy=REMAKE) from error
    except (ValueError, RecursionError) as error:
        raise CorruptStoreError(
            f"{where}: {METADATA_FILE} is truncated or corrupt", got=str(error), remedy=REMAKE
        ) from error


def _checked_shape(metadata: Any, spec: ColumnSpec, column: str) -> tuple[int, ...]:
    """The shape of a column's array, which must be just what a writer makes of its spec."""
    fields = metadata if isinstance(metadata, dict) else {}
    shape = fields.get("shape")
    if (
        not isinstance(shape, list)
        or not all(type(n) is int and n >= 0 for n in shape)
        or tuple(shape[1:]) != spec.row_shape
        or len(shape) != 1 + len(spec.row_shape)
    ):
        raise CorruptStoreError(
            f"{column}: shape", expected=f"(n, {spec.row_shape})", got=shape, remedy=REMAKE
        )
    size = math.prod(shape) * spec.dtype.itemsize
    if size > MAX_COLUMN_BYTES:
        raise CorruptStoreError(
            f"{column}: decompressed bytes",
            expected=f"at most {MAX_COLUMN_BYTES:,}",
            got=f"{size:,}",
            remedy=REMAKE,
        )
    chunk_shape = [max(1, n) for n in shape]
    for name, expected in {
        "zarr_format": 3,
        "node_type": "array",
        "data_type": spec.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk_shape}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
    }.items():
        if fields.get(name) != expected:
            raise CorruptStoreError(
                f"{column}: {name}", expected=expected, got=fields.get(name), remedy=REMAKE
            )
    codecs = fields.get("codecs")
    names = [c.get("name") if isinstance(c, dict) else c for c in codecs or ()]
    is_swapped = '"big"' in json.dumps(codecs)
    if names != ["bytes", "zstd", "crc32c"] or is_swapped:
        raise CorruptStoreError(
            f"{column}: codecs",
            expected="bytes (little-endian), zstd, crc32c",
            got=codecs,
            remedy=REMAKE,
        )
    return tuple(shape)


def _zstd_content_size(frame: bytes) -> int | None:
    """What a zstd frame's header says of its decompressed bytes (RFC 8878, section 3.1.1.1)."""
    if len(frame) < 6 or frame[:4] != b"\x28\xb5\x2f\xfd":
        return None
    descriptor = frame[4]
    is_single_segment = bool(descriptor & 0x20)
    start = 5 + (not is_single_segment) + (0, 1, 2, 4)[descriptor & 3]
    width = (1 if is_single_segment else 0, 2, 4, 8)[descriptor >> 6]
    if width == 0 or len(frame) < start + width:
        return None
    return int.from_bytes(frame[start : start + width], "little") + (256 if width == 2 else 0)
