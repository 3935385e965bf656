"""Stage one: run the teacher once over a corpus and write its posteriors to a store."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from interkd.kernels.errors import ConfigError, InterkdError, TeacherError, TokenError
from interkd.pipeline.cache.format import METADATA_FILE
from interkd.pipeline.cache.inspect import info
from interkd.pipeline.cache.part import EncodedUtterance
from interkd.pipeline.cache.part_claims import PartClaims
from interkd.pipeline.cache.plan import PartPlan, plan_parts
from interkd.pipeline.cache.writer import StoreWriter
from interkd.pipeline.cache_settings import (
    CacheTeacherConfig,
    fingerprint_of,
    load_runner,
    load_same_runner,
)
from interkd.pipeline.corpus.manifest import Manifest, Utterance, read_manifest
from interkd.pipeline.corpus.tokens import BLANK, TOKENS_FILE, Tokenizer, is_blank_name
from interkd.pipeline.devices import resolve_device
from interkd.pipeline.part_runner import PartRunner
from interkd.pipeline.part_workers import PartCacher, cache_on_workers, write_part
from interkd.pipeline.part_writer import PartFacts, PartWriter
from interkd.pipeline.progress import Reporter
from interkd.pipeline.teachers.protocol import TeacherInfo

LONG_WORK = 3600.0  # seconds of audio; each process loads a teacher of its own first


@dataclass(frozen=True, kw_only=True)
class CacheTeacherSummary:
    """What a run of stage one did, and the store it left.

    Attributes:
        store: Its path.
        finished: Whether the store can be read; if not, all that is measured in it is 0 or None.
        parts: Parts of the plan.
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
    finished: bool
    parts: int
    parts_written: int
    hours: float
    seconds: float
    times_real_time: float
    store_bytes: int = 0
    frames: int = 0
    bytes_a_frame: float = 0.0
    entries_a_frame: float = 0.0
    teacher_wer: float | None = None
    teacher_cer: float | None = None


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
        InterkdError: If corpus, teacher or store do not fit; parts that stand are kept, and a
            store that got none is not left behind.
    """
    reporter = reporter or Reporter()
    manifest = read_manifest(config.manifest)
    device = resolve_device(config.device)
    if config.cluster.kind in ("local", "slurm") and device.type != "cpu":
        raise ConfigError(
            "device on a cluster of Dask workers",
            expected="cpu",
            got=device,
            remedy="GPUs share a store without Dask, one cache-teacher each: a Slurm job array",
        )
    runner = load_runner(config, device)
    teacher = runner.teacher
    _require_blank_of_students(teacher.info)
    if teacher.info.sample_rate != manifest.sample_rate:
        raise ConfigError(
            f"sample rate of {config.manifest}",
            expected=f"{teacher.info.sample_rate} Hz (the teacher's)",
            got=manifest.sample_rate,
            remedy="prepare the corpus with --sample-rate",
        )
    tokens = config.manifest.parent / TOKENS_FILE
    if tokens.exists() and _tokens_in(tokens.parent) != teacher.info.tokens:
        reporter.message(
            f"warning: the teacher's tokens are not those of {tokens}: students trained from this "
            "store need the teacher's, in its order"
        )
    is_new = not (config.out / METADATA_FILE).exists()
    writer = StoreWriter.open(
        config.out, fingerprint_of(config, teacher), _plan(manifest, config.part_minutes)
    )
    try:
        return _fill(writer, runner, manifest, config, reporter)
    except InterkdError:
        if is_new:
            _remove_if_empty(config.out)
        raise
    finally:
        reporter.end()


def _require_blank_of_students(info: TeacherInfo) -> None:
    if info.blank_index != 0 or not is_blank_name(info.tokens[0]):
        raise TeacherError(
            "the teacher's blank",
            expected=f"at index 0, with a name like {BLANK}, as students have it",
            got=f"blank_index {info.blank_index}, and '{info.tokens[0]}' at index 0",
            remedy="move and rename it in the adapter (docs/teachers.md)",
        )


def _tokens_in(folder: Path) -> tuple[str, ...]:
    try:
        return Tokenizer.load(folder).tokens
    except TokenError:  # another tool's file: stage one has no need of it
        return ()


def _fill(
    writer: StoreWriter,
    runner: PartRunner,
    manifest: Manifest,
    config: CacheTeacherConfig,
    reporter: Reporter,
) -> CacheTeacherSummary:
    """Writes the parts that the store lacks, then finishes it."""
    started = time.monotonic()
    missing = writer.missing_parts()
    parts = {index: [manifest.utterances[i] for i in writer.plan.parts[index]] for index in missing}
    left = sum(u.duration for part in parts.values() for u in part)
    reporter.begin(
        "caching", manifest.total_seconds / 3600, done=(manifest.total_seconds - left) / 3600
    )
    claims = PartClaims(
        writer,
        stale_seconds=60 * config.stale_minutes,
        message=reporter.message,
        wait=config.wait,
    )
    samples_done = parts_written = 0
    with claims, closing(_cached(writer, runner, parts, claims, config)) as progress:
        for samples, written in progress:
            samples_done += samples
            parts_written += written
            audio_seconds = samples_done / manifest.sample_rate
            speed = audio_seconds / (time.monotonic() - started)
            reporter.advance(
                samples / manifest.sample_rate / 3600,
                f"{audio_seconds / 3600:.2f} h, {speed:.0f}x real time",
            )
    audio_seconds = samples_done / manifest.sample_rate
    seconds = time.monotonic() - started
    summary = CacheTeacherSummary(
        store=writer.path,
        finished=False,
        parts=len(writer.plan.parts),
        parts_written=parts_written,
        hours=manifest.total_seconds / 3600,
        seconds=seconds,
        times_real_time=audio_seconds / seconds if parts_written else 0.0,
    )
    if not config.wait and (missing or not writer.is_finished):
        return summary
    facts = PartFacts.total(writer.part_attributes())
    if missing or not writer.is_finished:
        writer.finish(
            {
                "hours": manifest.total_seconds / 3600,
                "teacher_wer": facts.rate(facts.words),
                "teacher_cer": facts.rate(facts.characters),
            }
        )
    sizes = info(writer.path)
    return replace(
        summary,
        finished=True,
        store_bytes=sizes.total_bytes,
        frames=sizes.frames,
        bytes_a_frame=sizes.bytes_per_frame,
        entries_a_frame=sizes.entries_per_frame,
        teacher_wer=facts.rate(facts.words),
        teacher_cer=facts.rate(facts.characters),
    )


def _cached(
    writer: StoreWriter,
    runner: PartRunner,
    parts: Mapping[int, Sequence[Utterance]],
    claims: PartClaims,
    config: CacheTeacherConfig,
) -> Generator[tuple[int, int], None, None]:
    """Caches parts, here or on workers; the samples and the parts that are done more each time."""
    seconds = sum(u.duration for part in parts.values() for u in part)
    is_long = runner.device.type == "cpu" and seconds >= LONG_WORK and len(parts) > 1
    cluster = config.cluster.decided(is_long=is_long)
    if cluster.kind == "none" or not parts:
        yield from _cached_here(writer, runner, parts, claims)
        return
    decode_threads = config.decode_threads or cluster.threads
    settings = replace(config, device="cpu", decode_threads=decode_threads)
    cacher = PartCacher(
        load=partial(load_same_runner, settings, writer.metadata.fingerprint),
        writer=writer,
        threads=cluster.threads,
    )
    with closing(cache_on_workers(cacher, claims, parts, cluster)) as cached:
        for part in cached:
            yield part.samples, int(part.is_written)


def _cached_here(
    writer: StoreWriter,
    runner: PartRunner,
    parts: Mapping[int, Sequence[Utterance]],
    claims: PartClaims,
) -> Generator[tuple[int, int], None, None]:
    written: list[int] = []

    def write(index: int, encoded: list[EncodedUtterance], facts: PartFacts) -> None:
        if write_part(writer, index, parts[index], encoded, facts):
            written.append(index)
        claims.release(index)

    samples_told = parts_told = 0
    with PartWriter(runner.teacher.info, write) as part_writer:
        for free in claims.rounds(parts):
            for batch in runner.run((index, parts[index]) for index in free):
                part_writer.put(batch)
                samples, count = part_writer.samples_done, len(written)
                yield samples - samples_told, count - parts_told
                samples_told, parts_told = samples, count
    yield part_writer.samples_done - samples_told, len(written) - parts_told


def _remove_if_empty(store: Path) -> None:
    """Removes a store that holds nothing but its zarr.json, so that a mended start may differ."""
    if [path.name for path in store.iterdir()] == [METADATA_FILE]:
        (store / METADATA_FILE).unlink()
        store.rmdir()


def _plan(manifest: Manifest, part_minutes: float) -> PartPlan:
    utterances = manifest.utterances
    ids = tuple(u.utt_id for u in utterances)
    return PartPlan(
        utt_ids=ids,
        audio_hashes=tuple(u.audio_identity for u in utterances),
        parts=tuple(plan_parts(ids, [u.duration for u in utterances], 60 * part_minutes)),
    )
