#!/usr/bin/env bash
# Follows the log of the run that launch.sh started last, until the run ends or Ctrl-C; the run itself goes on.
#
#   tpu_scripts/logs.sh --name=opd --zone=us-west4-a
#
#   --worker=N       of which worker; default: 0
#   --lines=N        how many lines of the past to begin with; default: 100
#   --once           print them and end

set -euo pipefail
# shellcheck source=tpu_scripts/tpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"

worker=0 lines=100 verb=follow

own_flag() {
  case $1 in
    --worker=*) worker=${1#*=} ;;
    --lines=*) lines=${1#*=} ;;
    --once) verb=log ;;
    *) return 1 ;;
  esac
}

parse "$@"
((!${#rest[@]})) || die "logs.sh takes nothing after --."
[[ $worker =~ ^[0-9]+$ ]] || die "--worker=$worker is not the number of a worker; the first is 0."
[[ $lines =~ ^[0-9]+$ ]] || die "--lines=$lines is not a number of lines."
need_ready
on_workers "$worker" bash opd_jax/tpu_scripts/worker.sh "$verb" "$lines"
