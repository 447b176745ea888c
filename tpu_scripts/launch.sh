#!/usr/bin/env bash
# Starts `python -m opd_jax.train` on every worker of a TPU VM that setup.sh has prepared, in all its slices, and leaves
# it running there.
#
#   tpu_scripts/launch.sh --name=opd --zone=us-west4-a -- --config=configs/popd.py:paper --workdir=gs://bucket/popd \
#       --config.horizon.start=512 --config.eval.pass_at='(1, 8)'
#   tpu_scripts/launch.sh --name=opd --zone=us-west4-a --stop
#   tpu_scripts/launch.sh --name=opd --zone=us-west4-a --save
#
# What follows -- are the trainer's arguments, passed on exactly. A worker starts the same command again, which resumes
# the run, when the trainer left to be resumed (status 75: maintenance, or a worker lost) or died of a signal; not when
# it finished (0), was given a wrong input (2) or was interrupted (130). With several workers each of them does so, and
# they wait for each other.
#
# Paths are those of the workers, seen from ~/opd_jax. Several workers need a workdir that all of them see: gs://..., or
# a directory that all of them mount, and then say --shared-workdir. A worker's disk goes with the TPU, so fetch results
# from it before delete.sh:
#   gcloud compute tpus tpu-vm scp --recurse NAME:opd_jax/runs/popd . --zone=ZONE
#
#   --restarts=N     how often a worker starts the command again, at most; default: 3
#   --pause=SECONDS  before it does; default: 15
#   --watch=SECONDS  stay this long to report a run that fails at once; default: 15
#   --shared-workdir the workdir, though not gs://..., is the same directory on every worker
#   --stop           interrupt the run instead of starting one
#   --save           stop it too, but let it save at the next step

set -euo pipefail
# shellcheck source=tpu_scripts/tpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"

restarts=3 pause=15 watch=15 shared=0 signal=''

own_flag() {
  case $1 in
    --restarts=*) restarts=${1#*=} ;;
    --pause=*) pause=${1#*=} ;;
    --watch=*) watch=${1#*=} ;;
    --shared-workdir) shared=1 ;;
    --stop) signal=${signal:-INT} ;;
    --save) signal=TERM ;;
    *) return 1 ;;
  esac
}

parse "$@"
if [[ -n $signal ]]; then
  no_arguments "launch.sh --stop or --save"
  need_ready
  on_slices on_workers all bash opd_jax/tpu_scripts/worker.sh stop "$signal"
  exit
fi
need_arguments gs://BUCKET/NAME
need_number --restarts "$restarts" 0
need_number --pause "$pause" 0
need_number --watch "$watch" 0
need_ready
if ((dry_run)); then
  tpu_workers=1
  if [[ -n $type ]] && ((${type##*-} > 8)); then tpu_workers=2; fi # or more
fi
find_workdir
if ((!shared && (${#nodes[@]} > 1 || tpu_workers > 1))) && [[ -n $workdir && $workdir != *://* ]]; then
  die "--workdir=$workdir is on each worker's own disk, and this TPU has several workers: give --workdir=gs://BUCKET/PATH, or add --shared-workdir if all of them mount that directory."
fi
on_slices on_workers all bash opd_jax/tpu_scripts/worker.sh train "$watch" "$restarts" "$pause" "${rest[@]}"
