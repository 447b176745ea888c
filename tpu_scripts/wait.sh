#!/usr/bin/env bash
# Waits until a TPU that create.sh asked for is READY, every slice of it, and tells what happens on the way.
#
#   tpu_scripts/wait.sh --name=opd --zone=us-west4-a && tpu_scripts/setup.sh --name=opd --zone=us-west4-a
#
# Ends with status 0 when all is READY; with 2 and the reason if that can no longer be, because the request failed or the
# TPU was taken away; with 124 at the timeout, and then the request stays in the queue.
#
#   --timeout=SECONDS   default: 0, for ever
#   --interval=SECONDS  between two looks; default: 15

set -euo pipefail
# shellcheck source=tpu_scripts/tpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"

timeout=0

own_flag() {
  case $1 in
    --timeout=*) timeout=${1#*=} ;;
    --interval=*) interval=${1#*=} ;;
    *) return 1 ;;
  esac
}

parse "$@"
no_arguments wait.sh
need_number --timeout "$timeout" 0
need_number --interval "$interval" 0

shown='' shown_at=0
for ((; ; gcloud_tries = 5)); do # a question fails now and then in a night of waiting; the first one fails for a reason
  look
  if ((dry_run)); then exit 0; fi
  need_there
  expect .
  refuse_lost
  now=$(situation)
  if [[ $now != "$shown" ]] || ((SECONDS - shown_at >= 600)); then
    printf '%3d:%02d  %s.\n' $((SECONDS / 60)) $((SECONDS % 60)) "$now"
    shown=$now shown_at=$SECONDS
  fi
  if all_ready; then exit 0; fi
  if ((timeout && SECONDS + interval > timeout)); then
    note "error: $now after $timeout seconds; the same command waits on, and delete.sh $here gives up."
    exit 124
  fi
  sleep "$interval"
done
