"""From dense posteriors to the store and back: bounds of the codes, argmax, bytes in any order."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interkd.pipeline.cache.codec import get_quantiser
from interkd.pipeline.cache.reader import TeacherStore
from interkd.pipeline.cache.verify import verify
from interkd.pipeline.cache.writer import StoreWriter
from tests.properties import examples

if TYPE_CHECKING:
    from tests.pipeline.cache.conftest import StoreMaker

Float64Array = npt.NDArray[np.float64]
KINDS = ("peaky", "flat", "ties", "zeros")


def fractions_of(probs: Float64Array, tokens: list[int], blank_index: int = 0) -> Float64Array:
    """Each entry's share of what the blank and the entries before it leave, in their order.

    What is left is summed, as no difference of numbers near one has its digits.
    """
    left = probs.copy()
    left[blank_index] = 0.0
    shares = []
    for token in tokens:
        total = left.sum()
        shares.append(left[token] / total if total > 0 else 0.0)
        left[token] = 0.0
    return np.array(shares)


@settings(max_examples=examples(25), suppress_health_check=[HealthCheck.too_slow])
@given(
    vocab_size=st.sampled_from([2, 3, 29, 256, 257, 65_537, 70_000]),
    lengths=st.lists(st.sampled_from([0, 1, 4]), min_size=1, max_size=4),
    kind=st.sampled_from(KINDS),
    name=st.sampled_from(["angle5", "angle6", "angle7", "angle15"]),
    top_k=st.sampled_from([2, 8]),
    seed=st.integers(0, 1000),
)
def test_the_stored_distribution_is_near_the_teachers(
    maker: StoreMaker,
    vocab_size: int,
    lengths: list[int],
    kind: str,
    name: str,
    top_k: int,
    seed: int,
) -> None:
    """The root of each fraction is off by half a step of the angle at most, the argmax by nothing.

    The blank's may be off by two more steps where they restore the order of a near tie, an argmax's
    by one more where the blank's code is the lowest.
    """
    fingerprint = maker.fingerprint(vocab_size, quantiser=name, top_k=top_k)
    dense = [maker.log_probs(n, vocab_size, kind, seed + i) for i, n in enumerate(lengths)]
    utterances = [maker.encode(f"u{i}", d, fingerprint) for i, d in enumerate(dense)]
    with tempfile.TemporaryDirectory() as folder:
        path = maker.write(Path(folder, "store"), utterances, fingerprint)
        opened = TeacherStore.open(path)
        payload = opened.read_part(0).payload
        targets = opened.targets([u.utt_id for u in utterances])
    quantiser = get_quantiser(name)
    step = np.pi / 2 / (quantiser.levels - 0.6)
    blanks = quantiser.values[payload["blank"] % quantiser.levels]
    fractions = quantiser.values[payload["fraction"] % quantiser.levels]
    offsets = targets.entry_offsets.numpy()
    assert len(offsets) == sum(lengths) + 1
    first = 0
    for frame, log_probs in enumerate(np.concatenate(dense)):
        entries = slice(offsets[frame], offsets[frame + 1])
        tokens = targets.tokens[entries].tolist()
        stored = np.exp(targets.log_probs[entries].numpy().astype(np.float64))
        assert 1 <= len(tokens) <= top_k
        others = [token for token in tokens if token != 0]
        kept = fractions[first : first + len(others)]
        first += len(others)

        probs = np.exp(log_probs.astype(np.float64))
        probs /= probs.sum()
        shares = fractions_of(probs, others)
        bounds = np.full(len(kept), step / 2 + 1e-6)
        if payload["blank"][frame] % quantiser.levels == 0:
            bounds[:1] += step  # the argmax of a flat frame, one code above the blank's lowest
        assert (np.abs(np.sqrt(kept) - np.sqrt(shares)) <= bounds).all()
        second, best = np.sort(log_probs)[-2:]
        allowed = 2.5 if best - second < 0.5 else 0.5
        assert abs(np.sqrt(blanks[frame]) - np.sqrt(probs[0])) <= allowed * step + 1e-6

        assert tokens[0] == int(log_probs.argmax())

        tail = (1 - blanks[frame]) * np.prod(1 - kept)
        assert stored.sum() + tail == pytest.approx(1, abs=1e-6)


def test_the_argmax_of_a_flat_frame_over_many_tokens(maker: StoreMaker, tmp_path: Path) -> None:
    fingerprint = maker.fingerprint(1000)
    dense = maker.log_probs(20, 1000, "flat", 0)
    path = maker.write(tmp_path / "store", [maker.encode("u", dense, fingerprint)], fingerprint)
    targets = TeacherStore.open(path).targets(["u"])
    found = targets.tokens[targets.entry_offsets[:-1]].tolist()
    assert found == dense.argmax(axis=1).tolist()


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_parts_in_any_order_make_equal_bytes(
    maker: StoreMaker, tmp_path: Path, order: tuple[int, ...]
) -> None:
    fingerprint = maker.fingerprint()
    utterances = maker.utterances(fingerprint, [9, 0, 1, 30, 4])
    plan = maker.plan(utterances, 4)
    calm = maker.write(tmp_path / "calm", utterances, fingerprint, parts=4)
    for index in order:  # a process for each part
        writer = StoreWriter.open(tmp_path / "store", fingerprint, plan)
        assert writer.write_part(index, [utterances[i] for i in plan.parts[index]])
    writer.finish({"teacher_wer": 7.25})
    files = {p.name: p.read_bytes() for p in (tmp_path / "store").iterdir()}
    assert files == {p.name: p.read_bytes() for p in calm.iterdir()}


def test_a_part_packed_by_zarr_itself(store: Path) -> None:
    """Other ZIP headers, other JSON, the same columns: zarr's own store of ZIP files."""
    opened = TeacherStore.open(store)
    expected = opened.targets(opened.utterance_ids)
    path = store / "part-00000.zip"
    before = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    source = zarr.open_group(zarr.storage.ZipStore(path, mode="r"), mode="r")
    again = path.with_suffix(".again")
    target = zarr.storage.ZipStore(again, mode="w")
    group = zarr.create_group(target, zarr_format=3, attributes=source.attrs.asdict())
    for name, array in source.arrays():
        group.create_array(
            name,
            shape=array.shape,
            dtype=array.dtype,
            chunks=array.chunks,
            compressors=array.compressors,
            fill_value=0,
            config={"write_empty_chunks": True},
        )[...] = array[...]
    target.close()
    again.replace(path)
    assert path.read_bytes() != before
    with zipfile.ZipFile(path) as archive:
        assert {n for n in archive.namelist() if "/c/" in n} == {n for n in members if "/c/" in n}
    assert verify(store).problems == ()
    found = TeacherStore.open(store).targets(opened.utterance_ids)
    assert found.tokens.equal(expected.tokens)
    assert found.log_probs.equal(expected.log_probs)
    assert found.entry_offsets.equal(expected.entry_offsets)
