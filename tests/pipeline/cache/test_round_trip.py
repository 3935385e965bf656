from __future__ import annotations

import itertools
import pickle
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interkd.kernels.errors import StoreError
from interkd.kernels.stick_breaking import expand_stick_breaking
from interkd.pipeline.cache.codec import get_quantiser
from interkd.pipeline.cache.fingerprint import Fingerprint
from interkd.pipeline.cache.format import Array
from interkd.pipeline.cache.inspect import decode_store, info
from interkd.pipeline.cache.reader import TeacherStore
from interkd.pipeline.cache.verify import verify
from interkd.pipeline.cache.writer import EncodedUtterance
from interkd.pipeline.corpus.batches import BatchSampler
from interkd.pipeline.corpus.manifest import Utterance
from interkd.pipeline.training.inputs import parts_as_groups
from tests.properties import examples

if TYPE_CHECKING:
    from tests.pipeline.cache.conftest import StoreMaker

KINDS = ("peaky", "flat", "ties", "zeros")


@settings(max_examples=examples(12), suppress_health_check=[HealthCheck.too_slow])
@given(
    vocab_size=st.sampled_from([2, 3, 29, 256, 257, 65_536, 65_537, 70_000]),
    lengths=st.lists(st.sampled_from([0, 1, 2, 5]), min_size=1, max_size=5),
    kind=st.sampled_from(KINDS),
    quantiser=st.sampled_from(["angle5", "angle15"]),
    top_k=st.sampled_from([2, 8, 255]),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_what_is_written_is_read(
    maker: StoreMaker,
    vocab_size: int,
    lengths: list[int],
    kind: str,
    quantiser: str,
    top_k: int,
    seed: int,
    data: st.DataObject,
) -> None:
    fingerprint = maker.fingerprint(vocab_size, quantiser=quantiser, top_k=top_k, mass=0.99)
    utterances = [
        maker.encode(f"u/{i} ü", maker.log_probs(length, vocab_size, kind, seed + i), fingerprint)
        for i, length in enumerate(lengths)
    ]
    batch = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=6))
    parts = data.draw(st.integers(1, len(lengths)))
    with tempfile.TemporaryDirectory() as folder:
        path = maker.write(Path(folder, "store"), utterances, fingerprint, parts=parts)
        assert verify(path).problems == ()
        store = TeacherStore.open(path)
        targets = store.targets([utterances[i].utt_id for i in batch])
    assert store.utterance_ids == tuple(u.utt_id for u in utterances)
    assert store.fingerprint == fingerprint
    assert targets.frame_lengths.tolist() == [lengths[i] for i in batch]
    expected = [expand(utterances[i], fingerprint) for i in batch]
    counts = [int(n) for offsets, _, _ in expected for n in np.diff(offsets)]
    assert targets.entry_offsets.diff().tolist() == counts
    assert targets.tokens.tolist() == [int(t) for _, tokens, _ in expected for t in tokens]
    assert targets.log_probs.tolist() == [float(x) for _, _, values in expected for x in values]
    assert (targets.vocab_size, targets.blank_index) == (vocab_size, 0)


def expand(utterance: EncodedUtterance, fingerprint: Fingerprint) -> tuple[Array, Array, Array]:
    return expand_stick_breaking(
        utterance.blank,
        utterance.tokens,
        utterance.fractions,
        get_quantiser(fingerprint.quantiser).values,
        backend="reference",
    )


def test_what_the_store_says_of_its_utterances(maker: StoreMaker, store: Path) -> None:
    opened = TeacherStore.open(store)
    opened.load()
    assert [opened.frame_count(u) for u in opened.utterance_ids] == [20, 0, 35, 1, 12, 30]
    assert opened.audio_hash("utterance-2") == maker.audio_hash("utterance-2")
    assert opened.summary == {"teacher_wer": 7.25}
    with pytest.raises(StoreError, match="has no utterance 'utterance-9'"):
        opened.targets(["utterance-0", "utterance-9"])


def test_a_spawned_worker_opens_it_anew(store: Path) -> None:
    opened = TeacherStore.open(store)
    opened.load()
    again = pickle.loads(pickle.dumps(opened))
    ids = opened.utterance_ids
    assert torch.equal(again.targets(ids).log_probs, opened.targets(ids).log_probs)


def test_threads_read_the_same(store: Path) -> None:
    expected = TeacherStore.open(store)
    opened = TeacherStore.open(store)
    orders = list(itertools.permutations(opened.utterance_ids, 3))[:16]
    found: dict[int, torch.Tensor] = {}
    barrier = threading.Barrier(len(orders))

    def read(i: int) -> None:
        barrier.wait()
        found[i] = opened.targets(orders[i]).tokens

    threads = [threading.Thread(target=read, args=(i,)) for i in range(len(orders))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, order in enumerate(orders):
        assert torch.equal(found[i], expected.targets(order).tokens)


def utterance(maker: StoreMaker, utt_id: str, audio_of: str) -> Utterance:
    return Utterance(
        utt_id=utt_id,
        audio_path=Path(f"{utt_id}.wav"),
        samples=64_000,
        sample_rate=16_000,
        text="a",
        audio_hash=maker.audio_hash(audio_of),
        source_rate=16_000,
    )


def test_memory_stays_within_the_budget(maker: StoreMaker, tmp_path: Path) -> None:
    fingerprint = maker.fingerprint()
    utterances = maker.utterances(fingerprint, [300] * 12)
    path = maker.write(tmp_path / "store", utterances, fingerprint, parts=6)
    whole = TeacherStore.open(path)
    assert whole.parts_in_memory == 6
    one_part = whole.read_part(0).nbytes
    opened = TeacherStore.open(path, memory_gb=2.5 * one_part / 1e9)
    assert opened.parts_in_memory < 6
    for ids in (opened.utterance_ids, opened.utterance_ids[::-1]):
        for utt_id in ids:
            assert torch.equal(opened.targets([utt_id]).tokens, whole.targets([utt_id]).tokens)
            assert opened.held_bytes <= 2.5 * one_part
    assert TeacherStore.open(path, memory_gb=0).targets(ids).batch_size == 12


def test_a_store_larger_than_its_memory_is_gone_through_part_by_part(
    maker: StoreMaker, tmp_path: Path
) -> None:
    fingerprint = maker.fingerprint()
    path = maker.write(
        tmp_path / "store", maker.utterances(fingerprint, [200] * 24), fingerprint, parts=8
    )
    corpus = [utterance(maker, utt_id, utt_id) for utt_id in TeacherStore.open(path).utterance_ids]
    assert parts_as_groups(None, corpus) == {}
    assert parts_as_groups(TeacherStore.open(path), corpus) == {}
    three_parts = 3.5 * 4 * (path / "part-00000.zip").stat().st_size / 1e9
    store = TeacherStore.open(path, memory_gb=three_parts)
    grouping = parts_as_groups(store, corpus)
    assert grouping == {"groups": [i // 3 for i in range(24)], "groups_at_once": 1}
    sampler = BatchSampler(corpus, max_seconds=8, buckets=2, seed=0, **grouping)
    order = [index // 3 for batch in sampler.batches(0) for index in batch]
    assert len([part for part, _ in itertools.groupby(order)]) == 8  # each part once


def test_a_failed_part_is_read_again_when_asked_for(store: Path) -> None:
    opened = TeacherStore.open(store)
    part = store / "part-00001.zip"
    content = part.read_bytes()
    part.write_bytes(content[:100])
    with pytest.raises(StoreError, match="part-00001"):
        opened.targets(opened.utterance_ids)
    part.write_bytes(content)
    assert opened.targets(opened.utterance_ids).batch_size == 6


def test_a_corpus_is_required_by_id_and_by_audio(maker: StoreMaker, store: Path) -> None:
    opened = TeacherStore.open(store)
    known = utterance(maker, "utterance-0", "utterance-0")
    opened.require([known])
    renamed = utterance(maker, "renamed", "utterance-4")
    with pytest.raises(StoreError, match=r"lacks 1 utterances.*'renamed'.*id 'utterance-4'"):
        opened.require([known, renamed])
    unknown = utterance(maker, "new", "new")
    with pytest.raises(StoreError, match=r"lacks 2 utterances.*'new'.*neither"):
        opened.require([unknown, renamed])
    changed = utterance(maker, "utterance-3", "new")
    with pytest.raises(StoreError, match=r"other audio for 1 utterances.*'utterance-3'"):
        opened.require([known, changed])
    faster = replace(known, speed=1.1)
    with pytest.raises(StoreError, match=r"other audio for 1 utterances.*'utterance-0'"):
        opened.require([faster, utterance(maker, "utterance-3", "utterance-3")])


@pytest.mark.parametrize("kind", KINDS)
def test_info_and_decode_agree_with_the_dense_posteriors(
    maker: StoreMaker, tmp_path: Path, kind: str
) -> None:
    fingerprint = maker.fingerprint(29)
    lengths = [0, 40, 1, 0, 25, 0]
    dense = [maker.log_probs(length, 29, kind, i) for i, length in enumerate(lengths)]
    utterances = [maker.encode(f"u{i}", d, fingerprint) for i, d in enumerate(dense)]
    path = maker.write(tmp_path / "store", utterances, fingerprint, parts=3)

    expected, best = {}, []
    for i, log_probs in enumerate(dense):
        tokens = log_probs.argmax(axis=1).tolist()
        expected[f"u{i}"] = [token for token, _ in itertools.groupby(tokens) if token != 0]
        best += tokens
    assert dict(decode_store(path)) == expected

    found = info(path)
    frames = sum(lengths)
    assert (found.frames, found.utterances, found.parts) == (frames, 6, 3)
    assert found.hours == pytest.approx(frames * 0.02 / 3600)
    assert found.entries == sum(len(u.tokens) + len(u.blank) for u in utterances)
    assert found.blank_share == pytest.approx(best.count(0) / frames)
    mass = sum(
        float(np.exp(values.astype(np.float64)).sum())
        for _, _, values in (expand(u, fingerprint) for u in utterances)
    )
    assert found.mean_mass == pytest.approx(mass / frames)
    on_disk = [p for p in path.rglob("*") if p.is_file()]
    assert found.files == len(on_disk)
    assert found.total_bytes == sum(p.stat().st_size for p in on_disk)
    assert sum(found.column_bytes.values()) == found.total_bytes
    assert all(size > 0 for size in found.column_bytes.values())
