"""Zarr groups of one-chunk columns: written through zarr, read back with nothing taken on trust."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore

from interkd.kernels.errors import CorruptStoreError
from interkd.pipeline.cache.format import METADATA_FILE, ZSTD_LEVEL, Array, ColumnSpec

REMAKE = "delete that folder and run cache-teacher again: it makes only what is missing"


def write_group(path: Path, columns: Mapping[str, Array], attributes: Mapping[str, Any]) -> None:
    """Writes a new Zarr v3 group, each column in one chunk: bytes, zstd, CRC-32C.

    The CRC stands outside zstd, so that a damaged byte never reaches the decompressor.
    """
    group = zarr.create_group(LocalStore(path), zarr_format=3, attributes=dict(attributes))
    for name, column in columns.items():
        array = group.create_array(
            name,
            shape=column.shape,
            dtype=column.dtype,
            chunks=tuple(max(1, size) for size in column.shape),
            compressors=[ZstdCodec(level=ZSTD_LEVEL, checksum=True), Crc32cCodec()],
            fill_value=0,
            # an absent chunk must never stand for zeros: then it would be no loss
            config={"write_empty_chunks": True},
        )
        if column.size:
            array[...] = column


def read_attributes(path: Path, *, where: str) -> dict[str, Any]:
    """Attributes of the Zarr v3 group at `path`.

    Raises:
        CorruptStoreError: If its zarr.json is missing or is not what Zarr v3 writes.
    """
    try:
        metadata = json.loads((path / METADATA_FILE).read_bytes())
    except OSError as error:
        raise CorruptStoreError(
            f"{where}: cannot read {METADATA_FILE}", got=error.strerror, remedy=REMAKE
        ) from error
    except (ValueError, RecursionError) as error:
        raise CorruptStoreError(
            f"{where}: {METADATA_FILE} is truncated or corrupt", got=str(error), remedy=REMAKE
        ) from error
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


def read_column(path: Path, spec: ColumnSpec, *, where: str) -> Array:
    """One column of the group at `path`, as `(n, *spec.row_shape)` of `spec.dtype`.

    Raises:
        CorruptStoreError: Naming the column: missing, of another shape or dtype, or with bytes
            that are not what was written.
    """
    column = f"{where}, column '{spec.name}'"
    folder = path / spec.name
    if not folder.is_dir():
        raise CorruptStoreError(f"{column} is missing", remedy=REMAKE)
    try:
        array = zarr.open_array(LocalStore(folder, read_only=True), mode="r", zarr_format=3)
        one_chunk = (max(1, array.shape[0]), *spec.row_shape) if array.shape else None
        form = (array.dtype, array.shape[1:], array.chunks)
        expected_form = (spec.dtype, spec.row_shape, one_chunk)
        chunk = folder / array.metadata.encode_chunk_key((0,) * array.ndim)
        if form == expected_form and (array.size == 0 or chunk.is_file()):
            return np.ascontiguousarray(np.asarray(array[...]), dtype=spec.dtype)
    # zarr, numcodecs and json raise a dozen unrelated types on damaged files
    except Exception as error:
        raise CorruptStoreError(
            f"{column} cannot be read", got=f"{type(error).__name__}: {error}", remedy=REMAKE
        ) from error
    if form != expected_form:
        raise CorruptStoreError(
            f"{column}: dtype, row shape and chunk",
            expected=" ".join(map(str, expected_form)),
            got=" ".join(map(str, form)),
            remedy=REMAKE,
        )
    raise CorruptStoreError(f"{column}: its chunk file is missing", remedy=REMAKE)
