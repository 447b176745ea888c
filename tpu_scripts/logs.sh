#!/usr/bin/env bash
# Follows the log of the run that launch.sh started last, until the run ends or Ctrl-C; the run itself goes on.
#
#   tpu_scripts/logs.sh --name=opd --zone=us-west4-a
#   tpu_scripts/logs.sh --name=opd --zone=us-east5-b --slice=1 --worker=3 --once
#
#   --slice=N        of which slice; default: 0
#   --worker=N       of which worker of the slice; default: 0, and of slice 0 the one that writes the workdir
#   --lines=N        how many lines of the past to begin with; default: 100
#   --once           print them and end

set -euo pipefail
# shellcheck source=tpu_scripts/tpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"

slice=0 worker=0 lines=100 verb=follow

own_flag() {
  case $1 in
    --slice=*) slice=${1#*=} ;;
    --worker=*) worker=${1#*=} ;;
    --lines=*) lines=${1#*=} ;;
    --once) verb=log ;;
    *) return 1 ;;
  esac
}

parse "$@"
no_arguments logs.sh
need_number --slice "$slice" 0
need_number --worker "$worker" 0
need_number --lines "$lines" 0
need_ready
((slice < ${#nodes[@]})) || die "--slice=$slice is not there: the TPU $name has ${#nodes[@]} slice(s), and the first is 0."
on_workers "${nodes[slice]}" "$worker" bash opd_jax/tpu_scripts/worker.sh "$verb" "$lines"
