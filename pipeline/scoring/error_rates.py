"""Word and character errors: substitutions, insertions, deletions, alignments."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import jiwer

from interkd.kernels.errors import ConfigError, CorpusError, ShapeError

Unit = Literal["word", "character"]
Operation = Literal["equal", "substitute", "insert", "delete"]


@dataclass(frozen=True, kw_only=True)
class ErrorCounts:
    """Edit operations that turn references into hypotheses, each at cost 1.

    `substitutions + deletions + hits` is `reference_length`. sclite prices a substitution 4 and an
    insertion or deletion 3, so its split, and now and then its sum, can differ slightly.
    """

    substitutions: int = 0
    insertions: int = 0
    deletions: int = 0
    hits: int = 0
    reference_length: int = 0

    @property
    def errors(self) -> int:
        """All edits."""
        return self.substitutions + self.insertions + self.deletions

    @property
    def rate(self) -> float:
        """Edits per reference unit, in percent; above 100 with many insertions.

        Raises:
            CorpusError: If the references are empty, which leaves nothing to divide by.
        """
        if self.reference_length == 0:
            raise CorpusError(
                "an error rate over references without a single word",
                remedy="check the manifest's text column",
            )
        return 100.0 * self.errors / self.reference_length

    def __add__(self, other: ErrorCounts) -> ErrorCounts:
        return ErrorCounts(
            substitutions=self.substitutions + other.substitutions,
            insertions=self.insertions + other.insertions,
            deletions=self.deletions + other.deletions,
            hits=self.hits + other.hits,
            reference_length=self.reference_length + other.reference_length,
        )


@dataclass(frozen=True, kw_only=True)
class AlignedWord:
    """One column of an alignment; the side that has no word there is None."""

    operation: Operation
    reference: str | None
    hypothesis: str | None


def total(counts: Iterable[ErrorCounts]) -> ErrorCounts:
    """The sum of many counts."""
    return sum(counts, ErrorCounts())


def count_errors(
    references: Sequence[str], hypotheses: Sequence[str], *, unit: Unit = "word"
) -> ErrorCounts:
    """Errors over a whole set; the arguments are those of `count_errors_each`."""
    return total(count_errors_each(references, hypotheses, unit=unit))


def count_errors_each(
    references: Sequence[str], hypotheses: Sequence[str], *, unit: Unit = "word"
) -> list[ErrorCounts]:
    """Errors of each utterance.

    Text is compared as it stands, case and punctuation included; runs of white space count as one
    space and none at the ends. As a character, a space counts like a letter. An empty hypothesis
    is all deletions, an empty reference all insertions.

    Args:
        references: One transcript an utterance.
        hypotheses: What was recognised, in the same order.
        unit: `word` or `character`.

    Returns:
        One count an utterance.

    Raises:
        ShapeError: If there are not as many hypotheses as references.
        ConfigError: For another unit.
    """
    if len(references) != len(hypotheses):
        raise ShapeError("hypotheses", expected=f"{len(references)} texts", got=len(hypotheses))
    if unit not in ("word", "character"):
        raise ConfigError("unit", expected="word | character", got=repr(unit))
    if not references:
        return []
    process = jiwer.process_words if unit == "word" else jiwer.process_characters
    output = process([_tidy(text) for text in references], [_tidy(text) for text in hypotheses])
    counts = []
    for reference, chunks in zip(output.references, output.alignments, strict=True):
        edits = {"equal": 0, "substitute": 0, "delete": 0, "insert": 0}
        for chunk in chunks:
            edits[chunk.type] += (
                chunk.hyp_end_idx - chunk.hyp_start_idx
                if chunk.type == "insert"
                else chunk.ref_end_idx - chunk.ref_start_idx
            )
        counts.append(
            ErrorCounts(
                substitutions=edits["substitute"],
                insertions=edits["insert"],
                deletions=edits["delete"],
                hits=edits["equal"],
                reference_length=len(reference),
            )
        )
    return counts


def align_words(reference: str, hypothesis: str) -> list[AlignedWord]:
    """The alignment behind the word errors of one utterance, column by column."""
    output = jiwer.process_words(_tidy(reference), _tidy(hypothesis))
    reference_words, hypothesis_words = output.references[0], output.hypotheses[0]
    columns = []
    for chunk in output.alignments[0]:
        left = reference_words[chunk.ref_start_idx : chunk.ref_end_idx]
        right = hypothesis_words[chunk.hyp_start_idx : chunk.hyp_end_idx]
        width = max(len(left), len(right))
        columns += [
            AlignedWord(operation=chunk.type, reference=a, hypothesis=b)
            for a, b in zip(
                left or [None] * width,
                right or [None] * width,
                strict=True,
            )
        ]
    return columns


def _tidy(text: str) -> str:
    return " ".join(text.split())
