#!/usr/bin/env bash
# Creates a TPU VM of one slice or, with --slices, of several: on demand, as a spot VM (--spot), by a queued request
# (--queued), or as both.
#
#   tpu_scripts/create.sh --name=opd --zone=us-west4-a --type=v5litepod-8
#   tpu_scripts/create.sh --name=opd --zone=us-east5-b --type=v6e-32 --spot --queued
#   tpu_scripts/create.sh --name=opd --zone=us-east5-b --type=v6e-32 --slices=4
#   tpu_scripts/create.sh --name=opd --zone=us-west4-a -- --network=my-net --internal-ips
#
# A TPU costs money until delete.sh has deleted it. The label opd-jax=NAME is how delete.sh knows what was made here.
# Where the TPU or the request is there already, the script says so and ends with status 0; wait.sh waits for what is
# still to come. Several slices always come by a queued request, as NAME-0, NAME-1, ... What follows -- goes to gcloud
# as it is.
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

advise() {
  case $1 in
    *[Qq]uota*)
      die "The project's quota in $zone does not allow $wanted: ask for more (https://console.cloud.google.com/iam-admin/quotas; spot has a quota of its own), or take a smaller --type or another --zone."
      ;;
    *'no more capacity'* | *'nsufficient'*'capacity'*)
      die "$zone has no room for $wanted now: --queued waits until it has, or take another --zone."
      ;;
  esac
}

parse "$@"
for word in ${rest[@]+"${rest[@]}"}; do
  case $word in
    --labels | --labels=*) die "--labels is taken: delete.sh knows its TPU by the label opd-jax=$name." ;;
  esac
done
assumed=0
look
if there; then
  expect "; $remedy"
  refuse_lost
  by=", not made by create.sh"
  if only_label; then by=''; fi
  if [[ $request_state == ACTIVE ]] && ((${#nodes[@]} > ready)); then
    die "$(situation), so a part of it is missing; wait.sh $here gives it time, and if that is in vain, $remedy"
  fi
  note "$(situation): there already ($tpu_type in $zone$by), so nothing was created."
  exit 0
fi

type=${type:-v5litepod-8}
version=${version:-$(default_version "$type")}
wanted=$type
if ((${slices:-1} > 1)); then
  queued=1 wanted="$slices slices of $type"
  command=("--node-count=$slices" "--node-prefix=$name")
else
  command=("--node-id=$name")
fi
if ((queued)); then
  command=(queued-resources create "$name" "${where[@]}" "${command[@]}" "--runtime-version=$version")
else
  command=(tpu-vm create "$name" "${where[@]}" "--version=$version")
fi
command=(gcloud compute tpus "${command[@]}" "--accelerator-type=$type" "--labels=opd-jax=$name")
if ((spot)); then command+=(--spot); fi
command+=(${rest[@]+"${rest[@]}"})
attempt "${command[@]}"
