"""Two score reports side by side: is their WER difference more than chance?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from interkd.kernels.errors import ConfigError, CorpusError
from interkd.pipeline.config import nearest, one_of
from interkd.pipeline.scoring.bootstrap import PairedResult, paired_bootstrap
from interkd.pipeline.scoring.report import HeadResult, HeadResults, read_report
from interkd.pipeline.scoring.score import speaker_groups

SIGNIFICANCE_LEVEL = 0.05


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The paired comparison of two systems over the same utterances.

    Attributes:
        name_a: Student and head of A.
        name_b: Student and head of B.
        wer_a: WER of A, in percent.
        wer_b: WER of B, in percent.
        utterances: How many were compared.
        paired: Difference A - B in percent points, its 95 % interval and p.
    """

    name_a: str
    name_b: str
    wer_a: float
    wer_b: float
    utterances: int
    paired: PairedResult

    @property
    def is_significant(self) -> bool:
        """Whether p lies below 0.05."""
        return self.paired.p_value < SIGNIFICANCE_LEVEL


def compare(
    path_a: Path,
    path_b: Path,
    *,
    head: str | None = None,
    samples: int = 10_000,
    seed: int = 0,
    resample: str = "utterance",
) -> Comparison:
    """Compares the WER of two reports by a paired bootstrap.

    Args:
        path_a: A score folder or its report.json.
        path_b: Another one, over the same utterances with the same references.
        head: The head to compare in both; by default the last of each.
        samples: Number of resamples.
        seed: Seed of the resampling.
        resample: `utterance` or `speaker`.

    Returns:
        The comparison.

    Raises:
        ConfigError: If a report cannot be read or has no such head.
        CorpusError: If the utterances or their references differ.
    """
    one_of("resample", resample, ("utterance", "speaker"))
    report_a, report_b = read_report(path_a), read_report(path_b)
    _check_same_references(report_a.results, report_b.results, f"{path_a}", f"{path_b}")
    head_a = _head(report_a.results, head, path_a)
    head_b = _head(report_b.results, head, path_b)
    order_b = {u.utt_id: index for index, u in enumerate(report_b.results.utterances)}
    errors_b = [
        head_b.words[order_b[utterance.utt_id]].errors for utterance in report_a.results.utterances
    ]
    paired = paired_bootstrap(
        [count.errors for count in head_a.words],
        errors_b,
        [count.reference_length for count in head_a.words],
        samples=samples,
        seed=seed,
        groups=speaker_groups(report_a.results) if resample == "speaker" else None,
    )
    return Comparison(
        name_a=f"{report_a.student} ({head_a.name})",
        name_b=f"{report_b.student} ({head_b.name})",
        wer_a=head_a.word_total.rate,
        wer_b=head_b.word_total.rate,
        utterances=len(head_a.words),
        paired=paired,
    )


def _head(results: HeadResults, name: str | None, path: Path) -> HeadResult:
    if name is None:
        return results.final
    heads = {head.name: head for head in results.heads}
    if name not in heads:
        raise ConfigError(
            f"{path} has no head {name!r}",
            expected=" | ".join(heads),
            got=name,
            remedy=nearest(name, heads),
        )
    return heads[name]


def _check_same_references(a: HeadResults, b: HeadResults, path_a: str, path_b: str) -> None:
    references_a = {u.utt_id: " ".join(u.reference.split()) for u in a.utterances}
    references_b = {u.utt_id: " ".join(u.reference.split()) for u in b.utterances}
    only_a, only_b = (
        references_a.keys() - references_b.keys(),
        references_b.keys() - references_a.keys(),
    )
    if only_a or only_b:
        example = min(only_a or only_b)
        raise CorpusError(
            f"{path_a} and {path_b} score different utterances",
            expected="the same set in both",
            got=f"{len(only_a)} only in the first and {len(only_b)} only in the second, "
            f"such as {example!r}",
            remedy="score both checkpoints on one manifest",
        )
    for utt_id, reference in references_a.items():
        if references_b[utt_id] != reference:
            raise CorpusError(
                f"{path_a} and {path_b} differ in the reference of {utt_id!r}",
                expected=repr(reference),
                got=repr(references_b[utt_id]),
                remedy="score both checkpoints on one manifest",
            )
