#!/usr/bin/env bash
# Deletes a TPU that create.sh made, with everything on its disks, and its queued request if it had one.
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

foreign() { die "The $1 $name in $zone was not made by create.sh (it has no label opd-jax=$name), so it is not deleted."; }

parse "$@"
((!${#rest[@]})) || die "delete.sh takes nothing after --."
delete_tpu=(gcloud compute tpus tpu-vm delete "$name" "${where[@]}" --quiet)
delete_request=(gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet) # and the TPU it brought

look_at_tpu
if ((dry_run)); then
  quote "${delete_tpu[@]}"
  printf '# or, where it came by a queued request:\n# '
  quote "${delete_request[@]}"
  exit 0
fi
if ((found)); then
  [[ $tpu_label == "$name" && ($tpu_request == '' || $tpu_request == "$name") ]] || foreign TPU
  [[ -z $type || $type == "$tpu_type" ]] || die "The TPU $name is a $tpu_type, not a $type, so it is not deleted."
  [[ -z $version || $version == "$tpu_version" ]] || die "The TPU $name runs $tpu_version, not $version, so it is not deleted."
  what="the TPU $name ($tpu_type, $tpu_state) in $zone, with everything on its disks"
  command=("${delete_tpu[@]}")
  if [[ -n $tpu_request ]]; then command=("${delete_request[@]}"); fi
else
  look_at_request
  ((found)) || die "There is no TPU and no queued request $name in $zone."
  [[ $request_label == "$name" && $request_nodes == 1 ]] || foreign 'queued request'
  what="the queued request $name ($request_state) in $zone"
  command=("${delete_request[@]}")
fi
if ((!yes)); then
  printf 'Delete %s? [y/N] ' "$what" >&2
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
