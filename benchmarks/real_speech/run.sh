#!/usr/bin/env bash
# Real speech end to end: prepare, cache, train four recipes at once, score. One GPU, about ten minutes.
# Usage: benchmarks/real_speech/run.sh SPEECH_FOLDER TEACHER_FILE [--set KEY=VALUE ...]
# SPEECH_FOLDER has train.jsonl, dev.jsonl, test.jsonl; TEACHER_FILE is TorchScript with tokens.txt beside it.
set -euo pipefail
speech=$1 teacher=$2
shift 2
out=runs/real
interkd() { python3 -m interkd "$@"; }
for split in train dev test; do
  interkd prepare "$speech/$split.jsonl" --out $out/$split --tokens "$(dirname "$teacher")/tokens.txt" --frame-shift-ms 20
done
for split in dev train; do
  interkd cache-teacher --teacher "torchscript:$teacher" --manifest $out/$split/manifest.jsonl --out $out/$split.teacher.zarr
  interkd cache decode $out/$split.teacher.zarr --manifest $out/$split/manifest.jsonl
done
interkd cache info $out/train.teacher.zarr
interkd cache verify $out/train.teacher.zarr

student() { # NAME SETTINGS...
  local name=$1
  shift
  interkd train-student --config benchmarks/real_speech/conformer.yaml --store $out/train.teacher.zarr --out $out/$name "$@" >$out/$name.txt 2>&1
  for split in dev test; do
    interkd score --checkpoint $out/$name --manifest $out/$split/manifest.jsonl --out $out/score/$name-$split >$out/score-$name-$split.txt 2>&1
  done
}
mkdir -p $out
pids=()
student ctc --set objective.recipe=ctc "$@" & pids+=($!)
student inter-ctc --set objective.recipe=inter-ctc "$@" & pids+=($!)
student inter-kd --set objective.recipe=inter-kd "$@" & pids+=($!)
student inter-kd-2 --set objective.recipe=inter-kd --set objective.distill_weight=2.0 "$@" & pids+=($!)
for pid in "${pids[@]}"; do wait "$pid"; done
for name in ctc inter-ctc inter-kd inter-kd-2; do
  echo "== $name"
  tail -n 10 $out/$name.txt
  cat $out/score-$name-dev.txt $out/score-$name-test.txt
done
for name in inter-ctc inter-kd inter-kd-2; do
  interkd score --compare $out/score/ctc-test $out/score/$name-test
done
