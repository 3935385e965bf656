"""Audio that nobody transcribed: prepared, cached, and learnt from by the recipe that can."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from interkd.kernels.errors import ConfigError
from interkd.pipeline.cache_settings import CacheTeacherConfig
from interkd.pipeline.cache_teacher import cache_teacher
from interkd.pipeline.corpus.manifest import read_manifest
from interkd.pipeline.corpus.prepare import BadRowsError, PrepareConfig, prepare
from interkd.pipeline.training.recipes import ObjectiveConfig
from interkd.pipeline.training.trainer import train
from tests.students import conformer, losses, save_untaught, training


def test_from_audio_alone_to_a_student(tone_corpus: Any, tmp_path: Path) -> None:
    transcribed = read_manifest(tone_corpus.train).utterances
    rows = [
        {"utt_id": u.utt_id, "audio_filepath": str(u.audio_path.resolve()), "duration": u.duration}
        for u in transcribed
    ]
    (tmp_path / "audio.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = PrepareConfig(
        sources=tmp_path / "audio.jsonl", out=tmp_path / "audio", tokens=tone_corpus.tokens
    )
    with pytest.raises(BadRowsError, match=r"36 of 36 rows are bad.*missing 'text'"):
        prepare(config)
    prepare(replace(config, untranscribed=True))
    manifest = config.out / "manifest.jsonl"
    assert {u.text for u in read_manifest(manifest).utterances} == {""}

    save_untaught(tmp_path / "teacher", conformer(16), tone_corpus.tokens)
    store = tmp_path / "store.zarr"
    teacher = f"interkd:{tmp_path / 'teacher'}"
    cache_teacher(CacheTeacherConfig(teacher=teacher, manifest=manifest, out=store, device="cpu"))

    heard = training(
        tone_corpus,
        tmp_path / "heard",
        student=conformer(16),
        store=store,
        objective=ObjectiveConfig(recipe="kd-only"),
        epochs=2,
    )
    train(heard)
    data = replace(heard.data, train_manifest=manifest)
    alone = replace(heard, data=data, out=tmp_path / "alone")
    train(alone)
    assert losses(alone.out) == losses(heard.out)  # whatever was said

    by_tokens = ObjectiveConfig(recipe="kd-only", normalisation="token")
    with pytest.raises(ConfigError, match=r"'kd-only', normalised by tokens, needs.*utterances or"):
        train(replace(alone, objective=by_tokens, out=tmp_path / "refused"))
    for recipe in ("ctc", "inter-kd", "guided", "mass3-ntdk"):
        with pytest.raises(ConfigError, match=f"recipe '{recipe}' needs transcripts.*36 without"):
            train(
                replace(alone, objective=ObjectiveConfig(recipe=recipe), out=tmp_path / "refused")
            )
    with pytest.raises(ConfigError, match="the error rate on dev needs transcripts"):
        train(replace(heard, data=replace(data, dev_manifest=manifest), out=tmp_path / "refused"))
