"""A whole store of the default row, as `StoreWriter` makes it, and the bytes of its files."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from store_rows import TOP_K

from interkd.pipeline.cache.codec import get_quantiser
from interkd.pipeline.cache.fingerprint import Fingerprint
from interkd.pipeline.cache.part import EncodedUtterance
from interkd.pipeline.cache.plan import PartPlan
from interkd.pipeline.cache.writer import StoreWriter
from interkd.pipeline.corpus.manifest import Utterance
from interkd.pipeline.frames import FrameFormula

Array = npt.NDArray[Any]


def store_on_disk(
    plan: PartPlan,
    utterances: Sequence[Utterance],
    lengths: Array,
    columns: Sequence[dict[str, Array]],
    tokens: tuple[str, ...],
) -> dict[str, int]:
    """Bytes of the parts, of the index and of `zarr.json`.

    Args:
        plan: The parts.
        utterances: All of them.
        lengths: Frames of each.
        columns: `blank`, `token` and `fraction` of each part.
        tokens: The vocabulary.
    """
    quantiser = get_quantiser("angle5")
    fingerprint = Fingerprint(
        teacher="bench",
        weights_sha256="0" * 64,
        tokens=tokens,
        blank_index=0,
        sample_rate=utterances[0].sample_rate,
        frame_formula=FrameFormula(((1, 320, 0),)),
        top_k=TOP_K,
        mass=0.99,
        quantiser=quantiser.name,
        precision="float32",
    )
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "store"
        writer = StoreWriter.open(root, fingerprint, plan)
        for index, positions in enumerate(plan.parts):
            blank, token, fraction = (columns[index][n] for n in ("blank", "token", "fraction"))
            ends = np.flatnonzero(fraction < quantiser.levels) + 1
            counts = np.zeros(len(blank), dtype=np.int64)
            counts[blank >= quantiser.levels] = np.diff(ends, prepend=0)
            first_entries = np.concatenate([[0], np.cumsum(counts)])
            first_frames = np.concatenate(
                [[0], np.cumsum(lengths[positions.start : positions.stop])]
            )
            encoded = []
            for row, position in enumerate(positions):
                t0, t1 = first_frames[row], first_frames[row + 1]
                e0, e1 = first_entries[t0], first_entries[t1]
                encoded.append(
                    EncodedUtterance(
                        utt_id=utterances[position].utt_id,
                        audio_hash=utterances[position].audio_identity,
                        blank=blank[t0:t1],
                        tokens=token[e0:e1],
                        fractions=fraction[e0:e1],
                        samples=utterances[position].samples,
                    )
                )
            writer.write_part(index, encoded)
        writer.finish({})
        sizes = {"parts": 0, "index": 0, "zarr.json": 0}
        for file in root.iterdir():
            kind = file.name if file.name in sizes else file.stem.partition("-")[0]
            sizes["parts" if kind == "part" else kind] += file.stat().st_size
        return sizes
