from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from interkd.kernels.errors import (
    CorpusError,
    FingerprintError,
    FrameCountError,
    ShapeError,
    StoreError,
)
from interkd.kernels.sparse import SparsePosteriors
from interkd.pipeline.cache.codec import encode_frames, get_quantiser, pack_codes
from interkd.pipeline.cache.fingerprint import Fingerprint
from interkd.pipeline.cache.reader import TeacherStore
from interkd.pipeline.cache.writer import EncodedUtterance, PartPlan, StoreWriter
from interkd.pipeline.corpus.manifest import Manifest
from interkd.pipeline.frames import FrameFormula
from interkd.pipeline.scoring.decode import greedy_decode
from interkd.pipeline.scoring.measure_spikes import measure_spike_offsets
from interkd.pipeline.scoring.spikes import (
    SpikeOffsets,
    Spikes,
    compare_spikes,
    spikes,
    teacher_spikes,
    to_json,
)

WriteCorpus = Callable[[list[list[int]], list[str]], Manifest]

# Frames as (most probable token, its probability).
Path_ = list[tuple[int, float]]

RATE, FRAME = 8000, 160
TOKENS = ("<blk>", "▁", "a", "b", "c", "d")


def made(*pairs: tuple[int, int]) -> Spikes:
    """Spikes of (token, frame) pairs."""
    values = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return Spikes(tokens=values[:, 0], frames=values[:, 1])


def pairs(found: list[Spikes]) -> list[list[tuple[int, int]]]:
    return [list(zip(s.tokens.tolist(), s.frames.tolist(), strict=True)) for s in found]


def dense(paths: list[Path_], vocab_size: int, device: torch.device) -> Tensor:
    """Log-probabilities of the paths; what a token leaves is shared evenly by the others."""
    frames = max((len(path) for path in paths), default=0)
    scores = torch.zeros(len(paths), frames, vocab_size)
    for row, path in enumerate(paths):
        for frame, (token, prob) in enumerate(path):
            scores[row, frame] = math.log((1 - prob) / (vocab_size - 1))
            scores[row, frame, token] = math.log(prob)
    return scores.to(device)


def sparse(paths: list[Path_], vocab_size: int, blank_index: int = 0) -> SparsePosteriors:
    """The same as a store gives them, with a second token that looks as probable in each frame."""
    frames = [frame for path in paths for frame in path]
    return SparsePosteriors(
        frame_offsets=torch.tensor([0, *itertools.accumulate(len(path) for path in paths)]),
        entry_offsets=2 * torch.arange(len(frames) + 1),
        tokens=torch.tensor(
            [token for best, _ in frames for token in (best, (best + 1) % vocab_size)],
            dtype=torch.int32,
        ),
        log_probs=torch.tensor([prob for _, prob in frames]).log().repeat_interleave(2),
        vocab_size=vocab_size,
        blank_index=blank_index,
    )


def plain_spikes(path: Path_, blank_index: int) -> list[tuple[int, int]]:
    found, frame = [], 0
    for token, run in itertools.groupby(path, key=lambda pair: pair[0]):
        probs = [prob for _, prob in run]
        if token != blank_index:
            found.append((token, frame + probs.index(max(probs))))
        frame += len(probs)
    return found


PROBS = (0.5, 0.75, 0.875, 0.9375)


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[Path_], int, int]:
    vocab_size = draw(st.integers(3, 5))
    frame = st.tuples(st.integers(0, vocab_size - 1), st.sampled_from(PROBS))
    paths = draw(st.lists(st.lists(frame, max_size=12), min_size=1, max_size=4))
    return paths, vocab_size, draw(st.integers(0, vocab_size - 1))


@given(batch=batches())
def test_both_sides_agree_with_a_plain_loop(
    batch: tuple[list[Path_], int, int], device: torch.device
) -> None:
    paths, vocab_size, blank_index = batch
    scores = dense(paths, vocab_size, device)
    lengths = torch.tensor([len(path) for path in paths], device=device)
    expected = [plain_spikes(path, blank_index) for path in paths]
    found = spikes(scores, lengths, blank_index=blank_index)
    assert pairs(found) == expected
    assert pairs(teacher_spikes(sparse(paths, vocab_size, blank_index))) == expected
    assert [s.tokens.tolist() for s in found] == greedy_decode(
        scores, lengths, blank_index=blank_index
    )


@given(batch=batches(), shift=st.floats(-50, 50, width=16))
def test_logits_spike_where_log_probs_do(
    batch: tuple[list[Path_], int, int], shift: float, device: torch.device
) -> None:
    paths, vocab_size, blank_index = batch
    scores = dense(paths, vocab_size, device).double()
    # Another constant a frame: no frame's largest logit tells how sure it is.
    constants = shift * torch.arange(scores.shape[1], device=device).cos().double()
    lengths = torch.tensor([len(path) for path in paths])
    found = spikes(scores + constants[:, None], lengths, blank_index=blank_index)
    for ours, path in zip(found, paths, strict=True):
        probs = [path[frame][1] for frame in ours.frames]
        plain = plain_spikes(path, blank_index)
        assert probs == [path[frame][1] for _, frame in plain]
        assert ours.tokens.tolist() == [token for token, _ in plain]


def test_the_surest_frame_of_a_run_is_taken(device: torch.device) -> None:
    path = [(0, 0.9), (2, 0.5), (2, 0.9), (2, 0.6), (0, 0.9), (2, 0.7), (1, 0.5), (1, 0.6)]
    found = spikes(dense([path], 3, device), torch.tensor([8]), blank_index=0)
    assert pairs(found) == [[(2, 2), (2, 5), (1, 7)]]
    assert pairs(teacher_spikes(sparse([path], 3))) == [[(2, 2), (2, 5), (1, 7)]]


def test_of_equal_frames_the_first_is_taken(device: torch.device) -> None:
    path = [(1, 0.5), (1, 0.75), (1, 0.75), (1, 0.5)]
    found = spikes(dense([path], 3, device), torch.tensor([4]), blank_index=0)
    assert pairs(found) == pairs(teacher_spikes(sparse([path], 3))) == [[(1, 1)]]


def test_saturated_frames_are_told_apart(device: torch.device) -> None:
    logits = torch.zeros(1, 3, 4, device=device)
    logits[0, :, 2] = torch.tensor([30.0, 31.0, 30.5], device=device)  # all 1.0 in float32
    found = spikes(logits, torch.tensor([3]), blank_index=0)
    assert pairs(found) == [[(2, 1)]]


def test_a_run_ends_with_its_utterance(device: torch.device) -> None:
    paths: list[Path_] = [[(1, 0.5), (1, 0.6)], [(1, 0.9), (1, 0.8)], [], [(1, 0.7)]]
    expected = [[(1, 1)], [(1, 0)], [], [(1, 0)]]
    found = spikes(dense(paths, 2, device), torch.tensor([2, 2, 0, 1]), blank_index=0)
    assert pairs(found) == pairs(teacher_spikes(sparse(paths, 2))) == expected


def test_padding_is_never_read(device: torch.device) -> None:
    scores = dense([[(1, 0.5), (1, 0.9), (2, 0.9)], [(1, 0.5), (1, 0.9), (2, 0.9)]], 3, device)
    scores[1, 1:] = float("nan")
    found = spikes(scores, torch.tensor([3, 1], device=device), blank_index=0)
    assert pairs(found) == [[(1, 1), (2, 2)], [(1, 0)]]


def test_scores_are_left_as_they_are(device: torch.device) -> None:
    scores = dense([[(1, 0.5), (2, 0.9)]], 3, device).requires_grad_()
    before = scores.detach().clone()
    spikes(scores, torch.tensor([2]), blank_index=0)
    assert torch.equal(scores, before)


@pytest.mark.parametrize("shape", [(2, 0, 3), (0, 4, 3)])
def test_no_frames_at_all(shape: tuple[int, ...], device: torch.device) -> None:
    lengths = torch.zeros(shape[0], dtype=torch.int64)
    found = spikes(torch.zeros(shape, device=device), lengths, blank_index=0)
    assert pairs(found) == [[]] * shape[0]


def test_a_frame_without_entries_is_a_blank() -> None:
    kept = sparse([[(1, 0.9), (1, 0.8)]], 3)
    emptied = replace(kept, frame_offsets=torch.tensor([0, 3]), entry_offsets=torch.tensor([0] * 4))
    assert pairs(teacher_spikes(emptied)) == [[]]
    between = replace(
        kept, frame_offsets=torch.tensor([0, 3]), entry_offsets=torch.tensor([0, 2, 2, 4])
    )
    assert pairs(teacher_spikes(between)) == [[(1, 0), (1, 2)]]


@pytest.mark.parametrize(
    ("shape", "lengths", "blank_index"),
    [((3, 4), [3], 0), ((2, 3, 4), [3], 0), ((1, 3, 4), [3], 4), ((1, 3, 4), [3], -1)],
)
def test_refuses_what_does_not_fit(
    shape: tuple[int, ...], lengths: list[int], blank_index: int
) -> None:
    with pytest.raises(ShapeError):
        spikes(torch.zeros(shape), torch.tensor(lengths), blank_index=blank_index)


def counted(offsets: SpikeOffsets) -> dict[int, int]:
    return {offset: count for offset, count in offsets.histogram.items() if count}


def test_offsets_are_student_minus_teacher() -> None:
    teacher = [made((3, 5), (4, 10), (5, 20)), made((7, 2))]
    student = [made((3, 6), (4, 8), (5, 20)), made((7, 2))]
    assert compare_spikes(student, teacher) == SpikeOffsets(
        matched=4,
        student_tokens=4,
        teacher_tokens=4,
        mean_offset=-0.25,
        mean_absolute_offset=0.75,
        share_same_frame=0.5,
        share_within_one_frame=0.75,
        histogram={offset: {-2: 1, 0: 2, 1: 1}.get(offset, 0) for offset in range(-10, 11)},
    )


def test_only_equal_tokens_are_matched() -> None:
    # The student lacks 4, says 9 for 5 and adds 8.
    teacher = [made((3, 5), (4, 10), (6, 15), (5, 20), (2, 30))]
    student = [made((3, 5), (6, 16), (9, 20), (2, 30), (8, 40))]
    offsets = compare_spikes(student, teacher)
    assert (offsets.matched, offsets.student_tokens, offsets.teacher_tokens) == (3, 5, 5)
    assert counted(offsets) == {0: 2, 1: 1}


def test_repeated_tokens_keep_their_order() -> None:
    teacher = [made((3, 1), (3, 4), (3, 9), (2, 12))]
    assert counted(compare_spikes([made((3, 2), (3, 5), (3, 10), (2, 13))], teacher)) == {1: 4}
    assert compare_spikes([made((3, 4), (2, 12))], teacher).matched == 2


def test_tokens_are_compared_as_numbers() -> None:
    large = [made((70_000, 1), (256, 3), (1_114_112, 6))]
    assert counted(compare_spikes(large, large)) == {0: 3}
    assert compare_spikes([made((256, 1))], [made((0, 1))]).matched == 0


def test_far_offsets_count_in_the_outermost_bins() -> None:
    teacher = [made((1, 100), (2, 150), (3, 200), (4, 300))]
    offsets = compare_spikes([made((1, 60), (2, 160), (3, 211), (4, 289))], teacher)
    assert counted(offsets) == {-10: 2, 10: 2}
    assert offsets.mean_offset == (-40 + 10 + 11 - 11) / 4
    assert offsets.mean_absolute_offset == (40 + 10 + 11 + 11) / 4


@pytest.mark.parametrize(
    ("student", "teacher"),
    [([], []), ([made()], [made()]), ([made((1, 2))], [made()]), ([made()], [made((1, 2))])],
)
def test_nothing_matched_has_no_mean(student: list[Spikes], teacher: list[Spikes]) -> None:
    offsets = compare_spikes(student, teacher)
    assert offsets.matched == sum(offsets.histogram.values()) == 0
    assert offsets.student_tokens == sum(len(s.tokens) for s in student)
    assert offsets.teacher_tokens == sum(len(t.tokens) for t in teacher)
    assert offsets.mean_offset is offsets.mean_absolute_offset is None
    assert offsets.share_same_frame is offsets.share_within_one_frame is None


def test_both_sides_have_the_same_utterances() -> None:
    with pytest.raises(ShapeError, match="expected 2 utterances, got 1"):
        compare_spikes([made()], [made(), made()])


TOKEN_AND_STEP = st.tuples(st.integers(0, 3), st.integers(1, 30))


@given(
    utterances=st.lists(st.lists(TOKEN_AND_STEP, max_size=15), max_size=4),
    delay=st.integers(-10, 10),
)
def test_a_delayed_copy_has_that_offset(
    utterances: list[list[tuple[int, int]]], delay: int
) -> None:
    teacher = [
        made(
            *zip(
                (token for token, _ in utterance),
                itertools.accumulate(step for _, step in utterance),
                strict=True,
            )
        )
        for utterance in utterances
    ]
    student = [replace(spoken, frames=spoken.frames + delay) for spoken in teacher]
    count = sum(map(len, utterances))
    offsets = compare_spikes(student, teacher)
    assert offsets.matched == offsets.student_tokens == offsets.teacher_tokens == count
    assert counted(offsets) == ({delay: count} if count else {})
    assert offsets.mean_offset == (delay if count else None)


def test_to_json_is_json() -> None:
    teacher = [made((3, 5), (4, 10))]
    found = {
        "layer4": compare_spikes([made()], teacher),
        "final": compare_spikes([made((3, 5), (4, 11))], teacher),
    }
    values = json.loads(json.dumps(to_json(found), allow_nan=False))
    assert list(values) == ["layer4", "final"]
    assert values["layer4"]["mean_offset_frames"] is None
    assert values["final"]["mean_offset_frames"] == 0.5
    assert values["final"]["matched"] == 2
    assert values["final"]["histogram"]["0"] == values["final"]["histogram"]["1"] == 1
    assert list(values["final"]["histogram"])[::10] == ["-10", "0", "10"]


PATHS = [[2, 0, 2, 1, 3, 0], [4, 0], [2, 3, 4, 5, 1, 2, 2, 0, 3], [0, 0, 0]]


@dataclass(frozen=True)
class Output:
    logits: tuple[Tensor, ...]
    frame_lengths: Tensor


class Reader(nn.Module):
    """Reads the tokens off the level of each frame; its early head is a frame late, without d."""

    head_names = ("early", "final")
    weight_counts = (10, 25)

    def __init__(self, vocab_size: int = 6, frame: int = FRAME) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.frame = frame
        self.modes: set[bool] = set()

    def forward(self, waveforms: Tensor, sample_lengths: Tensor) -> Output:
        self.modes.add(self.training)
        tokens = (waveforms[:, self.frame // 2 :: self.frame] * 10).round().long()
        late = nn.functional.pad(tokens, (1, 0))[:, :-1]
        heads = (torch.where(late == 5, 0, late), tokens)
        logits = tuple(9 * nn.functional.one_hot(head, self.vocab_size).float() for head in heads)
        return Output(logits, sample_lengths // self.frame)


@pytest.fixture
def manifest(write_corpus: WriteCorpus) -> Manifest:
    return write_corpus(PATHS, [""] * len(PATHS))


@pytest.fixture
def store(manifest: Manifest, tmp_path: Path) -> TeacherStore:
    """What a teacher that is nearly sure of the written tokens leaves."""
    fingerprint = Fingerprint(
        teacher="levels",
        weights_sha256="ab" * 32,
        tokens=TOKENS,
        blank_index=0,
        sample_rate=RATE,
        frame_formula=FrameFormula(((1, FRAME, 0),)),
        top_k=3,
        mass=0.999,
        quantiser="angle5",
        precision="float32",
    )
    utterances = manifest.utterances
    plan = PartPlan(
        utt_ids=tuple(utterance.utt_id for utterance in utterances),
        audio_hashes=tuple(utterance.audio_hash for utterance in utterances),
        parts=(range(len(utterances)),),
    )
    encoded = []
    for utterance, path in zip(utterances, PATHS, strict=True):
        log_probs = (9 * nn.functional.one_hot(torch.tensor(path), 6).float()).log_softmax(dim=1)
        codes = encode_frames(
            log_probs,
            top_k=fingerprint.top_k,
            mass=fingerprint.mass,
            quantiser=get_quantiser(fingerprint.quantiser),
            blank_index=fingerprint.blank_index,
        )
        *columns, _ = (column.numpy() for column in codes.columns())
        blank, tokens, fractions = pack_codes(*columns)
        encoded.append(
            EncodedUtterance(
                utt_id=utterance.utt_id,
                audio_hash=utterance.audio_hash,
                blank=blank,
                tokens=tokens,
                fractions=fractions,
                samples=utterance.samples,
            )
        )
    writer = StoreWriter.open(tmp_path / "store", fingerprint, plan)
    assert writer.write_part(0, encoded)
    writer.finish({})
    return TeacherStore.open(tmp_path / "store")


@pytest.mark.parametrize("max_seconds", [0.01, 0.3, 100.0])
@pytest.mark.parametrize("training", [True, False])
def test_every_head_is_measured(
    manifest: Manifest,
    store: TeacherStore,
    max_seconds: float,
    training: bool,
    device: torch.device,
) -> None:
    model = Reader().train(training)
    found = measure_spike_offsets(model, manifest, store, device=device, max_seconds=max_seconds)
    assert list(found) == ["early", "final"]
    assert counted(found["final"]) == {0: 12}
    assert found["final"].share_same_frame == 1.0
    # A frame late, it loses the 3 of a last frame; and it says no d (5).
    assert found["early"].teacher_tokens == 12
    assert found["early"].student_tokens == found["early"].matched == 10
    assert counted(found["early"]) == {1: 10}
    assert model.modes == {False}
    assert model.training is training


def test_what_cannot_be_compared_is_refused(manifest: Manifest, store: TeacherStore) -> None:
    def measure(model: Reader, rows: Manifest = manifest) -> None:
        measure_spike_offsets(model, rows, store, device="cpu", max_seconds=1.0)

    model = Reader()
    with pytest.raises(FingerprintError, match="expected 6 of them, got 7"):
        measure(Reader(vocab_size=7))
    with pytest.raises(FrameCountError, match="differ by more than 2"):
        measure(Reader(frame=2 * FRAME))
    with pytest.raises(CorpusError, match="without utterances"):
        measure(model, replace(manifest, utterances=()))
    stranger = replace(manifest.utterances[0], utt_id="stranger")
    with pytest.raises(StoreError, match="lacks 1 utterances"):
        measure(model, replace(manifest, utterances=(stranger,)))
    assert model.training
