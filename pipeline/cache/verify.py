"""Verification: every digest and every rule of the format, all problems in one report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from interkd.kernels.errors import StoreError
from interkd.pipeline.cache.format import INDEX_NAME, METADATA_FILE, file_name, part_name
from interkd.pipeline.cache.index import StoreIndex, read_index
from interkd.pipeline.cache.metadata import StoreMetadata, read_metadata
from interkd.pipeline.cache.part import Problem
from interkd.pipeline.cache.part_io import load_part
from interkd.pipeline.cache.parts_parallel import Progress, map_parts
from interkd.pipeline.cluster.tasks import IN_PROCESS, ClusterSettings
from interkd.pipeline.progress import SILENT, Message

LONG_WORK = 400  # parts of an hour, 25 ms each; processes need some 4 s to start


@dataclass(frozen=True, kw_only=True)
class PartReport:
    """What `verify_part` found: counts are 0 where the part cannot be read."""

    utterances: int = 0
    frames: int = 0
    entries: int = 0
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What was gone through, and everything that is wrong with it."""

    path: Path
    parts: int
    utterances: int
    frames: int
    entries: int
    problems: tuple[Problem, ...]


def verify(
    path: Path | str,
    *,
    progress: Progress | None = None,
    cluster: ClusterSettings = IN_PROCESS,
    message: Message = SILENT,
) -> VerifyReport:
    """Checks a store from the first byte to the last, its parts side by side.

    The store need not be finished.

    Args:
        path: The store.
        progress: Called with the parts done and the parts in all, after each part.
        cluster: Where.
        message: Told what a user waits for.

    Returns:
        A report; its problems name part, column and utterance where they can be told.

    Raises:
        StoreError: If there is no store, or its zarr.json cannot be read: nothing else can be
            judged then.
    """
    root = Path(path)
    metadata = read_metadata(root)
    problems: list[Problem] = []
    index = None
    if metadata.summary is None:
        problems.append(Problem(where=METADATA_FILE, what="no summary: the store is not finished"))
    try:
        index = read_index(root, metadata)
    except StoreError as error:
        what = str(error).removeprefix(f"{root} {INDEX_NAME}").strip(": ,")
        problems.append(Problem(where=INDEX_NAME, what=what))

    check = partial(verify_part, root, metadata=metadata, index=index)
    reports = map_parts(
        check, metadata.part_count, progress, cluster=cluster, long_work=LONG_WORK, message=message
    )
    return VerifyReport(
        path=root,
        parts=metadata.part_count,
        utterances=sum(report.utterances for report in reports),
        frames=sum(report.frames for report in reports),
        entries=sum(report.entries for report in reports),
        problems=(*problems, *(problem for report in reports for problem in report.problems)),
    )


def verify_part(
    root: Path, part_index: int, metadata: StoreMetadata, index: StoreIndex | None
) -> PartReport:
    """Checks one part: its bytes, digests, the format's rules, and the index, if it can be read."""
    where = part_name(part_index)
    if not (root / file_name(where, metadata.version)).exists():
        return PartReport(problems=(Problem(where=where, what="the part is missing"),))
    problems: list[Problem] = []
    try:
        part = load_part(root, part_index, metadata, where=where, problems=problems)
    except StoreError as error:  # no damage: it may not be read
        part = None
        problems.append(Problem(where=where, what=str(error)))
    if part is None:
        if index is not None and problems:
            lost = f"{problems[0].what}; with it {index.span_of(part_index)}"
            problems[0] = replace(problems[0], what=lost)
        return PartReport(problems=tuple(problems))
    shape_problems = list(part.shape_problems(where))
    problems += shape_problems
    if not shape_problems:
        problems += part.digest_problems(where)
        problems += part.frame_problems(where)
    if index is not None:
        problems += index.problems(part_index, part, where)
    return PartReport(
        utterances=len(part.utt_ids),
        frames=part.frames,
        entries=part.entries,
        problems=tuple(problems),
    )
