#!/usr/bin/env bash
# Starts `python -m opd_jax.train` on a TPU VM slice that setup.sh has prepared, and leaves it running there.
#
#   tpu_scripts/launch.sh --name=opd --zone=us-west4-a -- --config=configs/popd.py:paper --workdir=runs/popd \
#       --config.horizon.start=512 --config.eval.pass_at='(1, 8)'
#   tpu_scripts/launch.sh --name=opd --zone=us-west4-a --stop
#
# What follows -- are the trainer's arguments, passed on exactly. The program is started on every worker of the slice. The
# trainer drives the devices of a single host (v5litepod-8, v6e-8, v5p-8, ...), so a slice of several workers is refused.
#
# Paths are those of the worker, seen from ~/opd_jax; the same command resumes a run that was stopped. The worker's disk
# goes with the TPU, so fetch the results before delete.sh:
#   gcloud compute tpus tpu-vm scp --recurse NAME:opd_jax/runs/popd . --zone=ZONE
#
#   --watch=SECONDS  stay this long to report a run that fails at once; default: 15
#   --stop           interrupt the run instead of starting one

set -euo pipefail
# shellcheck source=tpu_scripts/tpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"

watch=15 stop=0

own_flag() {
  case $1 in
    --watch=*) watch=${1#*=} ;;
    --stop) stop=1 ;;
    *) return 1 ;;
  esac
}

several() {
  die "The TPU $name $1; the trainer drives the devices of a single host for now, so take a slice of one worker, such as v5litepod-8 or v6e-8."
}

parse "$@"
[[ $watch =~ ^[0-9]+$ ]] || die "--watch=$watch is not a number of seconds."
if ((stop)); then
  ((!${#rest[@]})) || die "--stop takes nothing after --."
  need_ready
  on_workers all bash opd_jax/tpu_scripts/worker.sh stop
  exit
fi
((${#rest[@]})) || die "Give the trainer's arguments after --: -- --config=configs/popd.py --workdir=runs/NAME."
if [[ -n $type ]] && ((${type##*-} > 8)); then several "is to be a $type, which has several workers"; fi
need_ready
if ((!dry_run && tpu_workers > 1)); then several "has $tpu_workers workers"; fi
on_workers all bash opd_jax/tpu_scripts/worker.sh train "$watch" "${rest[@]}"
