"""Vectors under the output layer of a TorchScript teacher, kept in a file for training on."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interkd.kernels.errors import TeacherError
from interkd.pipeline.corpus.audio import AudioCache
from interkd.pipeline.corpus.batches import length_sorted_batches
from interkd.pipeline.corpus.manifest import Manifest

ENCODER_WIDTH = 512
ENCODER_SHIFT = 320  # samples at 16 kHz


class Encoder:
    """The TorchScript file's vectors of waveforms."""

    def __init__(self, path: Path, device: torch.device) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            self.model: Any = torch.jit.load(  # type: ignore[no-untyped-call]
                str(path), map_location=device
            ).eval()
        self.model = self.model.float()

    @torch.inference_mode()
    def vectors(self, waveforms: Tensor, sample_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Float32 `(B, T, 512)`, zeros past the frames of each, int64 `(B,)`."""
        lengths = -(-sample_lengths // ENCODER_SHIFT)
        hidden = self.model.encode_mel(self.model.log_mel(waveforms, sample_lengths), lengths)
        hidden = hidden[:, : int(lengths.max())].float()
        valid = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
        return hidden * valid[..., None], lengths


class Vectors:
    """The kept vectors of a manifest's utterances."""

    def __init__(self, manifest: Manifest, folder: Path, encoder: Path) -> None:
        prefix = folder / manifest.path.parent.name
        values, counts = Path(f"{prefix}-h.npy"), Path(f"{prefix}-n.npy")
        if not (values.exists() and counts.exists()):
            folder.mkdir(parents=True, exist_ok=True)
            _write_vectors(manifest, Encoder(encoder, torch.device("cpu")), values, counts)
        self.lengths = torch.from_numpy(np.load(counts).astype(np.int64))
        expected = [-(-u.samples // ENCODER_SHIFT) for u in manifest.utterances]
        if self.lengths.tolist() != expected:
            raise TeacherError(f"{counts} is not of {manifest.path}", remedy="remove it")
        self.values = np.load(values, mmap_mode="r")
        self.starts = np.concatenate([[0], np.cumsum(self.lengths.numpy())])

    def batch(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        lengths = self.lengths[rows]
        padded = torch.zeros(len(rows), int(lengths.max()), ENCODER_WIDTH)
        for target, row in zip(padded, rows, strict=True):
            kept = self.values[self.starts[row] : self.starts[row + 1]].astype(np.float32)
            target[: len(kept)] = torch.from_numpy(kept)
        return padded, lengths


def _write_vectors(manifest: Manifest, encoder: Encoder, values: Path, counts: Path) -> None:
    lengths = np.array([-(-u.samples // ENCODER_SHIFT) for u in manifest.utterances])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    part = values.with_suffix(".part")
    shape = (int(starts[-1]), ENCODER_WIDTH)
    kept = np.lib.format.open_memmap(part, mode="w+", dtype=np.float16, shape=shape)
    audio = AudioCache(0)
    for rows in length_sorted_batches(manifest.utterances, 160.0):
        batch = audio.read_batch([manifest.utterances[row] for row in rows])
        hidden, _ = encoder.vectors(*batch)
        for row, vectors in zip(rows, hidden, strict=True):
            kept[starts[row] : starts[row + 1]] = vectors[: lengths[row]].numpy()
    kept.flush()
    np.save(counts, lengths)
    part.rename(values)
