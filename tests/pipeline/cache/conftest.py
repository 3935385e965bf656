"""Small stores for the tests: CTC-like posteriors, made sparse the plain way."""

from __future__ import annotations

import hashlib
import itertools
import shutil
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import zarr

from interkd.pipeline.cache.codec import encode_frames, get_quantiser, pack_codes
from interkd.pipeline.cache.containers import pack_zip
from interkd.pipeline.cache.fingerprint import Fingerprint
from interkd.pipeline.cache.format import Array
from interkd.pipeline.cache.groups import pack_group
from interkd.pipeline.cache.writer import EncodedUtterance, PartPlan, StoreWriter
from interkd.pipeline.frames import FrameFormula

Float32Array = npt.NDArray[np.float32]


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
            "mass": 0.99,
            "quantiser": "angle5",
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

    def encode(
        self, utt_id: str, log_probs: Float32Array, fingerprint: Fingerprint
    ) -> EncodedUtterance:
        encoded = encode_frames(
            torch.from_numpy(log_probs),
            top_k=fingerprint.top_k,
            mass=fingerprint.mass,
            quantiser=get_quantiser(fingerprint.quantiser),
            blank_index=fingerprint.blank_index,
        )
        *columns, _ = (column.numpy() for column in encoded.columns())
        blank, tokens, fractions = pack_codes(*columns)
        return EncodedUtterance(
            utt_id=utt_id,
            audio_hash=self.audio_hash(utt_id),
            blank=blank,
            tokens=tokens,
            fractions=fractions,
            samples=320 * len(log_probs),
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
                self.log_probs(length, fingerprint.vocab_size, kind, seed + i),
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


class Archive:
    """A part's or the index's file, opened up for a test to damage."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        with zipfile.ZipFile(self.path) as archive:
            return archive.namelist()

    def span(self, name: str) -> tuple[int, int]:
        """Where in the file a member's bytes stand: offset and length."""
        with zipfile.ZipFile(self.path) as archive:
            entry = archive.getinfo(name)
        header = self.path.read_bytes()[entry.header_offset :][:30]
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        return entry.header_offset + 30 + name_length + extra_length, entry.compress_size

    def flip(self, name: str, position: int, mask: int = 0xFF) -> None:
        """Flips bits of one byte of a member as it stands in the file."""
        offset, size = self.span(name)
        content = bytearray(self.path.read_bytes())
        content[offset + position % size] ^= mask
        self.path.write_bytes(content)

    def edit(self, **changes: Callable[[bytes], bytes | None]) -> None:
        """Writes the archive anew, some members changed (`__` for `/`) or, by None, left out."""
        with zipfile.ZipFile(self.path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        for key, change in changes.items():
            name = key.replace("__", "/")
            changed = change(members.pop(name))
            if changed is not None:
                members[name] = changed
        self.path.write_bytes(pack_zip(members))

    def column(self, name: str) -> Array:
        group = zarr.open_group(zarr.storage.ZipStore(self.path, mode="r"), mode="r")
        return np.asarray(group[name][...])  # type: ignore[index]

    def rewrite(self, name: str, change: Callable[[Array], Array]) -> None:
        """Changes a column's values, so that every checksum of its chunk is right again."""
        group = zarr.open_group(zarr.storage.ZipStore(self.path, mode="r"), mode="r")
        columns = {key: np.asarray(array[...]) for key, array in group.arrays()}
        columns[name] = change(columns[name].copy())
        self.path.write_bytes(pack_group(columns, group.attrs.asdict()))


@pytest.fixture(scope="session")
def archive() -> type[Archive]:
    return Archive


@pytest.fixture(scope="session")
def flip() -> Callable[[Path, int, int], None]:
    """Flips bits of one byte of a file; negative positions count from the end."""

    def flip_byte(path: Path, position: int, mask: int = 0xFF) -> None:
        content = bytearray(path.read_bytes())
        content[position] ^= mask
        path.write_bytes(content)

    return flip_byte
