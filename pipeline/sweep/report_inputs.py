"""What a sweep's report reads beside the runs' results: the teacher's scores, and spikes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interkd.kernels.errors import ConfigError
from interkd.pipeline.corpus.manifest import read_manifest
from interkd.pipeline.files import write_compact_json
from interkd.pipeline.scoring.error_rates import count_errors_each
from interkd.pipeline.scoring.report import read_report
from interkd.pipeline.scoring.trn import read_trn
from interkd.pipeline.sweep.config import SweepConfig, TeacherScore
from interkd.pipeline.sweep.scores import (
    HeadScore,
    SplitScore,
    ids_digest,
    scores_from_json,
    scores_to_json,
    split_score,
    unit_counts,
)

SPIKES_FILE = "spikes.json"
TEACHER_FILE = "teacher.json"
Spikes = Mapping[str, Mapping[str, Any]]  # of each head what `scoring.spikes.to_json` says


def read_spikes(sweep: SweepConfig) -> dict[str, Spikes]:
    """What `benchmarks/inter_kd/spikes.py` found, by run; empty where it has not been run.

    Raises:
        ConfigError: If the file is damaged.
    """
    path = sweep.results_folder / SPIKES_FILE
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {
            run: {head: dict(row) for head, row in heads.items()} for run, heads in found.items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path} is damaged", got=repr(error), remedy="remove it and measure again"
        ) from error


def teacher_scores(sweep: SweepConfig) -> dict[str, SplitScore]:
    """What the teacher made of each split that the sweep names a file for.

    Where a file is not there, as the sweep's last run kept its counts beside the results.

    Raises:
        ConfigError: If there is neither, or a file is damaged or lacks an utterance.
        CorpusError: If a manifest or transcripts cannot be read.
    """
    manifests = {scored.split: scored.manifest for scored in sweep.score}
    kept = _kept_scores(sweep) if any(not one.path.exists() for one in sweep.teacher) else {}
    scores = {}
    for theirs in sweep.teacher:
        if theirs.path.exists():
            scores[theirs.split] = _teacher_score(theirs, manifests[theirs.split])
        elif theirs.split in kept:
            scores[theirs.split] = kept[theirs.split]
        else:
            raise ConfigError(
                f"teacher.{theirs.split}: there is no {theirs.path}",
                remedy="give the folder of 'interkd score' or the trn of 'interkd cache decode "
                "--out'",
            )
    return scores


def keep_teacher_scores(sweep: SweepConfig, scores: Mapping[str, SplitScore]) -> None:
    """Writes them beside the results, so that these can be reported wherever they are."""
    if scores:
        write_compact_json(sweep.results_folder / TEACHER_FILE, scores_to_json(scores))


def _kept_scores(sweep: SweepConfig) -> dict[str, SplitScore]:
    path = sweep.results_folder / TEACHER_FILE
    if not path.exists():
        return {}
    try:
        return scores_from_json(json.loads(path.read_text(encoding="utf-8")))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path} is damaged", got=repr(error), remedy="remove it and run the sweep again"
        ) from error


def _teacher_score(theirs: TeacherScore, manifest_path: Path) -> SplitScore:
    path = theirs.path
    if path.is_dir() or path.suffix == ".json":
        report = read_report(path)
        return split_score(report.results, report.manifest)
    texts, manifest = read_trn(path), read_manifest(manifest_path)
    utt_ids = [utterance.utt_id for utterance in manifest.utterances]
    missing = [utt_id for utt_id in utt_ids if utt_id not in texts]
    if missing:
        raise ConfigError(
            f"teacher.{theirs.split}: {path} lacks utterances of {manifest_path}",
            got=f"{len(missing)}, such as {missing[0]!r}",
        )
    references = [utterance.text for utterance in manifest.utterances]
    hypotheses = [texts[utt_id] for utt_id in utt_ids]
    head = HeadScore(
        name="final",
        weight_count=0,  # transcripts don't say
        words=unit_counts(count_errors_each(references, hypotheses)),
        characters=unit_counts(count_errors_each(references, hypotheses, unit="character")),
    )
    return SplitScore(manifest=manifest.digest, utterances=ids_digest(utt_ids), heads=(head,))
