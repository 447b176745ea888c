#!/usr/bin/env bash
# Deletes a TPU that create.sh made, in all its slices, with everything on its disks, and its queued request if it had one.
#
#   tpu_scripts/delete.sh --name=opd --zone=us-west4-a
#
# Asks first. A TPU without the label opd-jax=NAME, which create.sh sets, is never deleted.
#
#   --yes            do not ask

set -euo pipefail
# shellcheck source=tpu_scripts/tpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"

yes=0

own_flag() {
  case $1 in
    --yes | -y) yes=1 ;;
    *) return 1 ;;
  esac
}

parse "$@"
no_arguments delete.sh
delete_tpu=(gcloud compute tpus tpu-vm delete "$name" "${where[@]}" --quiet)
delete_request=(gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet) # and the TPU it brought

look
if ((dry_run)); then
  if ((${slices:-1} == 1)); then
    quote "${delete_tpu[@]}"
    printf '# or, where it came by a queued request:\n# '
  fi
  quote "${delete_request[@]}"
  exit 0
fi
there || die "There is no TPU and no queued request $name in $zone."
if [[ -n $request_state ]]; then
  what="queued request $name" command=("${delete_request[@]}")
elif [[ -n $tpu_request ]]; then
  what="TPU $name" command=("${delete_request[@]}")
else
  what="TPU $name" command=("${delete_tpu[@]}")
fi
if ! only_label || [[ -n $tpu_request && $tpu_request != "$name" ]]; then
  die "The $what in $zone was not made by create.sh (it has no label opd-jax=$name), so it is not deleted."
fi
expect ', so it is not deleted.'
if ((!yes)); then
  printf '%s (%s in %s). Delete it, with everything on its disks? [y/N] ' "$(situation)" "$tpu_type" "$zone" >&2
  read -r reply || reply=''
  case $reply in
    [yY] | [yY][eE][sS]) ;;
    *)
      note 'Nothing was deleted.'
      exit 1
      ;;
  esac
fi
run "${command[@]}"
