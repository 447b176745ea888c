#!/usr/bin/env bash
# Installs this checkout on every worker of a TPU VM, in all its slices: ~/opd_jax, with a virtual environment in
# ~/opd_jax/.venv.
#
#   tpu_scripts/setup.sh --name=opd --zone=us-west4-a
#
# What is committed is what is copied (`git archive HEAD`). Run it again after a commit: the environment, the logs and
# the runs that are there stay. The environment has Python 3.11 or newer; where the image has none, uv fetches one.
# To reach several workers gcloud wants its key in the agent: ssh-add ~/.ssh/google_compute_engine

set -euo pipefail
# shellcheck source=tpu_scripts/tpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"

copy_to() { run gcloud compute tpus tpu-vm scp "$archive" "$1:" "${where[@]}" --worker=all; }

parse "$@"
no_arguments setup.sh
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
git rev-parse --quiet --verify HEAD >/dev/null 2>&1 || die "setup.sh copies the commit of a git checkout, and $root is none."
changes=$(git --no-optional-locks status --porcelain -- .)
if [[ -n $changes ]]; then note "Not committed, so not copied:"$'\n'"$changes"; fi

need_ready
archive=build/opd_jax.tar.gz # a path without a colon, which scp would take for a host
if ((dry_run)); then
  quote cd "$root"
else
  trap 'rm -f "$archive"' EXIT
fi
run mkdir -p build
run git archive --format=tar.gz "--output=$archive" HEAD
on_slices copy_to
install='mkdir -p opd_jax && tar -xzf opd_jax.tar.gz -C opd_jax tpu_scripts/worker.sh && bash opd_jax/tpu_scripts/worker.sh install'
on_slices on_workers all sh -c "$install"
