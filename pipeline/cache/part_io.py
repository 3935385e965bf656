"""Parts on disk: what the writer packs and checks, the reader loads and `verify` goes through."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from interkd.kernels.errors import CorruptStoreError
from interkd.pipeline.cache.containers import (
    Container,
    FolderContainer,
    ZipContainer,
    forbidden,
)
from interkd.pipeline.cache.format import METADATA_FILE, Array, file_name, part_name
from interkd.pipeline.cache.groups import REMAKE, pack_group, read_attributes, read_column
from interkd.pipeline.cache.metadata import StoreMetadata
from interkd.pipeline.cache.part import Part, Problem, column_specs
from interkd.pipeline.cache.sealed import seal, unseal

FACTS = "facts"


def pack_part(
    index: int, columns: Mapping[str, Array], metadata: StoreMetadata, facts: Mapping[str, Any]
) -> bytes:
    """The file of a part.

    Raises:
        StoreError: For facts that JSON cannot hold, or a column too large for a part.
    """
    attributes = {**metadata.part_attributes(index), FACTS: dict(facts)}
    return pack_group(columns, seal(attributes, what=f"facts of part {index}"))


def open_container(root: Path, name: str, version: int, *, where: str) -> Container:
    """A part or the index, opened.

    Raises:
        CorruptStoreError: If it is missing or cannot be opened.
        StoreError: If this user may not read it.
    """
    path = root / file_name(name, version)
    try:
        if version == 1:
            return FolderContainer(path)
        return ZipContainer(path)
    except PermissionError as error:
        raise forbidden(path, error) from error
    except OSError as error:
        raise CorruptStoreError(
            f"{where} cannot be read", got=error.strerror, remedy=REMAKE
        ) from error
    except CorruptStoreError as error:
        raise CorruptStoreError(f"{where}: {error}", remedy=REMAKE) from error


def read_part(root: Path, index: int, metadata: StoreMetadata, *, where: str) -> Part:
    """Reads a part with its digests verified.

    Raises:
        CorruptStoreError: Naming the part and the column or utterance of the first problem.
    """
    problems: list[Problem] = []
    part = load_part(root, index, metadata, where=where, problems=problems)
    if part is not None and not problems:
        problems.extend(digest_problems_of(part, where))
    if part is None or problems:
        raise CorruptStoreError(str(problems[0]), remedy=REMAKE)
    return part


def digest_problems_of(part: Part, where: str) -> Iterator[Problem]:
    """Shape problems of a part; where there are none, its utterances with a wrong digest."""
    shape_problems = list(part.shape_problems(where))
    yield from shape_problems
    if not shape_problems:
        yield from part.digest_problems(where)


def read_facts(root: Path, index: int, metadata: StoreMetadata, *, where: str) -> dict[str, Any]:
    """The facts that were written with a part.

    Raises:
        CorruptStoreError: If the part's attributes are damaged or are another part's.
    """
    container = open_container(root, part_name(index), metadata.version, where=where)
    return _facts_of(container, index, metadata, where=where)


def _facts_of(
    container: Container, index: int, metadata: StoreMetadata, *, where: str
) -> dict[str, Any]:
    attributes = read_attributes(container, where=where)
    attributes = unseal(attributes, what=f"{where}: {METADATA_FILE}", remedy=REMAKE)
    for key, expected in metadata.part_attributes(index).items():
        if attributes.get(key) != expected:
            raise CorruptStoreError(
                f"{where}: is not this store's part {index}: {key}",
                expected=expected,
                got=attributes.get(key),
                remedy=REMAKE,
            )
    facts: dict[str, Any] = attributes.get(FACTS, {})
    return facts


def load_part(
    root: Path, index: int, metadata: StoreMetadata, *, where: str, problems: list[Problem]
) -> Part | None:
    """Reads what can be read of a part.

    Args:
        root: The store.
        index: Which part.
        metadata: Of the store.
        where: The part's name in messages.
        problems: Takes a problem for each attribute and column that is not what was written.

    Returns:
        The part, its columns not yet compared with each other; None where one cannot be read.
    """
    try:
        container = open_container(root, part_name(index), metadata.version, where=where)
    except CorruptStoreError as error:
        problems.append(_as_problem(error, where))
        return None
    try:
        _facts_of(container, index, metadata, where=where)
    except CorruptStoreError as error:
        problems.append(_as_problem(error, where))
    columns: dict[str, Array] = {}
    specs = column_specs(metadata.fingerprint)
    for spec in specs:
        try:
            columns[spec.name] = read_column(container, spec, where=where)
        except CorruptStoreError as error:
            problems.append(_as_problem(error, where, column=spec.name))
    if len(columns) < len(specs):
        return None
    try:
        return Part(columns, metadata.fingerprint)
    except UnicodeDecodeError as error:
        problems.append(Problem(where=where, column="utterance_id", what=f"not UTF-8: {error}"))
        return None


def _as_problem(error: CorruptStoreError, where: str, column: str | None = None) -> Problem:
    what = error.what.removeprefix(f"{where}: ").removeprefix(f"{where}, column '{column}'")
    found = [f"expected {error.expected}"] if error.expected is not None else []
    found += [f"got {error.got}"] if error.got is not None else []
    return Problem(where=where, column=column, what="; ".join([what.strip(": "), *found]))
