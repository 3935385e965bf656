#!/usr/bin/env bash
# A Slurm inside this machine, for the tests: munge, slurmctld and some slurmd, without systemd.
# Usage: up.sh FOLDER NODES CONTROLLER_PORT; afterwards SLURM_CONF=FOLDER/slurm.conf. Needs root.
# With INTERKD_SLURM_TESTS set, missing programs are installed from Debian's packages.
set -euo pipefail
folder=$1 nodes=$2 port=$3
host=$(hostname -s)

if ! command -v slurmctld slurmd munged >/dev/null; then
  [[ -n ${INTERKD_SLURM_TESTS:-} ]] || { echo "Slurm is not installed" >&2; exit 1; }
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge >/dev/null
fi

mkdir -p "$folder"/{state,spool,log,munge}
chmod 755 "$folder"
chmod 700 "$folder/munge"

# A munge of this folder's own: another Slurm on this machine keeps its key and its daemon.
dd if=/dev/urandom of="$folder/munge/key" bs=1024 count=1 status=none
chmod 400 "$folder/munge/key"
(umask 022 && munged --force --key-file="$folder/munge/key" --socket="$folder/munge.socket" \
  --pid-file="$folder/munge/munged.pid" --log-file="$folder/munge/log" \
  --seed-file="$folder/munge/seed" --num-threads=2)

memory=$(($(awk '/MemTotal/ {print $2}' /proc/meminfo) / 1024 / nodes - 512))
cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort=$port
AuthType=auth/munge
# A requeued job waits for the credential of its former life to expire, 120 s by default.
AuthInfo=socket=$folder/munge.socket,cred_expire=6
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
ReturnToService=2
GresTypes=gpu
MpiDefault=none
KillWait=5
MinJobAge=3600
$(for ((i = 1; i <= nodes; i++)); do
  echo "NodeName=n$i NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + i)) CPUs=2" \
    "RealMemory=$memory Gres=gpu:2 State=UNKNOWN"
done)
PartitionName=debug Nodes=n[1-$nodes] Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
PartitionName=short Nodes=n[1-$nodes] MaxTime=10 State=UP OverSubscribe=NO
CONF

echo "Name=gpu File=/dev/null,/dev/zero" >"$folder/gres.conf"  # devices that every machine has

export SLURM_CONF=$folder/slurm.conf
slurmctld -c -f "$SLURM_CONF"
for ((i = 1; i <= nodes; i++)); do
  mkdir -p "$folder/spool/n$i"
  slurmd -N "n$i" -f "$SLURM_CONF"
done
for ((i = 0; i < 200; i++)); do
  [[ $(sinfo -h -p debug -t idle -o %D 2>/dev/null) == "$nodes" ]] && exit 0
  sleep 0.1
done
sinfo >&2
exit 1
