"""JSON attributes with a checksum of themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import xxhash

from interkd.kernels.errors import CorruptStoreError, StoreError

CHECKSUM = "checksum"


def canonical_json(values: Any) -> bytes:
    """JSON with sorted keys, no white space, ASCII only: the bytes that digests are taken over.

    Raises:
        ValueError: For NaN and infinities.
        TypeError: For values that JSON does not have.
    """
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def seal(attributes: Mapping[str, Any], *, what: str) -> dict[str, Any]:
    """The attributes with their checksum among them.

    Raises:
        StoreError: For values that JSON cannot hold, naming `what`.
    """
    try:
        checksum = xxhash.xxh3_64_hexdigest(canonical_json(attributes))
    except (TypeError, ValueError) as error:
        raise StoreError(what, expected="JSON values", got=str(error)) from error
    return {**attributes, CHECKSUM: checksum}


def unseal(attributes: Mapping[str, Any], *, what: str, remedy: str) -> dict[str, Any]:
    """The attributes without their checksum, which must be right.

    Raises:
        CorruptStoreError: If it is not, naming `what`.
    """
    values = {key: value for key, value in attributes.items() if key != CHECKSUM}
    try:
        computed = xxhash.xxh3_64_hexdigest(canonical_json(values))
    except ValueError:  # a number that grew into infinity
        computed = "of finite numbers"
    if attributes.get(CHECKSUM) != computed:
        raise CorruptStoreError(
            f"{what} is not what was written",
            expected=f"checksum {computed}",
            got=attributes.get(CHECKSUM, "none"),
            remedy=remedy,
        )
    return values
