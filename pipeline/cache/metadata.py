"""The store's zarr.json: fingerprint, plan and summary as the attributes of a Zarr v3 group."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interkd.kernels.errors import CorruptStoreError, FingerprintError, StoreError
from interkd.pipeline.cache.containers import FolderContainer, forbidden
from interkd.pipeline.cache.files import publish_file
from interkd.pipeline.cache.fingerprint import Fingerprint
from interkd.pipeline.cache.format import (
    FORMAT_NAME,
    METADATA_FILE,
    QUANTISER_NAMES,
    file_name,
    part_name,
)
from interkd.pipeline.cache.groups import read_attributes
from interkd.pipeline.cache.sealed import seal, unseal

MAX_PARTS = 1 << 20
MAX_UTTERANCES = 1 << 31
REBUILD = "write the cache again with cache-teacher, into another folder"


@dataclass(frozen=True, kw_only=True)
class StoreMetadata:
    """What the root of a store says.

    Attributes:
        fingerprint: What the store was made with.
        plan_digest: Digest of the plan of its parts.
        part_count: Parts planned.
        utterance_count: Utterances planned.
        summary: What stage one measured, JSON values; None until the store is finished.
    """

    fingerprint: Fingerprint
    plan_digest: str
    part_count: int
    utterance_count: int
    summary: dict[str, Any] | None = None

    @property
    def version(self) -> int:
        """Of the format."""
        return self.fingerprint.format_version

    def part_attributes(self, index: int) -> dict[str, Any]:
        """Of a part's group, what ties the part to this store and to its place."""
        return {"part": index, **self.index_attributes()}

    def index_attributes(self) -> dict[str, Any]:
        """Of the index's group, what ties it to this store."""
        return {"fingerprint": self.fingerprint.digest, "plan": self.plan_digest}

    def missing_parts(self, root: Path) -> list[int]:
        """Planned parts that do not stand.

        Raises:
            StoreError: If this user may not list the store's folder.
        """
        try:
            names = {path.name for path in root.iterdir()}  # one call, however many parts
        except PermissionError as error:
            raise forbidden(root, error) from error
        wanted = (file_name(part_name(i), self.version) for i in range(self.part_count))
        return [i for i, name in enumerate(wanted) if name not in names]


def write_metadata(root: Path, metadata: StoreMetadata, *, replace: bool) -> None:
    """Writes the root's zarr.json at once; without `replace` one that stands there stays.

    Raises:
        StoreError: For a summary that JSON cannot hold.
    """
    attributes: dict[str, Any] = {
        "format": FORMAT_NAME,
        "fingerprint": metadata.fingerprint.to_dict(),
        "plan": {
            "digest": metadata.plan_digest,
            "parts": metadata.part_count,
            "utterances": metadata.utterance_count,
        },
        "summary": metadata.summary,
    }
    sealed = seal(attributes, what="summary of the store")
    group = {"zarr_format": 3, "node_type": "group", "attributes": sealed}
    content = (json.dumps(group, indent=1) + "\n").encode()
    publish_file(root / METADATA_FILE, content, replace=replace)


def read_metadata(root: Path) -> StoreMetadata:
    """Reads and checks the root's zarr.json.

    Raises:
        StoreError: If nothing, no folder or no teacher cache stands at `root`, or one of a version
            that this release does not read, or one that this user may not read.
        CorruptStoreError: If zarr.json is truncated or is not what was written.
    """
    try:
        _require_store(root)
    except PermissionError as error:
        raise forbidden(root, error) from error
    try:
        attributes = read_attributes(FolderContainer(root), where=str(root))
    except CorruptStoreError as error:  # the remedy of a part is not that of the root
        raise CorruptStoreError(error.what, got=error.got, remedy=REBUILD) from error
    if attributes.get("format") != FORMAT_NAME:
        raise StoreError(
            f"{root} is a Zarr group but no teacher cache",
            expected=f"format {FORMAT_NAME}",
            got=attributes.get("format", "none"),
        )
    damaged = f"{root / METADATA_FILE} is not what was written"
    fingerprint = attributes.get("fingerprint")
    if not isinstance(fingerprint, dict) or "format_version" not in fingerprint:
        raise CorruptStoreError(damaged, expected="a fingerprint", got="none", remedy=REBUILD)
    if fingerprint["format_version"] not in QUANTISER_NAMES:
        raise StoreError(
            f"format version of {root}",
            expected=" or ".join(map(str, QUANTISER_NAMES)),
            got=fingerprint["format_version"],
            remedy="read it with the interkd release that wrote it, or write the cache again",
        )
    attributes = unseal(attributes, what=str(root / METADATA_FILE), remedy=REBUILD)
    try:
        metadata = StoreMetadata(
            fingerprint=Fingerprint.from_dict(fingerprint),
            plan_digest=attributes["plan"]["digest"],
            part_count=attributes["plan"]["parts"],
            utterance_count=attributes["plan"]["utterances"],
            summary=attributes["summary"],
        )
    except FingerprintError as error:
        raise FingerprintError(f"{root}: {error}") from error
    except (KeyError, TypeError) as error:
        raise CorruptStoreError(damaged, got=f"no {error}", remedy=REBUILD) from error
    for name, count, most in (
        ("parts", metadata.part_count, MAX_PARTS),
        ("utterances", metadata.utterance_count, MAX_UTTERANCES),
    ):
        if type(count) is not int or not 1 <= count <= most:
            raise CorruptStoreError(
                f"{root / METADATA_FILE}: {name} of the plan",
                expected=f"1 to {most:,}",
                got=count,
                remedy=REBUILD,
            )
    return metadata


def _require_store(root: Path) -> None:
    if not root.exists():
        raise StoreError(f"no teacher cache at {root}", remedy="make one with cache-teacher")
    if not root.is_dir():
        raise StoreError(f"{root} is not a folder", expected="the folder of a teacher cache")
    if not (root / METADATA_FILE).exists():
        raise StoreError(
            f"{root} holds no teacher cache", expected=f"a file {METADATA_FILE}", got="none"
        )
