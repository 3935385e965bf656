"""The experiment's sweep from its tuning: each recipe with the settings that dev liked best.

    E=benchmarks/inter_kd
    python $E/choose.py $E/jasper-{first,tuning,more}.yaml --beyond $E/jasper-beyond.yaml \\
        --epochs 80 --times $E/results/h200-recipes.json --out $E/jasper-sweep.yaml

Every run of the tuning must be done. Recipes that were not tuned take the settings of their nearest
kin. Tries beyond the tuning (two views, other heads, higher rates) choose no recipe's settings; the
best of them has a row if it is better than every recipe. The times are what bench_training.py wrote
of the recipes.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from interkd.pipeline.sweep.config import read_sweep
from interkd.pipeline.sweep.results import finished_result
from interkd.pipeline.sweep.runs import expand

RECIPES = ("ctc", "inter-ctc", "skd", "inter-kd", "inter-kd-kl")
KIN = {
    "kl": "skd",
    "guided": "skd",
    "mass3-ntdk": "skd",
    "inter-mass3-ntdk": "inter-kd",
    "kd-only": "inter-kd-kl",
    "self-conditioned": "inter-ctc",
}
# Every setting of the other, lambda too: without its intermediate teacher, and with heads that
# condition what follows.
CONTROLS = {"inter-ctc-skd": "inter-kd", "inter-ctc-kl": "inter-kd-kl"}
CONDITIONED = ("inter-kd", "inter-kd-kl", "inter-ctc-kl")
TEACHER = "{dev: runs/inter_kd/dev.teacher.trn, test: runs/inter_kd/test.teacher.trn}"
SETS = "{dev: runs/inter_kd/dev/manifest.jsonl, test: runs/inter_kd/test/manifest.jsonl}"


@dataclass(frozen=True)
class Try:
    """A run of the tuning: what departs from the base, and its WER on dev."""

    name: str
    settings: dict[str, str]
    dev_wer: float


def read_tries(path: Path) -> list[tuple[str, Try]]:
    """The finished runs of a sweep, each with its recipe."""
    sweep = read_sweep(path)
    if sweep.grid:
        raise SystemExit(f"{path}: a tuning is a list of runs, not a grid")
    entries = {entry.name: entry for entry in sweep.runs}
    tries = []
    for run in expand(sweep):
        result = finished_result(run, {"dev": None})
        if result is None:
            raise SystemExit(f"{path}: no result of {run.name} yet")
        assigned = dict(text.split("=", 1) for text in entries[run.entry].set)
        recipe = assigned.pop("objective.recipe")
        settings = {key: value for key, value in assigned.items() if not key.startswith("data.")}
        wer = result.scores["dev"].heads[-1].words.rate
        tries.append((recipe, Try(run.name, settings, wer)))
    return tries


def run_lines(
    said: str, name: str, recipe: str, settings: dict[str, str], epochs: int
) -> list[str]:
    """An entry of the sweep's list, below what is said of it."""
    chosen = {"objective.recipe": recipe, **settings, "epochs": str(epochs)}
    inner = ", ".join(f"{key}: {value}" for key, value in chosen.items())
    return [f"  # {said}", f"  - {{name: {name}, set: {{{inner}}}}}"]


def without_losses(settings: dict[str, str]) -> dict[str, str]:
    """What another loss can share: all but the objective, and of that the heads' weights."""
    return {
        key: value
        for key, value in settings.items()
        if not key.startswith("objective.") or key.endswith("ctc_weight")
    }


def lines_beyond(path: Path, to_beat: float, epochs: int) -> list[str]:
    """The best of the tries beyond the tuning as an entry, if its WER is below another one."""
    tries = read_tries(path)
    recipe, best = min(tries, key=lambda pair: pair[1].dev_wer)
    said = f"{best.name}: {best.dev_wer:.2f} % on dev, best of {len(tries)} beyond the tuning"
    print(said)
    if best.dev_wer >= to_beat:
        return []
    return run_lines(said, best.name, recipe, best.settings, epochs)


def main() -> None:
    """Writes the sweep and says what it chose."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tuning", type=Path, nargs="+")
    parser.add_argument("--beyond", type=Path)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--seeds", default="1, 2, 3")
    parser.add_argument("--times", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    tries: dict[str, list[Try]] = {recipe: [] for recipe in RECIPES}
    for path in options.tuning:
        for recipe, one in read_tries(path):
            tries[recipe].append(one)
    times = json.loads(options.times.read_text(encoding="utf-8"))["runs"]
    ms = {run["recipe"]: f"{run['ms']:.2f}" for run in times}
    lines = []
    best = {}
    for recipe, made in tries.items():
        chosen = min(made, key=lambda one: one.dev_wer)
        best[recipe] = chosen.settings
        said = f"{chosen.name}: {chosen.dev_wer:.2f} % on dev, best of {len(made)}"
        print(f"{recipe}: {said}")
        lines += run_lines(said, recipe, recipe, best[recipe], options.epochs)
    for recipe, kin in KIN.items():
        lines += run_lines(f"as {kin}", recipe, recipe, without_losses(best[kin]), options.epochs)
    fed_back = {"student.self_conditioned": "true"}
    others = [(recipe, recipe, {}) for recipe in CONTROLS]
    others += [(f"{recipe}-conditioned", recipe, fed_back) for recipe in CONDITIONED]
    for name, recipe, change in others:
        kin = CONTROLS.get(recipe, recipe)
        if name in ms:
            settings = {**best[kin], **change}
            lines += run_lines(f"as {kin}", name, recipe, settings, options.epochs)
        else:
            print(f"{name}: left out, {options.times} has no time of its step")
    if options.beyond:
        to_beat = min(one.dev_wer for made in tries.values() for one in made)
        lines += lines_beyond(options.beyond, to_beat, options.epochs)
    head = f"""\
# Made by choose.py of the tuning: each recipe with the settings that dev liked best.
base: jasper.yaml
out: runs/inter_kd/jasper
results: benchmarks/inter_kd/results/jasper
score: {SETS}
teacher: {TEACHER}
jobs: 4
baselines: [ctc, inter-ctc, skd, inter-kd]
ms_a_step: {{{", ".join(f"{name}: {time}" for name, time in ms.items())}}}
runs:
"""
    text = head + "\n".join(lines) + f"\ngrid: {{seed: [{options.seeds}]}}\n"
    options.out.write_text(text, encoding="utf-8")
    expand(read_sweep(options.out))  # says what is wrong with it


if __name__ == "__main__":
    main()
