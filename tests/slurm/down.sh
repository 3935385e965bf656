#!/usr/bin/env bash
# Ends what up.sh began in FOLDER, and the jobs that still run there.
set -uo pipefail
folder=$1
export SLURM_CONF=$folder/slurm.conf
if scontrol ping >/dev/null 2>&1; then
  scancel --user=root
  for ((i = 0; i < 100; i++)); do  # a slurmd does not end before its jobs
    [[ -z $(squeue -h) ]] && break
    sleep 0.1
  done
fi
for signal in TERM KILL; do
  for file in "$folder"/slurmd-*.pid "$folder/slurmctld.pid" "$folder/munge/munged.pid"; do
    [[ -f $file ]] && kill -s $signal "$(<"$file")" 2>/dev/null
  done
  for ((i = 0; i < 30; i++)); do
    compgen -G "$folder/*.pid" >/dev/null || break
    sleep 0.1
  done
done
true
