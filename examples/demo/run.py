"""The embedded demo: prepare, cache a teacher, train three students, score and compare them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUT = Path("runs/demo")
RECIPES = ("ctc", "inter-kd", "inter-kd-kl")
# Softened on both sides, or the squared distance hardly moves a student that is surely wrong.
SETTINGS = {
    "inter-kd": ["--set", "objective.temperature=3.0", "--set", "objective.distill_weight=4.0"]
}
INTERKD = Path(sys.executable).with_name("interkd")


def interkd(*arguments: object) -> None:
    """Runs one command, shown as one would type it."""
    command = [str(argument) for argument in arguments]
    print(f"\n$ interkd {' '.join(command)}", flush=True)
    started = time.monotonic()
    code = subprocess.run([INTERKD, *command], check=False).returncode
    if code:
        sys.exit(code)
    print(f"  {time.monotonic() - started:.0f} s", flush=True)


def main() -> None:
    """Runs the demo in `runs/demo`, from scratch."""
    started = time.monotonic()
    shutil.rmtree(OUT, ignore_errors=True)
    speech = OUT / "speech"
    with zipfile.ZipFile(HERE / "speech.zip") as archive:
        archive.extractall(speech)
    for split in ("train", "dev", "test"):
        interkd(
            "prepare", speech / f"{split}.jsonl", "--out", OUT / split,
            "--tokens", HERE / "teacher", "--frame-shift-ms", 40,
        )  # fmt: skip
    store = OUT / "train.teacher.zarr"
    interkd(
        "cache-teacher", "--teacher", f"interkd:{HERE / 'teacher'}",
        "--manifest", OUT / "train" / "manifest.jsonl", "--out", store, "--part-minutes", 15,
    )  # fmt: skip
    interkd("cache", "info", store)
    for recipe in RECIPES:
        run = OUT / recipe
        interkd(
            "train-student", "--config", HERE / "student.yaml", "--store", store, "--out", run,
            "--set", f"data.train_manifest={OUT / 'train' / 'manifest.jsonl'}",
            "--set", f"data.dev_manifest={OUT / 'dev' / 'manifest.jsonl'}",
            "--set", f"objective.recipe={recipe}", *SETTINGS.get(recipe, []),
        )  # fmt: skip
        interkd(
            "score", "--checkpoint", run, "--manifest", OUT / "test" / "manifest.jsonl",
            "--out", OUT / f"score-{recipe}",
        )  # fmt: skip
    interkd(
        "score", "--checkpoint", HERE / "teacher", "--manifest", OUT / "test" / "manifest.jsonl",
        "--out", OUT / "score-teacher",
    )  # fmt: skip
    for recipe in RECIPES[1:]:
        interkd("score", "--compare", OUT / "score-ctc", OUT / f"score-{recipe}")
    print("\nFour unseen voices, greedy, final head:")
    for name in (*RECIPES, "teacher"):
        report = json.loads((OUT / f"score-{name}" / "report.json").read_text(encoding="utf-8"))
        wer, weights = report["heads"][-1]["wer"], report["heads"][-1]["weights"]
        interval = f"({wer['low']:.2f} to {wer['high']:.2f})"
        print(f"  {name:12s} WER {wer['percent']:6.2f} %  {interval:18s} {weights:>9,} weights")
    for recipe in RECIPES[1:]:
        print(f"Report: {(OUT / f'score-{recipe}' / 'report.html').resolve()}")
    print(f"The whole demo took {time.monotonic() - started:.0f} s.")


if __name__ == "__main__":
    main()
