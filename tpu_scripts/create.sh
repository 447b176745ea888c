#!/usr/bin/env bash
# Creates one TPU VM slice: on demand, as a spot VM (--spot), by a queued request (--queued), or as both.
#
#   tpu_scripts/create.sh --name=opd --zone=us-west4-a --type=v5litepod-8
#   tpu_scripts/create.sh --name=opd --zone=us-east5-b --type=v6e-8 --spot --queued
#   tpu_scripts/create.sh --name=opd --zone=us-west4-a -- --network=my-net --internal-ips
#
# A TPU costs money until delete.sh has deleted it. The label opd-jax=NAME is how delete.sh knows what was made here.
# Where the TPU or the request is there already, the script says so and ends with status 0; so with --queued the same
# command also tells how far the request is. What follows -- goes to gcloud as it is.
#
#   --spot           cheaper, and may be taken away at any time
#   --queued         wait in the queue for capacity, rather than fail where there is none
#   --type           default: v5litepod-8

set -euo pipefail
# shellcheck source=tpu_scripts/tpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"

spot=0 queued=0

own_flag() {
  case $1 in
    --spot) spot=1 ;;
    --queued) queued=1 ;;
    *) return 1 ;;
  esac
}

# https://cloud.google.com/tpu/docs/runtimes
default_version() {
  case $1 in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

parse "$@"
for word in ${rest[@]+"${rest[@]}"}; do
  case $word in
    --labels | --labels=*) die "--labels is taken: delete.sh knows its TPU by the label opd-jax=$name." ;;
  esac
done

look_at_tpu
if ((found)); then
  remedy="delete it first: delete.sh --name=$name --zone=$zone."
  [[ -z $type || $type == "$tpu_type" ]] || die "The TPU $name exists in $zone as a $tpu_type, not a $type; $remedy"
  case $tpu_state in
    PREEMPTED | TERMINATED) die "The TPU $name was taken away ($tpu_state) and cannot be restarted; $remedy" ;;
  esac
  by=''
  if [[ $tpu_label != "$name" ]]; then by=', and was not made by create.sh'; fi
  note "The TPU $name exists already in $zone ($tpu_type, $tpu_state)$by."
  exit 0
fi
if ((queued)); then
  look_at_request
  if ((found)); then
    case $request_state in
      FAILED | SUSPENDING | SUSPENDED)
        die "The queued request $name is $request_state and brings no TPU any more; delete it first: delete.sh --name=$name --zone=$zone."
        ;;
    esac
    note "The request $name is already in the queue of $zone ($request_state)."
    exit 0
  fi
fi

type=${type:-v5litepod-8}
version=${version:-$(default_version "$type")}
if ((queued)); then
  command=(queued-resources create "$name" "${where[@]}" "--node-id=$name" "--runtime-version=$version")
else
  command=(tpu-vm create "$name" "${where[@]}" "--version=$version")
fi
command+=("--accelerator-type=$type" "--labels=opd-jax=$name")
if ((spot)); then command+=(--spot); fi
run gcloud compute tpus "${command[@]}" ${rest[@]+"${rest[@]}"}
