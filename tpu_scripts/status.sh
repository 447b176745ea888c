#!/usr/bin/env bash
# Tells how a TPU and the run on it are: the state of every slice and, of each worker, whether the run goes on or how it
# ended, how often it was started again, and the last line of its log.
#
#   tpu_scripts/status.sh --name=opd --zone=us-west4-a
#
#   request opd: ACTIVE
#   opd-0: READY (v6e-32, 8 workers)
#   opd-1: PREEMPTED
#   opd-0 t1v-n-4f1c-w-0: running, started again 1 time(s): step 120  loss 0.31
#   opd-0 t1v-n-4f1c-w-1: ended with status 75 (left to be resumed): saved step 120

set -euo pipefail
# shellcheck source=tpu_scripts/tpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"

of_workers() { on_workers "$1" all bash opd_jax/tpu_scripts/worker.sh status "$1"; }

parse "$@"
no_arguments status.sh
look
if ((!dry_run)); then
  need_there
  expect .
  if [[ -n $request_state ]]; then printf 'request %s: %s\n' "$name" "$request_state${request_error:+ ($request_error)}"; fi
  reachable=()
  for ((i = 0; i < ${#nodes[@]}; i++)); do
    more=''
    if [[ ${states[i]} == READY ]]; then
      reachable+=("${nodes[i]}")
      more=" ($tpu_type, $tpu_workers worker(s))"
    fi
    printf '%s: %s%s\n' "${nodes[i]}" "${states[i]}" "$more"
  done
  ((${#reachable[@]})) || exit 0
  nodes=("${reachable[@]}")
fi
on_slices of_workers
