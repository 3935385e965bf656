from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interkd.kernels.errors import ConfigError, CorpusError, ShapeError
from interkd.pipeline.scoring.error_rates import (
    ErrorCounts,
    align_words,
    count_errors,
    count_errors_each,
)

texts = st.lists(st.sampled_from(["a", "bb", "c", "ab"]), max_size=6).map(" ".join)
pairs = st.lists(st.tuples(texts, texts), max_size=6)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("the cat sat", "the cat sat", (0, 0, 0, 3)),
        ("the cat sat", "the bat sat", (1, 0, 0, 2)),
        ("the cat sat", "the cat", (0, 0, 1, 2)),
        ("the cat sat", "the big cat sat", (0, 1, 0, 3)),
        ("the cat sat", "", (0, 0, 3, 0)),
        ("", "two words", (0, 2, 0, 0)),
        ("", "", (0, 0, 0, 0)),
        ("a b c d", "b c x d", (0, 1, 1, 3)),
        ("  the   cat ", "the\tcat", (0, 0, 0, 2)),
        ("The cat.", "the cat", (2, 0, 0, 0)),
    ],
)
def test_words_by_hand(reference: str, hypothesis: str, expected: tuple[int, ...]) -> None:
    counts = count_errors([reference], [hypothesis])
    assert (counts.substitutions, counts.insertions, counts.deletions, counts.hits) == expected


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("cat", "cut", (1, 0, 0, 2)),
        ("a cat", "acat", (0, 0, 1, 4)),
        ("cat", "", (0, 0, 3, 0)),
        ("", "ab", (0, 2, 0, 0)),
        ("größe", "grose", (2, 0, 0, 3)),
    ],
)
def test_characters_by_hand(reference: str, hypothesis: str, expected: tuple[int, ...]) -> None:
    counts = count_errors([reference], [hypothesis], unit="character")
    assert (counts.substitutions, counts.insertions, counts.deletions, counts.hits) == expected


def plain_distance(reference: list[str], hypothesis: list[str]) -> int:
    row = list(range(len(hypothesis) + 1))
    for i, word in enumerate(reference, start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(hypothesis, start=1):
            diagonal, row[j] = (
                row[j],
                min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other)),
            )
    return row[-1]


@given(pairs=pairs, unit=st.sampled_from(["word", "character"]))
def test_counts_add_up(pairs: list[tuple[str, str]], unit: str) -> None:
    references, hypotheses = [r for r, _ in pairs], [h for _, h in pairs]
    each = count_errors_each(references, hypotheses, unit=unit)  # type: ignore[arg-type]
    assert len(each) == len(pairs)
    for counts, reference, hypothesis in zip(each, references, hypotheses, strict=True):
        left = reference.split() if unit == "word" else list(reference)
        right = hypothesis.split() if unit == "word" else list(hypothesis)
        assert counts.substitutions + counts.deletions + counts.hits == len(left)
        assert counts.substitutions + counts.insertions + counts.hits == len(right)
        assert counts.reference_length == len(left)
        assert counts.errors == plain_distance(left, right)
    whole = count_errors(references, hypotheses, unit=unit)  # type: ignore[arg-type]
    assert whole == sum(each, ErrorCounts())


@given(reference=texts, hypothesis=texts)
def test_alignment_holds_both_texts_and_the_counts(reference: str, hypothesis: str) -> None:
    columns = align_words(reference, hypothesis)
    assert [c.reference for c in columns if c.reference is not None] == reference.split()
    assert [c.hypothesis for c in columns if c.hypothesis is not None] == hypothesis.split()
    counts = count_errors([reference], [hypothesis])
    operations = [column.operation for column in columns]
    assert operations.count("substitute") == counts.substitutions
    assert operations.count("insert") == counts.insertions
    assert operations.count("delete") == counts.deletions
    assert operations.count("equal") == counts.hits


def test_rate_is_errors_over_reference() -> None:
    counts = ErrorCounts(substitutions=1, insertions=2, deletions=3, hits=4, reference_length=8)
    assert counts.errors == 6
    assert counts.rate == 75.0
    assert count_errors(["a"], ["b c d"]).rate == 300.0


def test_rate_of_empty_references_is_refused() -> None:
    with pytest.raises(CorpusError, match="without a single word"):
        _ = count_errors(["", " "], ["a", ""]).rate


def test_refuses_columns_that_do_not_fit() -> None:
    with pytest.raises(ShapeError, match="expected 2 texts, got 1"):
        count_errors_each(["a", "b"], ["a"])
    with pytest.raises(ConfigError, match=r"word \| character"):
        count_errors_each(["a"], ["a"], unit="phone")  # type: ignore[arg-type]


def test_five_thousand_utterances_are_quick() -> None:
    rng = np.random.default_rng(0)
    words = np.array(["time", "and", "tide", "wait", "for", "no", "man", "but", "me"])
    references = [" ".join(row) for row in rng.choice(words, (5000, 20))]
    hypotheses = [" ".join(row) for row in rng.choice(words, (5000, 20))]
    start = time.process_time()
    count_errors_each(references, hypotheses)
    assert time.process_time() - start < 5.0
