"""One group of results against another, of any sweeps: relative reductions of WER and CER.

    cd benchmarks/inter_kd/results
    python ../compare.py "jasper/inter-kd-seed*.json" "jasper/kl-seed*.json"

Intervals as in a sweep's report: 10,000 resamples of utterances and seeds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from interkd.pipeline.sweep.intervals import rates_of_scores
from interkd.pipeline.sweep.report import SAMPLES
from interkd.pipeline.sweep.results import read_result
from interkd.pipeline.sweep.scores import SplitScore


def read_group(pattern: str, split: str) -> list[SplitScore]:
    """The scores of every result whose path fits."""
    paths = sorted(Path().glob(pattern))
    if not paths:
        raise SystemExit(f"no result fits {pattern}")
    return [read_result(path).scores[split] for path in paths]


def main() -> None:
    """Prints words and characters of every head that both have."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", help="pattern of files, one a seed")
    parser.add_argument("baseline", help="likewise")
    parser.add_argument("--split", default="test")
    options = parser.parse_args()
    ours, theirs = (read_group(one, options.split) for one in (options.results, options.baseline))
    if len({score.utterances for score in [*ours, *theirs]}) > 1:
        raise SystemExit("the results are of different utterances")
    # Of students with different heads the last alone.
    heads = {tuple(head.name for head in score.heads) for score in [*ours, *theirs]}
    names = heads.pop() if len(heads) == 1 else ("final",)
    for unit, name in (("word", "WER"), ("character", "CER")):
        rates = rates_of_scores({"ours": ours, "theirs": theirs}, unit, samples=SAMPLES)
        mine_of, other_of = (rates[group][-len(names) :] for group in ("ours", "theirs"))
        for head, mine, other in zip(names, mine_of, other_of, strict=True):
            less = mine.reduction(other)
            assert less is not None
            print(
                f"{name} of {head}: {mine.value:.2f} and {other.value:.2f} %, "
                f"{less.value:+.1f} % less ({less.low:+.1f} to {less.high:+.1f})"
            )


if __name__ == "__main__":
    main()
