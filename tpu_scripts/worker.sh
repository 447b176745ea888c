#!/usr/bin/env bash
# What the other scripts do on a worker, where this file arrives with the checkout; nobody needs to call it by hand.
#
#   worker.sh install           ~/opd_jax.tar.gz -> ~/opd_jax and its .venv
#   worker.sh train WAIT ARG... starts the trainer, and waits WAIT seconds to report a failure
#   worker.sh stop              interrupts it
#   worker.sh log|follow LINES  prints the log of the last run, and follows it
#
# logs/ has one log a run, latest.log, the pid of the last run, its exit status once it has ended, and a lock that the run
# holds for as long as any process of it lives.

set -euo pipefail

main() {
  cd ~/opd_jax
  mkdir -p logs
  if [[ $1 != run ]]; then exec 9>>logs/lock; fi # a run has inherited it, locked, from train
  case $1 in
    install) install ;;
    train) train "${@:2}" ;;
    run) run "${@:2}" ;;
    stop) stop ;;
    log) log "$2" ;;
    follow) follow "$2" ;;
    *) die "worker.sh does not know $1." ;;
  esac
}

install() {
  flock --nonblock 9 || busy
  if [[ -f .files ]]; then xargs -d '\n' rm -f -- <.files; fi # files that a later commit has deleted
  tar -xzf ~/opd_jax.tar.gz
  tar -tzf ~/opd_jax.tar.gz | sed '/\/$/d' >.files
  rm ~/opd_jax.tar.gz
  make_venv
  .venv/bin/python -m pip install --quiet --editable '.[tpu]'
  .venv/bin/python -c 'import jax, opd_jax; print(f"opd_jax {opd_jax.__version__} with jax {jax.__version__} is installed")'
}

# A release of 3.11 or newer that can make environments; Ubuntu 22.04 has 3.10 and a release candidate of 3.11.
make_venv() {
  local python usable='import sys, ensurepip; sys.exit(sys.version_info < (3, 11, 0, "final"))'
  if .venv/bin/python -c "$usable" 2>/dev/null; then return; fi
  rm -rf .venv
  for python in python3.13 python3.12 python3.11 python3; do
    if "$python" -c "$usable" 2>/dev/null; then
      "$python" -m venv .venv
      return
    fi
  done
  { python3 -m pip install --quiet --user uv && python3 -m uv venv --quiet --seed --python 3.12 .venv; } ||
    die "There is no Python 3.11 or newer on $HOSTNAME, and uv could not fetch one; install one and run setup.sh again."
}

train() {
  local seconds=$1 log status
  shift
  [[ -x .venv/bin/python ]] || die "opd_jax is not installed on $HOSTNAME; run setup.sh first."
  flock --nonblock 9 || busy
  log=$(date -u +%Y%m%d-%H%M%S).log
  rm -f logs/pid logs/status
  ln -sfn "$log" logs/latest.log
  # A shell without a terminal hands an ignored SIGINT down, and Python would never hear --stop.
  PYTHONUNBUFFERED=1 env --default-signal=INT setsid --fork bash tpu_scripts/worker.sh run "$@" >>"logs/$log" 2>&1 </dev/null
  for ((; seconds > 0; seconds--)); do
    sleep 1
    if [[ -f logs/status ]]; then
      tail -n 20 logs/latest.log
      ended
      status=$(<logs/status)
      exit "$status"
    fi
  done
  printf 'Running on %s; the log is ~/opd_jax/logs/%s.\n' "$HOSTNAME" "$log"
}

# The leader of the run's own session: outlives the ssh connection and, on an interrupt, the trainer.
run() {
  local status=0
  trap : INT
  printf '%s\n' $$ >logs/pid
  .venv/bin/python -m opd_jax.train "$@" || status=$?
  printf '%s\n' "$status" >logs/status.new
  mv logs/status.new logs/status
}

stop() {
  if flock --nonblock 9; then
    printf 'No run is in progress on %s.\n' "$HOSTNAME"
    return
  fi
  [[ -f logs/pid && ! -f logs/status ]] || die "No run is in progress on $HOSTNAME, but setup.sh may be."
  kill -INT -- "-$(<logs/pid)" || true
  flock --timeout 60 9 || die "The run on $HOSTNAME did not end within 60 seconds; kill -KILL -- -$(<logs/pid) there ends it."
  ended
}

busy() { die "A run, or setup.sh, is in progress on $HOSTNAME; logs.sh shows a run and launch.sh --stop ends it."; }

log() {
  [[ -e logs/latest.log ]] || die "No run was started on $HOSTNAME yet."
  tail -n "$1" logs/latest.log
}

follow() {
  [[ -e logs/latest.log && -e logs/pid ]] || die "No run was started on $HOSTNAME yet."
  tail -n "$1" --pid="$(<logs/pid)" --sleep-interval=0.5 -f logs/latest.log
  ended
}

ended() {
  if [[ -f logs/status ]]; then
    printf 'The run on %s ended with status %s.\n' "$HOSTNAME" "$(<logs/status)" >&2
  else
    printf 'The run on %s was killed.\n' "$HOSTNAME" >&2
  fi
}

die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

main "$@"
exit # before bash reads on: install has replaced this file
