"""What a run reads: manifests, tokenizer and teacher cache, checked against its settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interkd.kernels.errors import ConfigError
from interkd.pipeline.cache.fingerprint import require_student_fits
from interkd.pipeline.cache.reader import TeacherStore
from interkd.pipeline.corpus.manifest import Manifest, Utterance, read_manifest, require_manifest
from interkd.pipeline.corpus.tokens import Tokenizer
from interkd.pipeline.frames import FrameFormula
from interkd.pipeline.training.config import TrainConfig
from interkd.pipeline.training.recipes import uses_teacher, uses_transcripts
from interkd.pipeline.training.student import require_student


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Both splits and their tokenizer."""

    train: Manifest
    dev: Manifest
    tokenizer: Tokenizer


def read_corpus(config: TrainConfig) -> Corpus:
    """Reads manifests and tokenizer.

    Raises:
        CorpusError: If one of them cannot be read.
        ConfigError: If a manifest has another sample rate than the student, or utterances without
            a transcript where one is needed.
    """
    data, rate = config.data, config.student.features.sample_rate
    manifests = [read_manifest(path) for path in (data.train_manifest, data.dev_manifest)]
    for manifest in manifests:
        if manifest.sample_rate != rate:
            raise ConfigError(
                f"sample rate of {manifest.path}",
                expected=f"{rate} (student.features.sample_rate)",
                got=manifest.sample_rate,
            )
    train, dev = manifests
    needs = [(dev, "the error rate on dev")]
    if uses_transcripts(config.objective):
        counted = ", normalised by tokens," if config.objective.normalisation == "token" else ""
        needs.append((train, f"recipe '{config.objective.recipe}'{counted}"))
    for manifest, what in needs:
        silent = [utterance for utterance in manifest.utterances if not utterance.text]
        if silent:
            raise ConfigError(
                f"{what} needs transcripts; {manifest.path}",
                expected="text in every row",
                got=f"{len(silent):,} without, such as '{silent[0].utt_id}'",
                remedy="recipe kd-only, normalised by utterances or frames, trains without them"
                if manifest is train
                else None,
            )
    tokenizer = Tokenizer.load(data.tokenizer or data.train_manifest.parent)
    return Corpus(train=train, dev=dev, tokenizer=tokenizer)


def parts_as_groups(store: TeacherStore | None, utterances: Sequence[Utterance]) -> dict[str, Any]:
    """The sampler's `groups` where a store is larger than its memory; nothing where it fits.

    Half of the parts that fit are drawn from at a time, so that batches prepared ahead find the
    next ones while the last ones are still needed.
    """
    if store is None or store.parts_in_memory >= store.part_count:
        return {}
    return {
        "groups": [store.part_of(utterance.utt_id) for utterance in utterances],
        "groups_at_once": max(1, store.parts_in_memory // 2),
    }


def require_store(config: TrainConfig, *, comes: bool = False) -> Path | None:
    """The teacher cache of a run, which is there or will be; None for recipes without a teacher.

    Args:
        config: Settings of a run.
        comes: Whether somebody may yet make the cache.

    Raises:
        ConfigError: Saying which.
    """
    if not uses_teacher(config.objective):
        return None
    if config.store is None:
        raise ConfigError(
            f"recipe '{config.objective.recipe}' learns from a teacher",
            expected="a teacher cache (setting store, or --store)",
            got="none",
        )
    if not comes and not config.store.exists():
        raise ConfigError(
            "store",
            expected="a teacher cache",
            got=f"nothing at {config.store}",
            remedy="make it with cache-teacher; a Slurm job of --after ID waits for it",
        )
    return config.store


def require_inputs(config: TrainConfig, *, store_comes: bool = False) -> None:
    """Refuses a run that would fail as soon as it has started.

    Args:
        config: Its settings.
        store_comes: Whether somebody may yet make its teacher cache.

    Raises:
        ConfigError: Naming the manifest or store that is not there, or the student's setting that
            cannot be.
    """
    require_student(config)
    require_manifest(config.data.train_manifest, "data.train_manifest")
    require_manifest(config.data.dev_manifest, "data.dev_manifest")
    require_store(config, comes=store_comes)


def open_store(
    config: TrainConfig, tokenizer: Tokenizer, formula: FrameFormula
) -> TeacherStore | None:
    """Opens the teacher cache, or None for objectives without a teacher.

    Raises:
        ConfigError: If the recipe learns from a teacher and there is no store.
        StoreError: If the store cannot be read; CorruptStoreError for a damaged part, at once where
            the whole store fits in memory.
        FingerprintError: If it has other tokens, another sample rate or frame shift.
    """
    path = require_store(config, comes=True)  # opening says more of one that is not there
    if path is None:
        return None
    store = TeacherStore.open(path, memory_gb=config.data.store_memory_gb)
    require_student_fits(
        store.fingerprint,
        tokens=tokenizer.tokens,
        blank_index=tokenizer.blank_index,
        sample_rate=config.student.features.sample_rate,
        frame_shift_samples=formula.shift_samples,
    )
    if store.parts_in_memory >= store.part_count:
        store.load()  # so that damage is found now and not in the middle of an epoch
    return store
