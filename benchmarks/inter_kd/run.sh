#!/usr/bin/env bash
# The experiment on real speech: prepare, cache, then a sweep and where its students spike. Resumable at every step.
# Usage: benchmarks/inter_kd/run.sh SPEECH_FOLDER TEACHER_FILE SWEEP.yaml [options of interkd sweep]
# SPEECH_FOLDER has train.jsonl, dev.jsonl, test.jsonl; TEACHER_FILE is TorchScript with tokens.txt beside it.
set -euo pipefail
speech=$1 teacher=$2 sweep=$3
shift 3
out=runs/inter_kd
interkd() { python3 -m interkd "$@"; }
for split in train train-speeds dev test; do
  speeds=1
  [ "$split" != train-speeds ] || speeds=0.9,1,1.1
  [ -f "$out/$split/manifest.jsonl" ] ||
    interkd prepare "$speech/${split%-speeds}.jsonl" --out "$out/$split" --speeds "$speeds" \
      --tokens "$(dirname "$teacher")/tokens.txt" --frame-shift-ms 20
  interkd cache-teacher --teacher "torchscript:$teacher" --manifest "$out/$split/manifest.jsonl" --out "$out/$split.teacher.zarr"
  # What the report's row of the teacher is counted from.
  case $split in dev | test) [ -f "$out/$split.teacher.trn" ] ||
    interkd cache decode "$out/$split.teacher.zarr" --manifest "$out/$split/manifest.jsonl" --out "$out/$split.teacher.trn" ;; esac
done
interkd sweep "$sweep" "$@"
python3 benchmarks/inter_kd/spikes.py "$sweep" "$out/test/manifest.jsonl" "$out/test.teacher.zarr"
interkd sweep "$sweep" --report  # with the spikes
