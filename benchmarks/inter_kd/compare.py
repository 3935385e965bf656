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
    """Prints a line for words and one for characters, of the final head."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", help="pattern of files, one a seed")
    parser.add_argument("baseline", help="likewise")
    parser.add_argument("--split", default="test")
    options = parser.parse_args()
    ours, theirs = (read_group(one, options.split) for one in (options.results, options.baseline))
    if len({score.utterances for score in [*ours, *theirs]}) > 1:
        raise SystemExit("the results are of different utterances")
    for unit, name in (("word", "WER"), ("character", "CER")):
        rates = rates_of_scores({"ours": ours, "theirs": theirs}, unit, samples=SAMPLES)
        mine, other = rates["ours"][-1], rates["theirs"][-1]
        less = mine.reduction(other)
        assert less is not None
        print(
            f"{name} {mine.value:.2f} and {other.value:.2f} %: "
            f"{less.value:+.1f} % less ({less.low:+.1f} to {less.high:+.1f})"
        )


if __name__ == "__main__":
    main()
