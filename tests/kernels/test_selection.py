"""Frame selection: vectorised against plain, and the cases that a batch axis would get wrong."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interkd.kernels.errors import ConfigError
from interkd.kernels.reference import selection as reference
from interkd.kernels.selection import FrameSelection, select_frames
from tests.kernels.posteriors import Utterances, sparse

VOCAB_SIZE = 5
FRAME = st.dictionaries(
    st.integers(0, VOCAB_SIZE - 1), st.sampled_from([0.9, 0.4, 0.1, 0.0]), max_size=4
)


@given(
    utterances=st.lists(st.lists(FRAME, max_size=7), max_size=4),
    radius=st.integers(0, 9),
    blank_index=st.integers(0, VOCAB_SIZE - 1),
)
def test_vectorised_is_the_reference(
    device: torch.device,
    utterances: Utterances,
    radius: int,
    blank_index: int,
) -> None:
    teacher = sparse(utterances, VOCAB_SIZE, blank_index=blank_index)
    for text in ("all", "non-blank", f"symmetric({radius})"):
        selected = select_frames(teacher.to(device), text)
        assert selected.dtype == torch.bool
        assert torch.equal(selected.cpu(), reference.select_frames(teacher, text))


def test_dilation_stays_within_the_utterance(device: torch.device) -> None:
    blank, spike = {0: 0.9, 2: 0.05}, {2: 0.9, 0: 0.05}
    teacher = sparse(
        [[blank, blank, spike], [blank] * 4, [spike, blank, blank]], VOCAB_SIZE, device
    )
    assert select_frames(teacher, "non-blank").int().tolist() == [0, 0, 1, 0, 0, 0, 0, 1, 0, 0]
    assert select_frames(teacher, "symmetric(1)").int().tolist() == [0, 1, 1, 0, 0, 0, 0, 1, 1, 0]
    assert select_frames(teacher, "symmetric(5)").int().tolist() == [1, 1, 1, 0, 0, 0, 0, 1, 1, 1]
    assert select_frames(teacher, FrameSelection()).all()


@pytest.mark.parametrize("text", ["all", "non-blank", "symmetric(0)", "symmetric(12)"])
def test_text_survives_a_round_trip(text: str) -> None:
    assert str(FrameSelection.parse(f" {text} ")) == text


@pytest.mark.parametrize(
    "text", ["", "some", "symmetric", "symmetric()", "symmetric(-1)", "all(1)", "non-blank(0)"]
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="frame selection"):
        FrameSelection.parse(text)


def test_settings_without_meaning_are_refused() -> None:
    for kind, radius in (("all", 1), ("symmetric", -1), ("asymmetric", 0)):
        with pytest.raises(ConfigError, match="frame selection"):
            FrameSelection(kind=kind, radius=radius)


def test_the_first_entry_is_the_argmax(device: torch.device) -> None:
    """Rounding may make its rival as probable, or more."""
    teacher = sparse([[{5: 0.5, 0: 0.5}, {0: 0.49, 5: 0.5}]], 8, device)
    assert select_frames(teacher, "non-blank").tolist() == [True, False]
