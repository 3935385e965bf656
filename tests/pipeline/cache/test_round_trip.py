from __future__ import annotations

import itertools
import pickle
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interkd.kernels.errors import StoreError
from interkd.pipeline.cache.codec import get_quantiser
from interkd.pipeline.cache.inspect import decode_store, info
from interkd.pipeline.cache.reader import TeacherStore
from interkd.pipeline.cache.verify import verify
from interkd.pipeline.cache.writer import EncodedUtterance

if TYPE_CHECKING:
    from tests.pipeline.cache.conftest import Kept, StoreMaker

KINDS = ("peaky", "flat", "ties", "zeros")


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    vocab_size=st.sampled_from([2, 3, 29, 256, 257, 65_536, 65_537, 70_000]),
    lengths=st.lists(st.sampled_from([0, 1, 2, 5]), min_size=1, max_size=5),
    kind=st.sampled_from(KINDS),
    quantiser=st.sampled_from(["log8", "float16"]),
    top_k=st.sampled_from([1, 8, 255]),
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
    kept = [
        maker.keep(maker.log_probs(length, vocab_size, kind, seed + i), top_k=top_k, mass=0.99)
        for i, length in enumerate(lengths)
    ]
    utterances = [maker.encode(f"u/{i} ü", k, fingerprint) for i, k in enumerate(kept)]
    batch = data.draw(st.lists(st.integers(0, len(kept) - 1), max_size=6))
    parts = data.draw(st.integers(1, len(kept)))
    with tempfile.TemporaryDirectory() as folder:
        path = maker.write(Path(folder, "store"), utterances, fingerprint, parts=parts)
        assert verify(path).problems == ()
        store = TeacherStore.open(path)
        targets = store.targets([utterances[i].utt_id for i in batch])
    assert store.utterance_ids == tuple(u.utt_id for u in utterances)
    assert store.fingerprint == fingerprint
    assert targets.frame_lengths.tolist() == [lengths[i] for i in batch]
    entries = [int(e) for i in batch for e in kept[i].entries_per_frame]
    assert targets.entry_offsets.diff().tolist() == entries
    assert targets.tokens.tolist() == [int(t) for i in batch for t in kept[i].tokens]
    codec = get_quantiser(quantiser)
    empty = np.zeros(0, dtype=np.float32)
    log_probs = np.concatenate([empty, *(kept[i].log_probs for i in batch)])
    np.testing.assert_array_equal(
        targets.log_probs.numpy(), codec.dequantise(codec.quantise(log_probs))
    )
    assert (targets.vocab_size, targets.blank_index) == (vocab_size, 0)


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


def utterance(maker: StoreMaker, utt_id: str, audio_of: str) -> EncodedUtterance:
    none = np.zeros(0, dtype=np.uint8)
    return EncodedUtterance(
        utt_id=utt_id,
        audio_hash=maker.audio_hash(audio_of),
        entries_per_frame=none,
        tokens=none,
        log_prob_codes=none,
        samples=0,
    )


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


def best_stored_tokens(kept: Kept) -> list[int]:
    """Of each frame the first token with the smallest code, frame by frame."""
    codes = get_quantiser("log8").quantise(kept.log_probs).tolist()
    best, first = [], 0
    for count in kept.entries_per_frame.tolist():
        frame = range(first, first + count)
        best.append(int(kept.tokens[min(frame, key=lambda entry: codes[entry])]))
        first += count
    return best


@pytest.mark.parametrize("kind", KINDS)
def test_info_and_decode_agree_with_the_dense_posteriors(
    maker: StoreMaker, tmp_path: Path, kind: str
) -> None:
    fingerprint = maker.fingerprint(29)
    lengths = [0, 40, 1, 0, 25, 0]
    dense = [maker.log_probs(length, 29, kind, i) for i, length in enumerate(lengths)]
    kept = [maker.keep(d, top_k=fingerprint.top_k, mass=fingerprint.mass) for d in dense]
    utterances = [maker.encode(f"u{i}", k, fingerprint) for i, k in enumerate(kept)]
    path = maker.write(tmp_path / "store", utterances, fingerprint, parts=3)

    expected, best = {}, []
    for i, (log_probs, sparse) in enumerate(zip(dense, kept, strict=True)):
        tokens = best_stored_tokens(sparse)
        if kind != "flat":  # there, near equals share a code
            assert tokens == log_probs.argmax(axis=1).tolist()
        expected[f"u{i}"] = [token for token, _ in itertools.groupby(tokens) if token != 0]
        best += tokens
    assert dict(decode_store(path)) == expected

    found = info(path)
    frames = sum(lengths)
    assert (found.frames, found.utterances, found.parts) == (frames, 6, 3)
    assert found.hours == pytest.approx(frames * 0.02 / 3600)
    assert found.entries == sum(len(k.tokens) for k in kept)
    assert found.blank_share == pytest.approx(best.count(0) / frames)
    mass = sum(float(np.exp(k.log_probs).sum()) for k in kept) / frames
    assert found.mean_mass == pytest.approx(mass, abs=0.02)
    on_disk = [p for p in path.rglob("*") if p.is_file()]
    assert found.files == len(on_disk)
    assert found.total_bytes == sum(p.stat().st_size for p in on_disk)
    assert sum(found.column_bytes.values()) == found.total_bytes
    assert all(size > 0 for size in found.column_bytes.values())
