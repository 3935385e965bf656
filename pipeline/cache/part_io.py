"""Parts as folders: what the writer reads back, the reader loads and `verify` goes through."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from interkd.kernels.errors import CorruptStoreError
from interkd.pipeline.cache.format import METADATA_FILE, Array
from interkd.pipeline.cache.groups import REMAKE, read_attributes, read_column, write_group
from interkd.pipeline.cache.metadata import StoreMetadata
from interkd.pipeline.cache.part import Part, Problem, column_specs
from interkd.pipeline.cache.sealed import seal, unseal

FACTS = "facts"


def write_part_folder(
    folder: Path,
    index: int,
    columns: Mapping[str, Array],
    metadata: StoreMetadata,
    facts: Mapping[str, Any],
) -> None:
    """Writes the columns of a part as a new Zarr group, then reads it back and checks it all.

    Raises:
        StoreError: For facts that JSON cannot hold.
        CorruptStoreError: If what was read back is not what was written.
    """
    attributes = {**metadata.part_attributes(index), FACTS: dict(facts)}
    write_group(folder, columns, seal(attributes, what=f"facts of part {index}"))
    written = read_part_folder(folder, index, metadata, where=str(folder))
    if written.digests.tobytes() != columns["digest"].tobytes():
        raise CorruptStoreError(f"{folder} reads back other digests than were written")


def read_part_folder(folder: Path, index: int, metadata: StoreMetadata, *, where: str) -> Part:
    """Reads a part with its digests verified.

    Raises:
        CorruptStoreError: Naming the part and the column or utterance of the first problem.
    """
    problems: list[Problem] = []
    part = load_part(folder, index, metadata, where=where, problems=problems)
    if part is not None and not problems:
        problems.extend(digest_problems_of(part, metadata, where))
    if part is None or problems:
        raise CorruptStoreError(str(problems[0]), remedy=REMAKE)
    return part


def digest_problems_of(part: Part, metadata: StoreMetadata, where: str) -> Iterator[Problem]:
    """Shape problems of a part; where there are none, its utterances with a wrong digest."""
    shape_problems = list(part.shape_problems(where, metadata.fingerprint.vocab_size))
    yield from shape_problems
    if not shape_problems:
        yield from part.digest_problems(where)


def read_facts(folder: Path, index: int, metadata: StoreMetadata, *, where: str) -> dict[str, Any]:
    """The facts that were written with a part.

    Raises:
        CorruptStoreError: If the part's attributes are damaged or are another part's.
    """
    attributes = read_attributes(folder, where=where)
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
    folder: Path, index: int, metadata: StoreMetadata, *, where: str, problems: list[Problem]
) -> Part | None:
    """Reads what can be read of a part.

    Args:
        folder: The part's group.
        index: Which part must stand there.
        metadata: Of the store.
        where: The part's name in messages.
        problems: Takes a problem for each attribute and column that is not what was written.

    Returns:
        The part, its columns not yet compared with each other; None where one cannot be read.
    """
    try:
        read_facts(folder, index, metadata, where=where)
    except CorruptStoreError as error:
        problems.append(_as_problem(error, where))
    columns: dict[str, Array] = {}
    for spec in column_specs(metadata.fingerprint):
        try:
            columns[spec.name] = read_column(folder, spec, where=where)
        except CorruptStoreError as error:
            problems.append(_as_problem(error, where, column=spec.name))
    if len(columns) < len(column_specs(metadata.fingerprint)):
        return None
    try:
        return Part(columns)
    except UnicodeDecodeError as error:
        problems.append(Problem(where=where, column="utterance_id", what=f"not UTF-8: {error}"))
        return None


def _as_problem(error: CorruptStoreError, where: str, column: str | None = None) -> Problem:
    what = error.what.removeprefix(f"{where}: ").removeprefix(f"{where}, column '{column}'")
    found = [f"expected {error.expected}"] if error.expected is not None else []
    found += [f"got {error.got}"] if error.got is not None else []
    return Problem(where=where, column=column, what="; ".join([what.strip(": "), *found]))
