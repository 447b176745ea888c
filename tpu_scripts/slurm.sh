#!/usr/bin/env bash
# Submits a Slurm job that runs `python -m opd_jax.train` on the GPUs of one node or of several.
#
#   tpu_scripts/slurm.sh --name=opd --nodes=2 --gpus=8 --time=24:00:00 --sbatch=--partition=gpu --sbatch=--exclusive \
#       -- --config=configs/popd.py:paper --workdir=/shared/runs/popd
#   tpu_scripts/slurm.sh --name=opd --nodes=1 --gpus=8 --dry-run -- ... >opd.sbatch
#
# What follows -- are the trainer's arguments, passed on exactly; paths are seen from the directory in which you submit,
# and the workdir has to be one that all nodes see. The log is NAME-JOB.log there. --dry-run prints the script instead of
# submitting it.
#
# Ahead of the time limit the trainer is told to save; the job then goes back into the queue and resumes the run. It does
# so too when a process was lost or died of a signal; not when the run finished (status 0), was given a wrong input (2) or
# was interrupted (130). `scancel JOB` ends it for good. A second job of the same name waits for the first one to end.
#
#   --name=NAME      of the job (required)
#   --nodes=N        default: 1
#   --gpus=N         of each node (required)
#   --per-node       one process for all GPUs of a node; default: one for each GPU
#   --cpus=N         cores for each process; default: what Slurm gives, which is often one
#   --time=LIMIT     as sbatch takes it, 24:00:00 for example; default: the limit of the partition
#   --ahead=SECONDS  how long before the time limit to save; default: 600
#   --restarts=N     how often the job goes back into the queue, at most; default: 20
#   --python=PATH    default: python, as found on PATH when the job is submitted
#   --sbatch=FLAG    another flag for sbatch, such as --sbatch=--account=ME; as often as you like

set -euo pipefail
# shellcheck source=tpu_scripts/shell.sh
source "$(dirname "${BASH_SOURCE[0]}")/shell.sh"

nodes=1 gpus='' per_node=0 cpus='' time='' ahead=600 restarts=20 python=python
more=()

own_flag() {
  case $1 in
    --nodes=*) nodes=${1#*=} ;;
    --gpus=*) gpus=${1#*=} ;;
    --per-node) per_node=1 ;;
    --cpus=*) cpus=${1#*=} ;;
    --time=*) time=${1#*=} ;;
    --ahead=*) ahead=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --python=*) python=${1#*=} ;;
    --sbatch=*) more+=("${1#*=}") ;;
    *) return 1 ;;
  esac
}

directives() {
  local flags=("--job-name=$name" "--nodes=$nodes" "--ntasks-per-node=$processes" "--gpus-per-node=$gpus") flag
  if [[ -n $cpus ]]; then flags+=("--cpus-per-task=$cpus"); fi
  if [[ -n $time ]]; then flags+=("--time=$time"); fi
  flags+=("--signal=TERM@$ahead" --requeue --open-mode=append "--output=$name-%j.log" --dependency=singleton)
  for flag in "${flags[@]}" ${more[@]+"${more[@]}"}; do printf '#SBATCH %s\n' "$flag"; done
}

# srun's status is the highest of its processes. One that ends must not take the others with it while they save.
job() {
  local srun=(srun --kill-on-bad-exit=0 --wait=0) i
  if [[ -n $cpus ]]; then srun+=("--cpus-per-task=$cpus"); fi
  printf '#!/bin/bash\n'
  directives
  if ((per_node)); then # JAX gives a process of a Slurm job one device, unless told otherwise
    printf 'export JAX_LOCAL_DEVICE_IDS=0'
    for ((i = 1; i < gpus; i++)); do printf ',%s' "$i"; done
    printf '\n'
  fi
  cat <<END
status=0
$(quote "${srun[@]}" "$python" -u -m opd_jax.train "${rest[@]}") || status=\$?
count=\${SLURM_RESTART_COUNT:-0}
if ((status == 75 || (status > 128 && status <= 192 && status != 130))) && ((count < $restarts)); then
  echo "slurm.sh: status \$status; start \$((count + 1)) of $restarts of the same job."
  scontrol requeue "\$SLURM_JOB_ID" && exit
fi
exit "\$status"
END
}

read_flags "$@"
[[ -n $name && -n $gpus ]] || die "Give slurm.sh --name=NAME --gpus=N; --help explains them."
is_name "$name" || die "--name=$name is not a job name: lower-case letters, digits and dashes, a letter first, at most 63."
need_number --nodes "$nodes" 1
need_number --gpus "$gpus" 1
if [[ -n $cpus ]]; then need_number --cpus "$cpus" 1; fi
need_number --ahead "$ahead" 1
((ahead <= 65535)) || die "--ahead=$ahead is more than the 65535 seconds that Slurm takes."
need_number --restarts "$restarts" 0
[[ -z $time || $time =~ ^[0-9:-]+$ ]] || die "--time=$time is not a time limit such as 24:00:00 or 2-00:00:00."
for flag in ${more[@]+"${more[@]}"}; do
  [[ $flag == -* && $flag != *$'\n'* ]] || die "--sbatch=$flag is not a flag of sbatch, such as --sbatch=--partition=gpu."
done
need_arguments /SHARED/NAME
processes=$((per_node ? 1 : gpus))

if ((dry_run)); then
  job
else
  need_tool sbatch 'submit from a login node of the cluster'
  job | run sbatch
fi
