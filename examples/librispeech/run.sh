#!/usr/bin/env bash
# Inter-KD on LibriSpeech: prepare, cache a public teacher once, train five recipes from it, score, compare.
# Usage: examples/librispeech/run.sh [--dry-run] 100h|960h LIBRISPEECH_FOLDER [--set KEY=VALUE ...]
# --dry-run prints every command instead, and checks that each would be accepted; it needs no data.
# Started again after a stop it goes on where it was. Variables, with their defaults:
#   OUT=runs/librispeech  TEACHER=torchaudio:WAV2VEC2_ASR_LARGE_LV60K_960H  TEACHER_WEIGHTS= (a local state dict)
#   RECIPES="ctc inter-ctc skd inter-ctc-skd inter-kd"  SEEDS=1 (or "1 2 3")  PYTHON=python3
set -euo pipefail
usage() {
  sed -n '2,7s/^# //p' "$0" >&2
  exit 2
}
dry_run=
if [[ ${1:-} == --dry-run ]]; then dry_run=1 && shift; fi
[[ $# -ge 2 && ( $1 == 100h || $1 == 960h ) ]] || usage
size=$1 speech=$2
shift 2
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}
out=${OUT:-runs/librispeech}
teacher=${TEACHER:-torchaudio:WAV2VEC2_ASR_LARGE_LV60K_960H}
read -ra recipes <<<"${RECIPES:-ctc inter-ctc skd inter-ctc-skd inter-kd}"
read -ra seeds <<<"${SEEDS:-1}"
weights=()
if [[ -n ${TEACHER_WEIGHTS:-} ]]; then weights=(--teacher-weights "$TEACHER_WEIGHTS"); fi
splits=(train-clean-100)
if [[ $size == 960h ]]; then splits+=(train-clean-360 train-other-500); fi
train=$out/train-$size store=$out/train-$size.teacher.zarr

plan=
if [[ $dry_run ]]; then
  plan=$(mktemp)
  trap 'rm -f "$plan"' EXIT
fi
run() { # COMMAND ...: prints it, and runs it unless this is a dry run
  printf '$'
  printf ' %q' "$@"
  printf '\n'
  if [[ $dry_run ]]; then
    printf '%s\0' "$@" >>"$plan"
    printf '\0' >>"$plan"
  else
    "$@"
  fi
}
interkd() { run "$python" -m interkd "$@"; }
missing() { [[ $dry_run || ! -e $1 ]]; }

prepare() { # NAME SPLIT ...
  local name=$1
  shift
  missing "$out/$name/manifest.jsonl" || return 0
  run "$python" "$here/manifest.py" "${@/#/$speech/}" --out "$out/$name.jsonl"
  interkd prepare "$out/$name.jsonl" --out "$out/$name" --tokens "$here/tokens.txt" --frame-shift-ms 20
}
prepare "train-$size" "${splits[@]}"
for split in dev-clean test-clean test-other; do prepare $split $split; done

# What it will cost; the speeds are docs/results.md's and an assumption, see README.md.
config=$here/student-$size.yaml
epochs=$(sed -n 's/^epochs: *//p' "$config")
speed=25000  # audio in the GPU's memory
[[ $size == 100h ]] || speed=5000  # decoded anew in each epoch
interkd plan --manifest "$train/manifest.jsonl" --teacher-timing 15682.8 2.61 --cache-overhead 2.24 --student-speed "$speed" --epochs "$epochs" --students 1,5,20

interkd cache-teacher --teacher "$teacher" "${weights[@]}" --manifest "$train/manifest.jsonl" --out "$store" --precision bfloat16
interkd cache info "$store"
interkd cache verify "$store"
interkd cache decode "$store" --manifest "$train/manifest.jsonl"

for seed in "${seeds[@]}"; do
  for recipe in "${recipes[@]}"; do
    name=$size-$recipe-$seed
    resume=()
    if [[ -e $out/$name/config.yaml ]]; then resume=(--resume); fi
    weights_of_heads=()  # inter-kd's; inter-ctc's own were far worse in docs/results.md
    if [[ $recipe == inter-ctc ]]; then
      weights_of_heads=(--set objective.final_ctc_weight=1 --set objective.inter_ctc_weight=1)
    fi
    interkd train-student --config "$config" --store "$store" --out "$out/$name" "${resume[@]}" \
      --set data.train_manifest="$train/manifest.jsonl" --set data.dev_manifest="$out/dev-clean/manifest.jsonl" \
      --set objective.recipe="$recipe" "${weights_of_heads[@]}" --set seed="$seed" "$@"
    for split in test-clean test-other; do
      interkd score --checkpoint "$out/$name" --manifest "$out/$split/manifest.jsonl" --out "$out/score/$name-$split"
    done
  done
done
for seed in "${seeds[@]}"; do
  for recipe in "${recipes[@]}"; do
    for split in test-clean test-other; do
      [[ $recipe == "${recipes[0]}" ]] ||
        interkd score --compare "$out/score/$size-${recipes[0]}-$seed-$split" "$out/score/$size-$recipe-$seed-$split"
    done
  done
done
[[ $dry_run ]] || exit 0

"$python" - "$plan" <<'PY'
import sys
from pathlib import Path

import click

from interkd import InterkdError
from interkd.cli.main import interkd
from interkd.pipeline.config import build, override, read_yaml
from interkd.pipeline.training.config import TrainConfig

count = 0
for line in Path(sys.argv[1]).read_text(encoding="utf-8").split("\0\0"):
    words = line.split("\0")
    if words[1:3] != ["-m", "interkd"]:
        continue
    count += 1
    try:
        context = click.Context(interkd)
        command, rest = interkd, words[3:]
        while isinstance(command, click.Group):
            name, command, rest = command.resolve_command(context, rest)
        options = command.make_context(name, list(rest), parent=context).params
        if name == "train-student":
            values = override(read_yaml(options["config"]), options["assignments"])
            build(TrainConfig, {**values, "out": options["out"], "store": options["store"]})
    except (click.ClickException, InterkdError) as error:
        message = error.format_message() if isinstance(error, click.ClickException) else error
        sys.exit(f"run.sh: error: interkd {' '.join(words[3:])}: {message}")
print(f"dry run: {count} interkd commands and their settings would be accepted")
PY
