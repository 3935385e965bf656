"""Stage one: run the teacher once over a corpus and write its posteriors to a store."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from interkd.kernels.errors import ConfigError, TeacherError
from interkd.kernels.topk import adaptive_topk
from interkd.pipeline.cache.codec import quantise
from interkd.pipeline.cache.fingerprint import Fingerprint
from interkd.pipeline.cache.inspect import info
from interkd.pipeline.cache.plan import PartPlan, plan_parts
from interkd.pipeline.cache.writer import EncodedUtterance, StoreWriter
from interkd.pipeline.corpus.audio import AudioCache
from interkd.pipeline.corpus.batches import length_sorted_batches
from interkd.pipeline.corpus.manifest import Manifest, Utterance, read_manifest
from interkd.pipeline.corpus.tokens import spell
from interkd.pipeline.devices import resolve_device
from interkd.pipeline.progress import Reporter
from interkd.pipeline.scoring.decode import greedy_decode
from interkd.pipeline.scoring.error_rates import ErrorCounts, count_errors
from interkd.pipeline.students.features import frame_mask
from interkd.pipeline.teachers.load import load_teacher
from interkd.pipeline.teachers.protocol import Teacher

NORMALISATION_TOLERANCE = 0.05  # nats; a bfloat16 log-softmax is off by as much


@dataclass(frozen=True, kw_only=True)
class CacheTeacherConfig:
    """Settings of stage one.

    Attributes:
        teacher: SPEC of the teacher, see `teachers.load`.
        manifest: Written by `interkd prepare`.
        out: The store.
        teacher_weights: Local weights of a torchaudio bundle.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: `float32`, or `bfloat16` for autocast.
        top_k: Most tokens kept of a frame, the blank among them.
        mass: Probability that the kept tokens reach.
        quantiser: `log8` or `float16`.
        part_minutes: Audio in a part, the unit of work and of loss.
        batch_seconds: Padded audio in a batch.
        decode_threads: Threads that decode audio; one a core when None.
    """

    teacher: str
    manifest: Path
    out: Path
    teacher_weights: Path | None = None
    device: str = "auto"
    precision: str = "float32"
    top_k: int = 16
    mass: float = 0.999
    quantiser: str = "log8"
    part_minutes: float = 60.0
    batch_seconds: float = 640.0
    decode_threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class CacheTeacherSummary:
    """What a run of stage one did, and the store it left.

    Attributes:
        store: Its path.
        parts: Parts in the store.
        parts_written: Parts that this run wrote; the others stood already.
        hours: Audio in the store.
        seconds: Wall-clock seconds of this run, the teacher's loading left out.
        times_real_time: Audio seconds a wall-clock second, of the parts that this run wrote.
        store_bytes: On disk.
        frames: Teacher frames in the store.
        bytes_a_frame: Store bytes by frames.
        entries_a_frame: Kept tokens by frames.
        teacher_wer: Greedy WER of the teacher itself in percent, where the manifest has text.
        teacher_cer: Its CER.
    """

    store: Path
    parts: int
    parts_written: int
    hours: float
    seconds: float
    times_real_time: float
    store_bytes: int
    frames: int
    bytes_a_frame: float
    entries_a_frame: float
    teacher_wer: float | None
    teacher_cer: float | None


def cache_teacher(
    config: CacheTeacherConfig, *, reporter: Reporter | None = None
) -> CacheTeacherSummary:
    """Runs the teacher over the manifest and writes the store, or the parts it still lacks.

    A part is written when all its utterances are done and stands whole or not at all, so a run
    that was killed is simply started again.

    Args:
        config: Settings.
        reporter: Hears of the progress.

    Raises:
        InterkdError: If corpus, teacher or store do not fit; parts that stand are kept.
    """
    reporter = reporter or Reporter()
    manifest = read_manifest(config.manifest)
    device = resolve_device(config.device)
    if config.precision not in ("float32", "bfloat16"):
        raise ConfigError("precision", expected="float32 | bfloat16", got=config.precision)
    teacher = load_teacher(
        config.teacher,
        device=device,
        precision=getattr(torch, config.precision),
        weights=config.teacher_weights,
    )
    if teacher.info.sample_rate != manifest.sample_rate:
        raise ConfigError(
            f"sample rate of {config.manifest}",
            expected=f"{teacher.info.sample_rate} Hz (the teacher's)",
            got=manifest.sample_rate,
            remedy="prepare the corpus with --sample-rate",
        )
    writer = StoreWriter.open(
        config.out, _fingerprint(config, teacher), _plan(manifest, config.part_minutes)
    )
    runner = PartRunner(config, teacher, device)
    started = time.monotonic()
    audio_seconds, written = 0.0, 0
    missing = writer.missing_parts()
    parts = {index: [manifest.utterances[i] for i in writer.plan.parts[index]] for index in missing}
    left = sum(u.duration for part in parts.values() for u in part)
    reporter.begin(
        "caching", manifest.total_seconds / 3600, done=(manifest.total_seconds - left) / 3600
    )
    for index, utterances in parts.items():
        encoded, facts = [], PartFacts()
        for item in runner.encode(utterances, facts):
            encoded.append(item)
            audio_seconds += item.samples / manifest.sample_rate
            speed = audio_seconds / (time.monotonic() - started)
            size = facts.entry_bytes / max(1, facts.frames)
            reporter.advance(
                item.samples / manifest.sample_rate / 3600,
                f"{audio_seconds / 3600:.2f} h, {speed:.0f}x real time, {size:.1f} B/frame raw",
            )
        order = {u.utt_id: row for row, u in enumerate(utterances)}
        encoded.sort(key=lambda item: order[item.utt_id])
        writer.write_part(index, encoded, attributes=facts.to_dict())
        written += 1
    reporter.end()
    seconds = time.monotonic() - started
    facts = PartFacts.total(writer.part_attributes())
    writer.finish(
        {
            "hours": manifest.total_seconds / 3600,
            "teacher_wer": facts.rate(facts.words),
            "teacher_cer": facts.rate(facts.characters),
        }
    )
    sizes = info(config.out)
    return CacheTeacherSummary(
        store=config.out,
        parts=len(writer.plan.parts),
        parts_written=written,
        hours=manifest.total_seconds / 3600,
        seconds=seconds,
        times_real_time=audio_seconds / seconds if written else 0.0,
        store_bytes=sizes.total_bytes,
        frames=sizes.frames,
        bytes_a_frame=sizes.total_bytes / max(1, sizes.frames),
        entries_a_frame=sizes.entries / max(1, sizes.frames),
        teacher_wer=facts.rate(facts.words),
        teacher_cer=facts.rate(facts.characters),
    )


def _fingerprint(config: CacheTeacherConfig, teacher: Teacher) -> Fingerprint:
    info = teacher.info
    return Fingerprint(
        teacher=info.name,
        weights_sha256=info.weights_sha256,
        tokens=info.tokens,
        blank_index=info.blank_index,
        sample_rate=info.sample_rate,
        frame_formula=info.frame_formula,
        top_k=config.top_k,
        mass=config.mass,
        quantiser=config.quantiser,
        precision=config.precision,
    )


def _plan(manifest: Manifest, part_minutes: float) -> PartPlan:
    utterances = manifest.utterances
    ids = tuple(u.utt_id for u in utterances)
    return PartPlan(
        utt_ids=ids,
        audio_hashes=tuple(u.audio_hash for u in utterances),
        parts=tuple(plan_parts(ids, [u.duration for u in utterances], 60 * part_minutes)),
    )


@dataclass
class PartFacts:
    """Counts of one part, kept in its attributes so that a restart need not run it again."""

    frames: int = 0
    entry_bytes: int = 0
    words: tuple[int, int] = (0, 0)
    characters: tuple[int, int] = (0, 0)

    def add(self, references: Sequence[str], hypotheses: Sequence[str]) -> None:
        """Counts the teacher's own errors on utterances with text."""

        def plus(old: tuple[int, int], new: ErrorCounts) -> tuple[int, int]:
            return old[0] + new.errors, old[1] + new.reference_length

        self.words = plus(self.words, count_errors(references, hypotheses))
        self.characters = plus(
            self.characters, count_errors(references, hypotheses, unit="character")
        )

    def to_dict(self) -> dict[str, list[int]]:
        """As part attributes: `[errors, reference length]`."""
        return {"teacher_words": list(self.words), "teacher_characters": list(self.characters)}

    @classmethod
    def total(cls, attributes: Iterable[dict[str, list[int]]]) -> PartFacts:
        """The sum over parts."""
        rows = list(attributes)

        def column(name: str) -> tuple[int, int]:
            return sum(row[name][0] for row in rows), sum(row[name][1] for row in rows)

        return cls(words=column("teacher_words"), characters=column("teacher_characters"))

    @staticmethod
    def rate(counts: tuple[int, int]) -> float | None:
        """Percent, or None without text."""
        return 100 * counts[0] / counts[1] if counts[1] else None


class PartRunner:
    """Runs the teacher over the utterances of a part and encodes its posteriors."""

    def __init__(self, config: CacheTeacherConfig, teacher: Teacher, device: torch.device) -> None:
        self.config = config
        self.teacher = teacher
        self.device = device
        self.audio = AudioCache(0)
        self.threads = config.decode_threads or os.cpu_count() or 1

    def encode(
        self, utterances: Sequence[Utterance], facts: PartFacts
    ) -> Iterator[EncodedUtterance]:
        """Encoded utterances, in the order of their batches.

        Batches are formed within the part, so a restart forms the same ones.
        """
        plan = self._batches(utterances)
        with ThreadPoolExecutor(self.threads, thread_name_prefix="decode") as pool:
            waiting = [
                pool.submit(self.audio.read_batch, [utterances[i] for i in indexes])
                for indexes in plan[: self.threads]
            ]
            for number, indexes in enumerate(plan):
                waveforms, sample_lengths = waiting.pop(0).result()
                if number + self.threads < len(plan):
                    following = [utterances[i] for i in plan[number + self.threads]]
                    waiting.append(pool.submit(self.audio.read_batch, following))
                batch = [utterances[i] for i in indexes]
                yield from self._run_batch(batch, waveforms, sample_lengths, facts)

    def _batches(self, utterances: Sequence[Utterance]) -> list[list[int]]:
        if self.teacher.info.padding_safe:
            return length_sorted_batches(utterances, self.config.batch_seconds)
        by_length = defaultdict(list)
        for index, utterance in enumerate(utterances):
            by_length[utterance.samples].append(index)
        batches = []
        for samples, indexes in sorted(by_length.items()):
            seconds = samples / self.teacher.info.sample_rate
            size = max(1, int(self.config.batch_seconds / max(seconds, 1e-3)))
            batches += [indexes[i : i + size] for i in range(0, len(indexes), size)]
        return batches

    @torch.inference_mode()
    def _run_batch(
        self,
        utterances: Sequence[Utterance],
        waveforms: Tensor,
        sample_lengths: Tensor,
        facts: PartFacts,
    ) -> list[EncodedUtterance]:
        info = self.teacher.info
        log_probs, frame_lengths = self.teacher.log_probs(
            waveforms.to(self.device), sample_lengths.to(self.device)
        )
        frames = self._check(utterances, log_probs, frame_lengths)
        valid = frame_mask(frame_lengths, log_probs.shape[1])
        rows = self._normalise(utterances, log_probs[valid].float(), frames)
        counts, tokens, kept = adaptive_topk(
            rows, max_tokens=self.config.top_k, mass=self.config.mass, blank_index=info.blank_index
        )
        codes = quantise(kept, self.config.quantiser)
        columns = [column.cpu().numpy() for column in (counts, tokens, codes)]
        if all(u.text for u in utterances):
            best = greedy_decode(log_probs, frame_lengths, blank_index=info.blank_index)
            facts.add([u.text for u in utterances], [spell(info.tokens, ids) for ids in best])
        facts.frames += len(columns[0])
        facts.entry_bytes += sum(column.nbytes for column in columns[1:])
        return _split(utterances, frames, *columns)

    def _check(
        self, utterances: Sequence[Utterance], log_probs: Tensor, frame_lengths: Tensor
    ) -> list[int]:
        """The frame counts, checked against the teacher's own formula."""
        info = self.teacher.info
        if log_probs.ndim != 3 or log_probs.shape[::2] != (len(utterances), len(info.tokens)):
            raise TeacherError(
                "log-probabilities of the teacher",
                expected=f"(B, T, V) with B {len(utterances)} and V {len(info.tokens)} tokens",
                got=tuple(log_probs.shape),
            )
        frames = [int(n) for n in frame_lengths.tolist()]
        for utterance, count in zip(utterances, frames, strict=True):
            expected = info.frame_formula.count(utterance.samples)
            if count != expected or count > log_probs.shape[1]:
                raise TeacherError(
                    f"teacher frames of utterance {utterance.utt_id} ({utterance.samples} samples)",
                    expected=f"{expected} by its formula {info.frame_formula}",
                    got=f"{count} of {log_probs.shape[1]}",
                )
        return frames

    def _normalise(
        self, utterances: Sequence[Utterance], rows: Tensor, frames: Sequence[int]
    ) -> Tensor:
        """Log-probabilities that sum to one in float32; refuses logits and NaN."""
        off = ~(rows.logsumexp(-1).abs() <= NORMALISATION_TOLERANCE)  # true for NaN as well
        if bool(off.any()):
            first = int(off.nonzero()[0])
            ends = np.cumsum(frames)
            utterance = utterances[int(np.searchsorted(ends, first, side="right"))]
            raise TeacherError(
                f"the teacher's output for utterance {utterance.utt_id}",
                expected="log-probabilities that sum to one in every frame",
                got=f"log-sum {float(rows[first].logsumexp(-1)):.4g}",
                remedy="apply log_softmax in the teacher; NaN may come from low precision",
            )
        return rows.log_softmax(-1)


def _split(
    utterances: Sequence[Utterance],
    frames: Sequence[int],
    counts: np.ndarray,
    tokens: np.ndarray,
    codes: np.ndarray,
) -> list[EncodedUtterance]:
    entries = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    encoded, first = [], 0
    for utterance, length in zip(utterances, frames, strict=True):
        span = slice(int(entries[first]), int(entries[first + length]))
        encoded.append(
            EncodedUtterance(
                utt_id=utterance.utt_id,
                audio_hash=utterance.audio_hash,
                entries_per_frame=counts[first : first + length].astype(np.uint8),
                tokens=tokens[span],
                log_prob_codes=codes[span],
                samples=utterance.samples,
            )
        )
        first += length
    return encoded
