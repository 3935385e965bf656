"""A store held against its teacher: some utterances heard again, and compared frame by frame."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from interkd.kernels.errors import ConfigError, StoreError, TeacherError
from interkd.pipeline.cache.fingerprint import Fingerprint, check_same
from interkd.pipeline.cache.layout import Expanded
from interkd.pipeline.cache.parts_parallel import Progress
from interkd.pipeline.cache.reader import TeacherStore
from interkd.pipeline.cache.teacher_gap import Gap, check_utterance, gap_of
from interkd.pipeline.corpus.audio import AudioCache
from interkd.pipeline.corpus.manifest import Utterance, read_manifest
from interkd.pipeline.devices import resolve_device
from interkd.pipeline.teachers.load import load_teacher
from interkd.pipeline.teachers.protocol import Teacher, TeacherInfo

DIVERGENCE_TOLERANCE = 2e-3  # nats a frame; angle5 at mass 0.99 costs about 4e-4
LARGEST_CHANGED_SHARE = 0.005  # of frames with another argmax


@dataclass(frozen=True, kw_only=True)
class SampleReport:
    """What hearing some utterances again found.

    Attributes:
        utt_ids: Those heard again, in the store's order.
        frames: Of them all.
        found: Between the fresh posteriors and the store.
        largest_at: Utterance with the largest difference of a probability; None without frames.
        expected: Between the fresh posteriors and their own codes: what quantisation alone makes.
            None for a store of version 1, whose codes are no longer made.
        equal_codes: Share of frames whose stored codes are those of the fresh posteriors, 0 to 1;
            None likewise.
        tolerance: Largest mean divergence that passes.
    """

    utt_ids: tuple[str, ...]
    frames: int
    found: Gap
    largest_at: str | None
    expected: Gap | None
    equal_codes: float | None
    tolerance: float

    @property
    def passes(self) -> bool:
        """Whether the store is this teacher's, as far as the sample tells; NaN never passes."""
        is_near = self.found.mean_divergence <= self.tolerance
        return is_near and self.found.changed_best <= LARGEST_CHANGED_SHARE


def sample_check(
    path: Path,
    manifest_path: Path,
    teacher: str,
    *,
    count: int,
    seed: int = 0,
    device: str = "auto",
    teacher_weights: Path | None = None,
    tolerance: float = DIVERGENCE_TOLERANCE,
    progress: Progress | None = None,
) -> SampleReport:
    """Runs the teacher again over a few utterances, one by one, in the store's own precision.

    Args:
        path: A finished store.
        manifest_path: Manifest with utterances of the store.
        teacher: SPEC of the teacher, see `teachers.load`.
        count: Utterances to hear; all that store and manifest share when they are fewer.
        seed: Decides which ones.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        teacher_weights: Local weights of a torchaudio bundle.
        tolerance: Largest mean divergence that passes, nats a frame.
        progress: Called with the utterances done and in all, after each one.

    Raises:
        ConfigError: For a count below 1, a tolerance not above 0, or an unknown device.
        FingerprintError: If the teacher is not the one that the store was made with, its weights
            included.
        TeacherError: If the teacher cannot be loaded or breaks its contract.
        StoreError: If store and manifest share no utterance or know one with other audio, or the
            store has another number of frames of one.
        CorpusError: If the manifest or audio cannot be read.
    """
    if count < 1:
        raise ConfigError("utterances to sample", expected="1 or more", got=count)
    if not tolerance > 0:
        raise ConfigError("tolerance in nats a frame", expected="above 0", got=tolerance)
    store = TeacherStore.open(path)
    utterances = draw(store, read_manifest(manifest_path).utterances, count, seed)
    store.require(utterances)
    loaded = load_teacher(
        teacher,
        device=(on := resolve_device(device)),
        precision=getattr(torch, store.fingerprint.precision),
        weights=teacher_weights,
    )
    check_same(
        store.fingerprint,
        fingerprint_of(loaded.info, store.fingerprint),
        what=f"{path} was made with another teacher than {teacher}",
        remedy="name the teacher, with the weights, that the store was made with",
    )
    checks = []
    for done, utterance in enumerate(utterances, start=1):
        log_probs = _hear(loaded, utterance, on)
        stored = _stored(store, utterance, len(log_probs))
        checks.append(check_utterance(stored, log_probs, store.fingerprint))
        if progress is not None:
            progress(done, len(utterances))
    frames = [len(check.found.divergence) for check in checks]
    peaks = [check.found.largest.max(initial=0.0) for check in checks]
    fresh = [check.expected for check in checks if check.expected is not None]
    equal = [check.equal_codes for check in checks if check.equal_codes is not None]
    total = sum(frames)
    return SampleReport(
        utt_ids=tuple(utterance.utt_id for utterance in utterances),
        frames=total,
        found=gap_of([c.found for c in checks], [c.changed for c in checks]),
        largest_at=utterances[int(np.argmax(peaks))].utt_id if total else None,
        expected=gap_of(fresh, [c.fresh_changed for c in checks]) if fresh else None,
        equal_codes=float(np.concatenate(equal).mean()) if equal and total else None,
        tolerance=tolerance,
    )


def draw(
    store: TeacherStore, utterances: Sequence[Utterance], count: int, seed: int
) -> list[Utterance]:
    """Some of the utterances that store and manifest share, in the store's order."""
    by_id = {utterance.utt_id: utterance for utterance in utterances}
    shared = [utt_id for utt_id in store.utterance_ids if utt_id in by_id]
    if not shared:
        store.require(utterances)  # says what of the first one is amiss
    generator = np.random.default_rng(seed)
    rows = generator.choice(len(shared), size=min(count, len(shared)), replace=False)
    return [by_id[shared[row]] for row in sorted(rows)]


def fingerprint_of(info: TeacherInfo, like: Fingerprint) -> Fingerprint:
    """The fingerprint that a teacher gives a store with the settings of another."""
    return dataclasses.replace(
        like,
        teacher=info.name,
        weights_sha256=info.weights_sha256,
        tokens=info.tokens,
        blank_index=info.blank_index,
        sample_rate=info.sample_rate,
        frame_formula=info.frame_formula,
    )


@torch.inference_mode()
def _hear(teacher: Teacher, utterance: Utterance, device: torch.device) -> Tensor:
    """Log-probabilities `(T, V)` of one utterance on the CPU, float32."""
    waveforms, sample_lengths = AudioCache(0).read_batch([utterance])
    log_probs, frame_lengths = teacher.log_probs(waveforms.to(device), sample_lengths.to(device))
    vocab_size = len(teacher.info.tokens)
    frames = int(frame_lengths[0])
    if log_probs.ndim != 3 or log_probs.shape[2] != vocab_size or log_probs.shape[1] < frames:
        raise TeacherError(
            f"log-probabilities of the teacher for utterance {utterance.utt_id}",
            expected=f"(1, {frames} or more, {vocab_size})",
            got=tuple(log_probs.shape),
        )
    return log_probs[0, :frames].float().cpu()


def _stored(store: TeacherStore, utterance: Utterance, frames: int) -> Expanded:
    """The store's frames of an utterance; refused unless they are as many as the teacher's."""
    targets = store.targets([utterance.utt_id])
    count = len(targets.entry_offsets) - 1
    if count != frames:
        raise StoreError(
            f"{store.path}: frames of utterance '{utterance.utt_id}'",
            expected=f"{frames}, as the teacher makes now",
            got=count,
        )
    return Expanded(
        entry_offsets=targets.entry_offsets.numpy(),
        tokens=targets.tokens.numpy(),
        log_probs=targets.log_probs.numpy(),
    )
