"""Small stores for the tests: CTC-like posteriors, made sparse the plain way."""

from __future__ import annotations

import hashlib
import itertools
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from interkd.pipeline.cache.codec import get_quantiser
from interkd.pipeline.cache.fingerprint import Fingerprint
from interkd.pipeline.cache.format import token_dtype
from interkd.pipeline.cache.writer import EncodedUtterance, PartPlan, StoreWriter
from interkd.pipeline.frames import FrameFormula

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Kept:
    """The tokens that a sparse frame sequence keeps, before quantisation."""

    entries_per_frame: npt.NDArray[np.uint8]
    tokens: npt.NDArray[np.int64]
    log_probs: Float32Array


class StoreMaker:
    """Makes fingerprints, utterances and stores."""

    def fingerprint(self, vocab_size: int = 29, **changes: Any) -> Fingerprint:
        values: dict[str, Any] = {
            "teacher": "wav2vec2",
            "weights_sha256": "ab" * 32,
            "tokens": ("<blk>", *(chr(0x4E00 + i) for i in range(vocab_size - 1))),
            "blank_index": 0,
            "sample_rate": 16_000,
            "frame_formula": FrameFormula(((1, 320, 0),)),
            "top_k": 8,
            "mass": 0.999,
            "quantiser": "log8",
            "precision": "float32",
        }
        return Fingerprint(**{**values, **changes})

    def audio_hash(self, utt_id: str) -> str:
        return hashlib.md5(utt_id.encode()).hexdigest()

    def log_probs(self, frames: int, vocab_size: int, kind: str, seed: int) -> Float32Array:
        generator = np.random.default_rng(seed)
        if kind == "peaky":
            logits = generator.normal(size=(frames, vocab_size))
            logits[:, 0] += 12.0
            spikes = generator.random(frames) < 0.3
            logits[spikes, generator.integers(vocab_size, size=int(spikes.sum()))] += 18.0
        elif kind == "flat":
            logits = generator.normal(scale=0.01, size=(frames, vocab_size))
        elif kind == "ties":
            logits = np.zeros((frames, vocab_size))
        else:  # probabilities 1 and 0
            logits = np.full((frames, vocab_size), -np.inf)
            logits[np.arange(frames), generator.integers(vocab_size, size=frames)] = 0.0
        with np.errstate(divide="ignore"):
            total = np.log(np.exp(logits).sum(axis=1, keepdims=True))
        log_probs: Float32Array = (logits - total).astype(np.float32)
        return log_probs

    def keep(self, log_probs: Float32Array, *, top_k: int, mass: float) -> Kept:
        """The fewest tokens that reach the mass, at most `top_k`, blank 0 always."""
        entries, tokens, kept = [], [], []
        for frame in log_probs:
            order = np.argsort(-frame, kind="stable")
            reached = np.cumsum(np.exp(frame[order], dtype=np.float64))
            count = min(top_k, int(np.searchsorted(reached, mass)) + 1, len(frame))
            best = order[:count].tolist()
            chosen = sorted(best if 0 in best else [*best[: top_k - 1], 0])
            entries.append(len(chosen))
            tokens += chosen
            kept += frame[chosen].tolist()
        return Kept(
            entries_per_frame=np.array(entries, dtype=np.uint8),
            tokens=np.array(tokens, dtype=np.int64),
            log_probs=np.array(kept, dtype=np.float32),
        )

    def encode(self, utt_id: str, kept: Kept, fingerprint: Fingerprint) -> EncodedUtterance:
        return EncodedUtterance(
            utt_id=utt_id,
            audio_hash=self.audio_hash(utt_id),
            entries_per_frame=kept.entries_per_frame,
            tokens=kept.tokens.astype(token_dtype(fingerprint.vocab_size)),
            log_prob_codes=get_quantiser(fingerprint.quantiser).quantise(kept.log_probs),
            samples=320 * len(kept.entries_per_frame),
        )

    def utterances(
        self,
        fingerprint: Fingerprint,
        lengths: Sequence[int],
        *,
        kind: str = "peaky",
        seed: int = 0,
    ) -> list[EncodedUtterance]:
        return [
            self.encode(
                f"utterance-{i}",
                self.keep(
                    self.log_probs(length, fingerprint.vocab_size, kind, seed + i),
                    top_k=fingerprint.top_k,
                    mass=fingerprint.mass,
                ),
                fingerprint,
            )
            for i, length in enumerate(lengths)
        ]

    def plan(self, utterances: Sequence[EncodedUtterance], parts: int) -> PartPlan:
        bounds = np.linspace(0, len(utterances), parts + 1).astype(int).tolist()
        return PartPlan(
            utt_ids=tuple(u.utt_id for u in utterances),
            audio_hashes=tuple(u.audio_hash for u in utterances),
            parts=tuple(range(a, b) for a, b in itertools.pairwise(bounds)),
        )

    def write(
        self,
        path: Path,
        utterances: Sequence[EncodedUtterance],
        fingerprint: Fingerprint,
        *,
        parts: int = 1,
        finish: bool = True,
    ) -> Path:
        plan = self.plan(utterances, parts)
        writer = StoreWriter.open(path, fingerprint, plan)
        for index in writer.missing_parts():
            assert writer.write_part(index, [utterances[i] for i in plan.parts[index]])
        if finish:
            writer.finish({"teacher_wer": 7.25})
        return path


@pytest.fixture(scope="session")
def maker() -> StoreMaker:
    return StoreMaker()


@pytest.fixture
def fingerprint(maker: StoreMaker) -> Fingerprint:
    return maker.fingerprint()


@pytest.fixture
def utterances(maker: StoreMaker, fingerprint: Fingerprint) -> list[EncodedUtterance]:
    return maker.utterances(fingerprint, [20, 0, 35, 1, 12, 30])


@pytest.fixture
def plan(maker: StoreMaker, utterances: list[EncodedUtterance]) -> PartPlan:
    return maker.plan(utterances, 3)


@pytest.fixture(scope="session")
def written_store(maker: StoreMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    fingerprint = maker.fingerprint()
    utterances = maker.utterances(fingerprint, [20, 0, 35, 1, 12, 30])
    path = tmp_path_factory.mktemp("written") / "store"
    return maker.write(path, utterances, fingerprint, parts=2)


@pytest.fixture
def store(written_store: Path, tmp_path: Path) -> Path:
    """A finished store to damage: 2 parts, 6 utterances, one of them without frames."""
    return Path(shutil.copytree(written_store, tmp_path / "train.teacher.zarr"))


@pytest.fixture(scope="session")
def flip() -> Callable[[Path, int, int], None]:
    """Flips bits of one byte of a file; negative positions count from the end."""

    def flip_byte(path: Path, position: int, mask: int = 0xFF) -> None:
        content = bytearray(path.read_bytes())
        content[position] ^= mask
        path.write_bytes(content)

    return flip_byte
