"""What a compacted store will be: its fingerprint, its utterances, its parts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from interkd.kernels.errors import CorruptStoreError, StoreError
from interkd.pipeline.cache.codec import get_quantiser
from interkd.pipeline.cache.fingerprint import Fingerprint
from interkd.pipeline.cache.format import FORMAT_VERSION, UTTERANCE_COLUMNS, Array, part_name
from interkd.pipeline.cache.groups import REMAKE, read_column
from interkd.pipeline.cache.part_io import open_container
from interkd.pipeline.cache.parts_parallel import map_parts
from interkd.pipeline.cache.plan import PartPlan, plan_parts
from interkd.pipeline.cache.reader import TeacherStore
from interkd.pipeline.config import nearest

VERSION_1_QUANTISER = "angle5"  # what a store of version 1 becomes unless told otherwise
_SAMPLES = next(spec for spec in UTTERANCE_COLUMNS if spec.name == "samples")


def target_fingerprint(
    store: TeacherStore, quantiser: str | None, mass: float | None
) -> Fingerprint:
    """The source's fingerprint with the new settings.

    Args:
        store: The source.
        quantiser: None keeps the source's; one of version 1 becomes `VERSION_1_QUANTISER`.
        mass: None keeps the source's.

    Raises:
        StoreError: For more bits or a larger mass than the source's: what was not kept cannot come
            back.
    """
    old = store.fingerprint
    is_old_version = old.format_version < FORMAT_VERSION
    name = quantiser or (VERSION_1_QUANTISER if is_old_version else old.quantiser)
    new = get_quantiser(name)
    lost = "what a store does not keep cannot come back; cache the teacher again for it"
    if not is_old_version and new.bits > get_quantiser(old.quantiser).bits:
        raise StoreError(
            f"quantiser of {store.path}",
            expected=f"{old.quantiser} or fewer bits",
            got=name,
            remedy=lost,
        )
    if mass is not None and not 0 < mass <= old.mass:
        raise StoreError(
            f"mass of {store.path}",
            expected=f"above 0, at most {old.mass:g}",
            got=mass,
            remedy=lost,
        )
    return replace(
        old,
        quantiser=name,
        mass=old.mass if mass is None else mass,
        top_k=max(2, old.top_k),
        format_version=FORMAT_VERSION,
    )


def remaining_positions(
    store: TeacherStore, drop: Collection[str], keep: Collection[str] | None
) -> list[int]:
    """Positions in the store of the utterances that stay, rising.

    Args:
        store: The source.
        drop: Ids to leave out.
        keep: Ids to take; all when None.

    Raises:
        StoreError: For an id that the store lacks, or if no utterance is left.
    """
    known = set(store.utterance_ids)
    for wanted in (drop, keep or ()):
        unknown = [utt_id for utt_id in wanted if utt_id not in known]
        if unknown:
            raise StoreError(
                f"{store.path} lacks {len(unknown)} utterances of the list",
                expected="ids that it holds",
                got=f"'{unknown[0]}'",
                remedy=nearest(unknown[0], store.utterance_ids),
            )
    taken = (known if keep is None else set(keep)) - set(drop)
    positions = [i for i, utt_id in enumerate(store.utterance_ids) if utt_id in taken]
    if not positions:
        raise StoreError(f"no utterance of {store.path} is left", expected="at least one")
    return positions


def audio_seconds(store: TeacherStore) -> Array:
    """Length of every utterance of the source in seconds; of each part one column is read.

    Raises:
        CorruptStoreError: If a part's lengths cannot be read or are not as many as its utterances.
    """

    def samples(index: int) -> Array:
        where = f"{store.path} {part_name(index)}"
        version = store.metadata.version
        container = open_container(store.path, part_name(index), version, where=where)
        return read_column(container, _SAMPLES, where=where)

    lengths = map_parts(samples, store.part_count)
    for index, column in enumerate(lengths):
        rows = store.index.rows_of(index)
        if len(column) != rows.stop - rows.start:
            raise CorruptStoreError(
                f"{store.path} {part_name(index)}, column 'samples'",
                expected=f"{rows.stop - rows.start} values",
                got=len(column),
                remedy=REMAKE,
            )
    seconds: Array = np.concatenate(lengths) / store.fingerprint.sample_rate
    return seconds


def part_plan(
    store: TeacherStore, positions: Sequence[int], seconds: Array, part_seconds: float
) -> PartPlan:
    """The plan of the new store.

    Args:
        store: The source.
        positions: Of the utterances that stay.
        seconds: Length of each of them.
        part_seconds: Length of a part to aim at.
    """
    index = store.index
    ids = tuple(index.utt_ids[i] for i in positions)
    return PartPlan(
        utt_ids=ids,
        audio_hashes=tuple(index.audio_hashes[i].tobytes().hex() for i in positions),
        parts=tuple(plan_parts(ids, seconds.tolist(), part_seconds)),
    )
