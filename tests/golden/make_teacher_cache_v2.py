"""Makes tests/golden/teacher-cache-v2: run once, by the release that introduced version 2.

    python tests/golden/make_teacher_cache_v2.py

A golden store is never made again: later releases must read these very bytes. (Version 1 was made
by commit 22f335d, whose writer is gone; its store stands beside this one.)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from interkd.pipeline.cache.fingerprint import Fingerprint
from interkd.pipeline.cache.part import EncodedUtterance
from interkd.pipeline.cache.plan import PartPlan
from interkd.pipeline.cache.writer import StoreWriter
from interkd.pipeline.frames import FrameFormula

IDS = ("utt-1", "utt-ü-2", "utt-3")
HASHES = (
    "0123456789abcdef0123456789abcdef",
    "02468acf13579bde02468acf13579bde",
    "0369d0369d0369cd0369d0369d0369cd",
)
MORE = 32  # the continuation bit of angle5
BLANK: tuple[list[int], ...] = ([31, 3 + MORE, 16 + MORE], [], [0 + MORE, 30])
TOKENS: tuple[list[int], ...] = ([2, 3, 4], [], [1])
FRACTIONS: tuple[list[int], ...] = ([28, 20 + MORE, 7], [], [31])


def main(path: Path) -> None:
    fingerprint = Fingerprint(
        teacher="golden",
        weights_sha256="5a" * 32,
        tokens=("<blk>", "▁", "a", "b", "ü"),
        blank_index=0,
        sample_rate=16_000,
        frame_formula=FrameFormula.parse("400,160,200/3,2,1"),
        top_k=4,
        mass=0.99,
        quantiser="angle5",
        precision="float32",
    )
    plan = PartPlan(utt_ids=IDS, audio_hashes=HASHES, parts=(range(2), range(2, 3)))
    utterances = [
        EncodedUtterance(
            utt_id=utt_id,
            audio_hash=audio_hash,
            blank=np.array(blank, np.uint8),
            tokens=np.array(tokens, np.uint8),
            fractions=np.array(fractions, np.uint8),
            samples=1000 * number,
        )
        for number, (utt_id, audio_hash, blank, tokens, fractions) in enumerate(
            zip(IDS, HASHES, BLANK, TOKENS, FRACTIONS, strict=True), start=1
        )
    ]
    writer = StoreWriter.open(path, fingerprint, plan)
    writer.write_part(0, utterances[:2], attributes={"teacher_words": [1, 4]})
    writer.write_part(1, utterances[2:])
    writer.finish({"teacher_wer": 25.0})


if __name__ == "__main__":
    main(Path(__file__).parent / "teacher-cache-v2")
